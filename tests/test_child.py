"""Processes of labkit's own: how they start, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit import child

TASK = "import sys\ndef main():\n    print(sys.argv[1:], 'site' in sys.modules, flush=True)\n    sys.stdin.read()\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside labkit, in a folder of its own."""
    (tmp_path / "labkit").mkdir()
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.setattr(child, "__file__", str(tmp_path / "labkit/child.py"))
    return "task"


def test_a_bare_process_runs_main_in_a_session_of_its_own(module: str) -> None:
    with child.start(module, 7, "two words", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"['7', 'two words'] False\n"
        assert os.getsid(process.pid) == process.pid
        process.stdin.close()
        child.end(process)
        assert process.returncode == 0


def test_one_that_does_not_end_is_killed_at_the_deadline(module: str) -> None:
    with child.start(module, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        start = time.monotonic()
        child.end(process, 0.1)
        assert process.returncode == -9
        assert time.monotonic() - start >= 0.1


def test_one_that_has_ended_and_was_waited_for(module: str) -> None:
    with child.start(module, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        os.waitpid(process.pid, 0)
        child.end(process)
        child.end(process)


def test_the_folder_it_starts_in_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')\n")
    code = "import sys; sys.argv = ['']; import json; print(json.__file__)"
    words = [code if word == child._BOOT else word for word in child.command("labkit.errors")]
    assert words[0] == sys.executable
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
