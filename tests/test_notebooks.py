"""The notebooks as impatient people use them: cells run twice, interrupted, and kernels killed.

Kernels are driven by jupyter_client, as nbval does: nbclient waits in vain for the comm messages of ipywidgets.
That each notebook passes from top to bottom, with the outputs it has stored, is nbval's part.
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
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*/*.ipynb"))
RACE = ROOT / "notebooks/03_https/08_the_race.ipynb"
CELL_S = 180


def code_cells(notebook: Path) -> list[tuple[str, bool]]:
    """The source of each, and whether its output is compared."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), "nbval-check-output" in cell["metadata"].get("tags", ())) for cell in cells]


class Kernel:
    """A kernel in a folder of its own for temporary files."""

    def __init__(self, temporary: Path, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env={**os.environ, "TMPDIR": str(temporary)}, cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=CELL_S)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def outputs(self, request: str) -> Iterator[dict[str, Any]]:
        """What a cell puts out, until the kernel is idle again."""
        deadline = time.monotonic() + CELL_S
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the cell did not end in {CELL_S} s") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
            yield message

    def run(self, source: str) -> str:
        """Run a cell to its end; its text. An error, a warning or anything else on stderr fails."""
        text = []
        for message in self.outputs(self.client.execute(source)):
            content = message["content"]
            if message["msg_type"] == "error":
                raise AssertionError(f"{source}\n\n" + "\n".join(content["traceback"]))
            if message["msg_type"] == "stream":
                assert content["name"] == "stdout", f"{source}\n\n{content['text']}"
                text.append(content["text"])
        return "".join(text)

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture
def kernel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path, getattr(request, "param", RACE).parent)
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kernel", "notebook"), [(n, n) for n in NOTEBOOKS], indirect=["kernel"], ids=[n.stem for n in NOTEBOOKS]
)
def test_every_cell_twice_and_then_from_the_top(
    kernel: Kernel, notebook: Path, tmp_path: Path, nothing_left: Callable[[], None]
) -> None:
    """In one kernel. What a marked cell prints is the same each time.

    From the top only as far as the first marked cell: by then the set-up has taken the place of all that was there.
    """
    cells = code_cells(notebook)
    first = []
    for source, compared in cells:
        first.append(kernel.run(source))
        again = kernel.run(source)
        if compared:
            assert again == first[-1]
    for (source, compared), before in zip(cells, first, strict=True):
        text = kernel.run(source)
        if compared:
            assert text == before
            break
    # Every set-up has closed the lab of the one before it; the last lab ends with the kernel.
    assert len([name for name in os.listdir(tmp_path) if name.startswith("labkit-")]) <= 1
    os.kill(kernel.pid, signal.SIGKILL)
    nothing_left()


LONG_RACE = "race(lab, runs=30, progress=lambda each: print(each.name, flush=True))"


def test_the_race_interrupted_and_then_killed(
    kernel: Kernel,
    tmp_path: Path,
    nothing_left: Callable[[], None],
    processes_of: Callable[[object], dict[int, str]],
) -> None:
    setup, _ = code_cells(RACE)[0]
    kernel.run(setup)

    def race_until_it_told(times: int) -> Iterator[dict[str, Any]]:
        outputs = kernel.outputs(kernel.client.execute(LONG_RACE))
        told = 0
        for message in outputs:
            told += message["msg_type"] == "stream"
            if told == times:
                return outputs
        raise AssertionError("the race ended early")

    outputs = race_until_it_told(2)
    kernel.manager.interrupt_kernel()
    errors = []
    for message in outputs:
        if message["msg_type"] == "error":
            errors.append(message["content"]["ename"])
    assert errors == ["KeyboardInterrupt"]
    # The same lab goes on, without the set-up.
    said = kernel.run("print([(m.name, m.whole_rtts, m.proof['holds']) for m in race(lab, ['tcp', 'tls1.3'])])")
    assert said == "[('tcp', 2, True), ('tls1.3', 3, True)]\n"

    # Killed in the middle, with servers, captures and a stubborn program in the lab.
    kernel.run("program = lab.server.start(['sh', '-c', 'trap \"\" TERM HUP; setsid sleep 1000 & sleep 1000'])")
    race_until_it_told(1)
    assert len(processes_of(f"{tmp_path}/labkit-")) >= 4
    assert [name for name in os.listdir(tmp_path) if name.startswith("labkit-")] != []
    os.kill(kernel.pid, signal.SIGKILL)
    nothing_left()
