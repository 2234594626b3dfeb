"""The suite itself: its order, its last line, and that it passes where SIGINT is ignored and no home can be written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIDE_BY_SIDE = """
import os, pytest, time

@pytest.mark.parametrize("number", range(4))
def test_one_of_many(number, log):
    log("begins")
    time.sleep(0.1)
    log("ends")

@pytest.mark.alone
def test_time(log):
    log("alone")

def test_without_a_program():
    pytest.skip("tshark is not on PATH; on Debian: apt-get install tshark")

def test_without_luck():
    pytest.skip("no luck")
"""
LOG = """
import os, pathlib, pytest

@pytest.fixture
def log(request):
    def write(word):
        with open(pathlib.Path(__file__).parent / "log", "a") as file:
            file.write(f"{word}\\n")
    return write
"""
HERE = """
import os, signal
from pathlib import Path

def test_signals():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

def test_home():
    (Path.home() / "something").touch()
"""


def run_pytest(folder: Path, *words: str, **options: object) -> str:
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (folder / "pytest.ini").write_text(f"[pytest]\nmarkers = alone\npythonpath = {ROOT}/tests\naddopts = -pno:nbval\n")
    environment = {name: value for name, value in os.environ.items() if name != "LABKIT_TESTS_HOME"} | {"HOME": "/proc"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("processes", [0, 3])
def test_what_measures_time_runs_last_and_alone(tmp_path: Path, processes: int) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"test_{name}.py").write_text(SIDE_BY_SIDE)
        (tmp_path / name / "conftest.py").write_text(LOG.replace(".parent ", ".parent.parent "))
    said = run_pytest(tmp_path, *(["-n", str(processes)] if processes else []))
    words = (tmp_path / "log").read_text().split()
    assert words.count("begins") == words.count("ends") == 16
    assert words[-4:] == ["alone"] * 4
    assert said.splitlines()[-1] == (
        "20 passed, 8 left out (4 want tshark; 4: no luck). To bring what is missing: "
        "sudo apt-get install --no-install-recommends tshark"
    )


def test_the_last_line_of_a_run_in_which_nothing_passed(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text('import pytest\n\ndef test_none():\n    pytest.skip("no luck")\n')
    assert run_pytest(tmp_path).splitlines()[-1] == "0 passed, 1 left out (1: no luck)"


def test_in_the_background_of_a_script_and_without_a_home(tmp_path: Path) -> None:
    (tmp_path / "test_here.py").write_text(HERE)
    said = run_pytest(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert re.fullmatch(r"2 passed, nothing left out", said.splitlines()[-1])
