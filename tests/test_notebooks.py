"""A notebook whose reader is impatient: interrupted, and its kernel killed in the middle. What each notebook must bear
stands in tests/notebook_run.py.

Kernels are driven by jupyter_client, as nbval does: nbclient waits in vain for the comm messages of ipywidgets.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from notebook_run import Kernel

RACE = Path(__file__).resolve().parent.parent / "notebooks/03_https/08_the_race.ipynb"
CELL_S = 180


def first_cell(notebook: Path) -> str:
    """The set-up."""
    cells = json.loads(notebook.read_text())["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def outputs(kernel: Kernel, source: str) -> Iterator[dict[str, Any]]:
    """What a cell puts out, until the kernel is idle again."""
    request, deadline = kernel.kc.execute(source), time.monotonic() + CELL_S
    while True:
        try:
            message = kernel.kc.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"the cell did not end in {CELL_S} s") from None
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return
        yield message


def said(kernel: Kernel, source: str) -> str:
    """Run a cell to its end; its text. An error fails, and so does whatever is on stderr."""
    text = []
    for message in outputs(kernel, source):
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if message["msg_type"] == "stream":
            assert content["name"] == "stdout", content["text"]
            text.append(content["text"])
    return "".join(text)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(RACE.parent, tmp_path)
    yield kernel
    kernel.end()


@pytest.fixture
def nothing_left(
    tmp_path: Path, processes_of: Callable[[object], dict[int, str]], until: Callable[..., None]
) -> Callable[[], None]:
    """Waits until no process of the lab and no directory of it is there."""

    def check() -> None:
        until(lambda: not any(name.startswith("labkit-") for name in os.listdir(tmp_path)))
        until(lambda: processes_of(f"{tmp_path}/labkit-") == {})

    return check


LONG_RACE = "race(lab, runs=30, progress=lambda each: print(each.name, flush=True))"


def test_the_race_interrupted_and_then_killed(
    kernel: Kernel,
    tmp_path: Path,
    nothing_left: Callable[[], None],
    processes_of: Callable[[object], dict[int, str]],
) -> None:
    said(kernel, first_cell(RACE))

    def race_until_it_told(times: int) -> Iterator[dict[str, Any]]:
        messages, told = outputs(kernel, LONG_RACE), 0
        for message in messages:
            told += message["msg_type"] == "stream"
            if told == times:
                return messages
        raise AssertionError("the race ended early")

    rest = race_until_it_told(2)
    kernel.interrupt()
    errors = []
    for message in rest:
        if message["msg_type"] == "error":
            errors.append(message["content"]["ename"])
    assert errors == ["KeyboardInterrupt"]
    # The same lab goes on, without the set-up.
    text = said(kernel, "print([(m.name, m.whole_rtts, m.proof['holds']) for m in race(lab, ['tcp', 'tls1.3'])])")
    assert text == "[('tcp', 2, True), ('tls1.3', 3, True)]\n"

    # Killed in the middle, with servers, captures and a stubborn program in the lab.
    said(kernel, "program = lab.server.start(['sh', '-c', 'trap \"\" TERM HUP; setsid sleep 1000 & sleep 1000'])")
    race_until_it_told(1)
    assert len(processes_of(f"{tmp_path}/labkit-")) >= 4
    assert [name for name in os.listdir(tmp_path) if name.startswith("labkit-")] != []
    os.kill(kernel.pid, signal.SIGKILL)
    nothing_left()
