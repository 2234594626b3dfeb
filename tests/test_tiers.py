"""The book on every tier: machines that allow less, rehearsed on this one.

The highest tier needs no lane here: the suite itself runs there, where each notebook is run twice
(tests/notebook_run.py) and every exercise is judged. A lane proves what is different on its machines, once:

- Loopback, without namespaces: all notebooks and exercises, since everything below them is another engine.
- Fixed sysctls: the notebooks that a kernel setting changes. For the others the machine is the same.
- An ordinary user: a notebook for each facility of the engine that asks the kernel for something. The code is the same
  as root's, with other rights.

With ``--full`` each lane runs everything. The tier that a machine is said to have is the one that it has.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from notebook_run import SYSCTLS, Notebook
from processes import FIXED, ORDINARY

from book import Section, contents

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {Path(section.path).with_suffix("").as_posix(): section for section in contents().written}
LESSONS = {name: section for name, section in NOTEBOOKS.items() if not section.reference}
# What needs a right, or what the kernel gives to root in another way, and the notebook that stands for it.
FACILITIES = {
    "captures, HTTP/3 and QUIC servers": "03_https/04_quic",
    "kernel settings, Fast Open, rules of the wire": "03_https/05_tfo_tls13",
    "ASGI servers, a page for the learner's browser": "01_patterns/03_push",
    "queues by sock_diag": "04_execution/02_accept_queues",
    "processes of servers, their loads and their threads in the run queue": "04_execution/06_many_readers",
    "sockets that share a port, BPF, signals": "04_execution/09_sharding",
}

# An ordinary user again: root without capabilities may not even map itself (CAP_SETFCAP, user_namespaces(7)).
NONE = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
LANES = {
    "an ordinary user": (ORDINARY, "kernel"),
    "fixed sysctls": ((*FIXED, *ORDINARY), "kernel, fixed sysctls"),
    "loopback": (("unshare", "-Ur", "sh", "-c", NONE, "sh"), "loopback"),
}
EACH_LANE = pytest.mark.parametrize("lane", LANES)
RUNS = {"an ordinary user": [*FACILITIES.values()], "fixed sysctls": [*SYSCTLS], "loopback": [*NOTEBOOKS]}
# With a kernel's network mistakes are judged as on the highest tier; which exercises there are is what differs.
CHECKS = {"fixed sysctls": [*SYSCTLS], "loopback": [*LESSONS]}
KINDS = {"fixed sysctls": "starter solution trace", "loopback": "starter solution trace mistake"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything, names = metafunc.config.option.full, set(metafunc.fixturenames)
    if {"lane", "notebook"} <= names:
        pairs = [(lane, name) for lane, some in RUNS.items() for name in (NOTEBOOKS if everything else some)]
        metafunc.parametrize(("lane", "notebook"), pairs)
    elif {"lane", "lesson"} <= names:
        pairs = [(lane, name) for lane, some in CHECKS.items() for name in (LESSONS if everything else some)]
        metafunc.parametrize(("lane", "lesson"), pairs)


@pytest.fixture(autouse=True)
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_TIER", raising=False)
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode != 0:
        pytest.skip("the rehearsal itself needs user namespaces")


# A cell that shows its lab: <Lab client.lab 192.0.2.1, …, RTT 40 ms, tier kernel>
REPORT = re.compile(r"<Lab client\.lab .*, tier ([^>]+)>")


@pytest.mark.timeout(600)
def test_a_notebook_passes(lane: str, notebook: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By nbval, as on the highest tier: with the outputs that are stored, too, where a cell's output is compared."""
    prefix, tier = LANES[lane]
    run: Notebook = Notebook.from_parent(request.session, path=ROOT / f"notebooks/{notebook}.ipynb")
    run.prefix = prefix
    run.variables = {"HOME": str(tmp_path), "LABKIT_HOME": str(tmp_path / "labkit")}
    seen = {found for cell in run.run() for found in REPORT.findall(str(cell.test_outputs))}
    assert seen == ({tier} if notebook in LESSONS else set())


@pytest.mark.timeout(600)
def test_exercises_are_right_wrong_or_not_available(lane: str, lesson: str, tmp_path: Path) -> None:
    prefix, _ = LANES[lane]
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *checks(lane, LESSONS[lesson])]
    environment = {**os.environ, "HOME": str(tmp_path), "LABKIT_HOME": str(tmp_path / "labkit")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def checks(lane: str, section: Section) -> Iterator[str]:
    """The tests of tests/test_sections.py that judge a section's exercises in a lane."""
    test = "tests/test_sections.py::test_"
    for exercise in section.module.EXERCISES:
        if "starter" in KINDS[lane]:
            yield f"{test}a_starter_is_not_attempted[{exercise.id}]"
        if "solution" in KINDS[lane]:
            yield f"{test}a_solution_is_right[{exercise.id}]"
        if "mistake" in KINDS[lane]:
            for number, _ in enumerate(exercise.wording.mistakes, 1):
                yield f"{test}a_mistake_is_wrong_and_told_why[{exercise.id}-{number}]"
    if "trace" in KINDS[lane]:
        yield f"{test}the_hidden_trace[{section.id}]"


def test_the_lanes_run_notebooks_that_there_are() -> None:
    assert {*SYSCTLS, *FACILITIES.values()} <= LESSONS.keys()


def source_of(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


Reached = tuple[str, str | None]


def reached(module: str, name: str | None = None, seen: set[Reached] | None = None) -> Iterator[ast.stmt]:
    """The statements of a module, or those that define a name of it, and what they use of the book's chapters."""
    seen = set() if seen is None else seen
    if (module, name) in seen or module.startswith("book.learn") or not source_of(module).exists():
        return
    seen.add((module, name))
    here: dict[str, ast.stmt] = {}
    elsewhere: dict[str, Reached] = {}
    body = ast.parse(source_of(module).read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            here[node.name] = node
        elif isinstance(node, ast.Assign):
            here |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("book."):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = source_of(whole).exists()
                elsewhere[alias.asname or alias.name] = (whole, None) if known else (str(node.module), alias.name)
    statements = body if name is None else [here[name]] if name in here else []
    yield from statements
    for node in (each for statement in statements for each in ast.walk(statement) if isinstance(each, ast.Name)):
        if name is not None and node.id in here:
            yield from reached(module, node.id, seen)
        elif node.id in elsewhere:
            yield from reached(*elsewhere[node.id], seen)


@pytest.mark.parametrize("lesson", [name for name in LESSONS if name not in SYSCTLS])
def test_no_other_judge_asks_for_a_kernel_setting(lesson: str) -> None:
    """For the notebooks their runs say it."""
    for statement in reached(LESSONS[lesson].module.__name__):
        words = {getattr(node, kind, None) for node in ast.walk(statement) for kind in ("attr", "arg")}
        texts = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
        found = {"sysctl", "fast_open"} & words | {"sysctls"} & texts
        assert not found, f"{lesson} belongs into SYSCTLS: {found} in\n{ast.unparse(statement)}"


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
