"""The command line as people use it: a process of its own, its output, its exit status, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import FIXED

from labkit.handshakes import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["race", "--rtt-ms", "40", "--runs", "1"]


@pytest.fixture
def labkit(tmp_path: Path, processes_of: Callable[[object], dict[int, str]]) -> Any:
    """``labkit("race", …)`` runs it to its end. Nothing of it may be left: no directory, no process."""
    home = tmp_path / "tmp"
    home.mkdir()

    def run(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, "-m", "labkit", *words]
        variables = {**os.environ, "TMPDIR": str(home), "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=90, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        assert os.listdir(home) == []
        assert processes_of(home) == {}
        return done

    return run


def test_race_as_a_table(labkit: Any) -> None:
    done = labkit(*SHORT, "--variant", "tls1.3", "--variant", "tcp")
    assert (done.returncode, done.stderr) == (0, "")
    heading, first, second = done.stdout.splitlines()
    assert heading.split()[:3] == ["variant", "theory", "measured"]
    assert "round trips of 40 ms" in heading
    # In the order in which they were named.
    assert (first.split()[:2], second.split()[:2]) == (["tls1.3", "3"], ["tcp", "2"])
    assert float(first.split()[2]) >= 3  # by the clock: no less, and on a busy machine more


def test_race_as_json(labkit: Any) -> None:
    done = labkit(*SHORT, "--variant", "quic", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plain = json.loads(done.stdout)
    assert set(plain) == {"tier", "rtt_ms", "variants"}
    (quic,) = plain["variants"]
    assert set(quic) == {"name", "tier", "theory_rtts", "measured_rtts", "runs", "phases_rtts", "proof"}
    assert (quic["name"], quic["theory_rtts"], len(quic["runs"])) == ("quic", 2, 1)


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("SVG", b"<?xml")])
def test_race_as_a_picture(labkit: Any, tmp_path: Path, ending: str, magic: bytes) -> None:
    done = labkit("race", "--rtt-ms", "5", "--runs", "1", "--variant", "tcp", "--plot", f"race.{ending}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"race.{ending}").read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["race", "--variant", "tls1.4"], 1, "variant 'tls1.4': choose from tcp, tfo"),
        (["race", "--rtt-ms", "-1"], 1, "rtt_ms=-1.0: give a number from 0 to 60000 milliseconds"),
        (["race", "--rtt-ms", "nan"], 1, "rtt_ms=nan"),
        (["race", "--rtt-ms", "0"], 1, "rtt_ms=0: round trips are counted in units of the RTT"),
        (["race", "--runs", "0"], 1, "runs=0: give a whole number from 1"),
        (["race", "--rtt-ms", "far"], 2, "argument --rtt-ms: invalid float value: 'far'"),
        (["race", "--plot", "race.doc"], 2, "argument --plot: 'race.doc': end it in .png, .svg, .pdf"),
        (["race", "--plot", "race"], 2, "argument --plot: 'race': end it in"),
        (["race", "--plot", "nowhere/race.png"], 2, "argument --plot: 'nowhere/race.png' cannot be written"),
        (["race", "--plot", "folder.png"], 2, "argument --plot: 'folder.png' cannot be written"),
        (["race", "--variants", "tcp"], 2, "unrecognized arguments"),
        (["rcae"], 2, "invalid choice: 'rcae'"),
        ([], 2, "COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    labkit: Any, tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    done = labkit(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""


def test_a_picture_that_cannot_be_written_in_the_end(labkit: Any, tmp_path: Path) -> None:
    (tmp_path / "full.png").symlink_to("/dev/full")
    done = labkit("race", "--rtt-ms", "5", "--runs", "1", "--variant", "tcp", "--plot", "full.png")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


NONE = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'


@pytest.fixture
def rehearsal() -> None:
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode != 0:
        pytest.skip("the rehearsal itself needs user namespaces")


@pytest.mark.usefixtures("rehearsal")
def test_a_machine_that_fixes_the_sysctls(labkit: Any) -> None:
    """It has no Fast Open server: that variant is a recorded one, and said to be."""
    done = labkit(*SHORT, "--variant", "tfo", "--variant", "tcp", prefix=FIXED)
    assert done.returncode == 0, done.stderr
    _, tfo, tcp = done.stdout.splitlines()
    assert "(recorded, Linux" in tfo
    assert "recorded" not in tcp
    done = labkit("doctor", "--json", prefix=FIXED)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["tier"], report["healthy"]) == ("kernel, fixed sysctls", True)
    (lower,) = [check for check in report["checks"] if check["state"] == "lower"]
    assert "net.ipv4.tcp_fastopen" in lower["found"]
    assert "--security-opt systempaths=unconfined" in lower["mend"]


@pytest.mark.usefixtures("rehearsal")
def test_a_machine_without_namespaces(labkit: Any) -> None:
    prefix = ("unshare", "-Ur", "sh", "-c", NONE, "sh")
    done = labkit("doctor", prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tier: loopback — ")
    assert "→ an administrator turns them on with: sudo sysctl -w user.max_user_namespaces=" in done.stdout
    done = labkit(*SHORT, "--variant", "tls1.3", prefix=prefix)
    assert done.returncode == 0, done.stderr  # the claim is proven, by cause and effect
    _, measured = done.stdout.splitlines()
    assert measured.split()[:2] == ["tls1.3", "3"]
    assert re.search(
        r"tcp \d\.\d+  tls \d\.\d+  request \d\.\d+$", measured
    )  # by the clock: a busy machine adds to each


def test_doctor(labkit: Any) -> None:
    done = labkit("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tier: kernel — ")
    assert labkit("doctor", "--json").returncode == 0


def test_an_interrupt_ends_it(python: Callable[..., Any], tmp_path: Path, processes_of: Any, until: Any) -> None:
    words = ["race", "--rtt-ms", "40", "--runs", "1000"]
    source = "import sys, tempfile; tempfile.tempdir = sys.argv.pop(); from labkit.cli import main; sys.exit(main())"
    process = python(source, *words, str(tmp_path))
    until(lambda: len(processes_of(tmp_path)) >= 3)
    os.kill(process.pid, signal.SIGINT)
    while not select.select([os.pidfd_open(process.pid)], [], [], 5)[0]:
        os.kill(process.pid, signal.SIGINT)  # Python had it in a finalizer, where exceptions are ignored
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "labkit race: interrupted" in err
    assert processes_of(tmp_path) == {}
    assert os.listdir(tmp_path) == []


def test_help_names_the_variants_default(labkit: Any) -> None:
    done = labkit("race", "--help")
    assert done.returncode == 0
    assert "all by default" in " ".join(done.stdout.split())
    assert len(VARIANTS) == 11
