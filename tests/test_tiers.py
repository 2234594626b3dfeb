"""The whole book on every tier: machines that allow less, rehearsed on this one.

Each lane runs all notebooks by nbval, as CI does, and what the sections' exercises say; and the tier that a machine is
said to have is the one that it has. The highest tier needs no lane here: the suite itself runs there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from book import contents

ROOT = Path(__file__).resolve().parent.parent
LESSONS = [section for section in contents().written if not section.reference]

# As another user, who has no rights over this machine: root outside for files, nobody's capabilities inside.
ORDINARY = ("unshare", "-U", "--map-user=1000", "--map-group=1000")
# An ordinary user again: root without capabilities may not even map itself (CAP_SETFCAP, user_namespaces(7)).
FIXED = f'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {" ".join(ORDINARY)} "$@"'
NONE = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
LANES = {
    "an ordinary user": (ORDINARY, "kernel"),
    "fixed sysctls": (("unshare", "-Urm", "sh", "-c", FIXED, "sh"), "kernel, fixed sysctls"),
    "no namespaces": (("unshare", "-Ur", "sh", "-c", NONE, "sh"), "loopback"),
}
EACH_LANE = pytest.mark.parametrize("lane", LANES)
LOWER_LANES = pytest.mark.parametrize("lane", [lane for lane, (_, tier) in LANES.items() if tier != "kernel"])
# With a kernel's network mistakes are judged as on the highest tier; which exercises there are is what differs.
CHECKS = {
    "fixed sysctls": "starter or solution or hidden_trace",
    "no namespaces": "starter or solution or mistake or hidden_trace",
}


@pytest.fixture(autouse=True)
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_TIER", raising=False)
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode != 0:
        pytest.skip("the rehearsal itself needs user namespaces")


def run_pytest(prefix: tuple[str, ...], home: Path, *words: str) -> str:
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tiers_seen", *words]
    environment = {
        **os.environ,
        "HOME": str(home),
        "LABKIT_HOME": str(home / "labkit"),
        "PYTHONPATH": str(ROOT / "tests"),
        "TIERS_SEEN": str(home / "tiers"),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    return done.stdout


@EACH_LANE
@pytest.mark.timeout(1200)
def test_every_notebook_passes(lane: str, tmp_path: Path) -> None:
    prefix, tier = LANES[lane]
    said = run_pytest(prefix, tmp_path, "notebooks")
    cells = sum(
        cell["cell_type"] == "code"
        for notebook in ROOT.glob("notebooks/*/*.ipynb")
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    )
    (passed,) = re.findall(r"^(\d+) passed, nothing left out$", said, re.MULTILINE)
    assert int(passed) == cells
    seen = dict(line.split(": ", 1) for line in (tmp_path / "tiers").read_text().splitlines())
    assert seen == {Path(section.path).stem: tier for section in LESSONS}


@LOWER_LANES
@pytest.mark.timeout(1200)
def test_exercises_are_right_wrong_or_not_available(lane: str, tmp_path: Path) -> None:
    prefix, _ = LANES[lane]
    run_pytest(prefix, tmp_path, "tests/test_sections.py", "-k", CHECKS[lane])


@EACH_LANE
def test_the_doctor_tells_the_tier_and_what_raises_it(lane: str) -> None:
    prefix, tier = LANES[lane]
    command = [*prefix, sys.executable, "-m", "labkit", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tier"] == tier
    mends = [check["mend"] for check in report["checks"] if check["state"] == "lower"]
    if tier == "kernel":
        assert mends == []
    else:
        (mend,) = mends
        assert re.search("sysctl -w|systempaths=unconfined", mend)


LISTENING = """
import contextlib, json, os, socket, sys
from labkit import Lab
from labkit.servers import EarlyDataServer, Http3Server, HttpServer

def inodes():
    found, processes = set(), [os.getpid()]
    while processes:
        pid = processes.pop()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        processes += map(int, open(f"/proc/{pid}/task/{pid}/children").read().split())
    return found

def listening():
    ours, found = inodes(), []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in ours and (words[3] == "0A" or name.startswith("udp")):
                found.append(words[1].split(":")[0])
    return found

with Lab(rtt_ms=1) as lab, HttpServer(lab.server), HttpServer(lab.server, tls="1.3"), Http3Server(lab.server):
    with EarlyDataServer(lab.server, port=8443), lab.server, socket.create_server(("", 9999)):
        print(json.dumps([lab.tier, listening()]))
"""
LOOPBACK_ADDRESS = "0100007F"  # as /proc/net/tcp writes 127.0.0.1


@EACH_LANE
def test_nothing_listens_but_on_lab_hosts_and_127_0_0_1(lane: str) -> None:
    """As the machine's own network sees it: hosts in namespaces have none of their sockets there."""
    prefix, tier = LANES[lane]
    done = subprocess.run([*prefix, sys.executable, "-c", LISTENING], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told, found = json.loads(done.stdout)
    assert told == tier
    if tier == "loopback":
        assert len(found) >= 7  # five servers, and the relay
        assert set(found) == {LOOPBACK_ADDRESS}
    else:
        assert found == []


PRIVATE = """
import os, stat, sys
from labkit import Lab
from book.learn.progress import progress
with Lab(rtt_ms=1) as lab:
    lab.authority
    progress().solve("introduction.welcome.flags")
    open_to_others = [
        path
        for top in (lab.directory, os.environ["LABKIT_HOME"])
        for path in [str(top), *(os.path.join(top, name) for name in os.listdir(top))]
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077 and stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) & 0o077
    ]
    print(lab.tier, open_to_others)
"""


@EACH_LANE
def test_keys_and_progress_are_the_users_alone(lane: str, tmp_path: Path) -> None:
    """Each file is closed to others, or lies in a folder that is."""
    prefix, tier = LANES[lane]
    environment = {**os.environ, "LABKIT_HOME": str(tmp_path / "home")}
    command = [*prefix, sys.executable, "-c", PRIVATE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{tier} []\n"), done.stderr
