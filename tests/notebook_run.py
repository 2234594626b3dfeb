"""A pytest plugin: nbval's run of a notebook, made to prove what each notebook needs proven on the tier that is here.

nbval runs the cells in their order and compares those with the tag nbval-check-output with what is stored. Here each
is run twice before the next one, as an impatient learner does, and compared both times. The last item of a notebook
runs the set-up again, kills the kernel, and looks at what is left. So one kernel, and two runs of each cell, prove all.

``--once`` runs each cell once and leaves the last item out: for who writes a notebook. tests/test_tiers.py runs
notebooks once, too, with a kernel on another tier.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError
from processes import processes_of

from labkit.waiting import wait_until

pytest_plugins = ["nbval.plugin"]

START_S = 60
# The notebooks that a machine with fixed sysctls changes: run on such a machine, too. Every other one is watched, and
# fails where it asks for a kernel setting.
SYSCTLS = {
    "03_https/05_tfo_tls13": "a server allows Fast Open by a setting",
    "03_https/06_tls13_0rtt": "a setting turns tail loss probes off",
    "03_https/08_the_race": "three of the variants use Fast Open",
    "04_execution/02_accept_queues": "settings are the limits of the queues",
    "04_execution/03_buffers": "buffers have the sizes that the lab sets, and there the machine's own",
    "04_execution/09_sharding": "a setting moves connections that wait from one listener to another",
}
# What of labkit asks for a setting, or for whether there is one. Run in the kernel before the first cell.
WATCH = """
def _watch():
    import sys
    from labkit.lab import Lab
    from labkit.network.host import Sysctl
    from labkit.servers.threaded import ThreadedServer

    seen = sys.labkit_sysctls = set()
    can, write, start = Lab.can, Sysctl.__setitem__, ThreadedServer.__init__

    def watched_can(lab, need):
        if need == "sysctls":
            seen.add("can('sysctls')")
        return can(lab, need)

    def watched_write(sysctl, name, value):
        seen.add(name)
        write(sysctl, name, value)

    def watched_start(server, *args, fast_open=False, **kwargs):
        if fast_open:
            seen.add("fast_open")
        start(server, *args, fast_open=fast_open, **kwargs)

    Lab.can, Sysctl.__setitem__, ThreadedServer.__init__ = watched_can, watched_write, watched_start
_watch()
del _watch
"""


class Kernel(RunningKernel):  # type: ignore[misc]
    """A kernel of this interpreter.

    Args:
        folder: where it runs.
        temporary: its folder for temporary files, in which each open lab has one.
        prefix: words before its command, such as those that take its rights away.
        variables: of its environment, on top of this process's.
    """

    def __init__(self, folder: Path, temporary: Path, prefix: Iterable[str] = (), **variables: str) -> None:
        self.km = KernelManager()
        words = [*prefix, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.km.kernel_cmd = words
        self.km.kernel_spec.argv = words
        environment = {**os.environ, "TMPDIR": str(temporary), **variables}
        self.km.start_kernel(cwd=str(folder), env=environment, stderr=subprocess.DEVNULL)
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=START_S)
        self._ensure_iopub_up()

    @property
    def pid(self) -> int:
        return int(self.km.provisioner.pid)

    def end(self) -> None:
        self.kc.stop_channels()
        self.km.shutdown_kernel(now=True)
        self.km.cleanup_resources()


class Cell(IPyNbCell):  # type: ignore[misc]
    """A cell of a notebook as a test."""

    def runtest(self) -> None:
        self.run_once()
        if not self.parent.once:
            self.run_once()

    def run_once(self) -> None:
        """Run it, compare it if it is tagged; an error fails, and so does whatever is on stderr, such as a warning."""
        super().runtest()
        said = [each.text for each in self.test_outputs if each.output_type == "stream" and each.name != "stdout"]
        if said:
            self.raise_cell_error("The cell wrote to stderr", "".join(said))


class WhatIsLeft(pytest.Item):
    """After the last cell: the first ones once more, as far as the first that is compared; then a killed kernel."""

    parent: Notebook

    def runtest(self) -> None:
        notebook = self.parent
        for cell in notebook.cells:
            cell.run_once()  # by the first that is compared the set-up has taken the place of all that was there
            if cell.options["check"]:
                break
        # Every set-up has closed the lab of the one before it; the last lab ends with the kernel.
        labs = [name for name in os.listdir(notebook.temporary) if name.startswith("labkit-")]
        assert len(labs) <= 1, labs
        seen = notebook.ask("import sys; print(*sorted(sys.labkit_sysctls), sep=', ')")
        name = f"{notebook.path.parent.name}/{notebook.path.stem}"
        assert not seen or name in SYSCTLS, f"it asks for {seen}: add it to SYSCTLS in tests/notebook_run.py"
        os.kill(notebook.kernel.pid, signal.SIGKILL)
        wait_until(lambda: not any(n.startswith("labkit-") for n in os.listdir(notebook.temporary)), what="removing")
        wait_until(lambda: processes_of(f"{notebook.temporary}/labkit-") == {}, what="the end of a lab's processes")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, NbCellError):
            return told(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.parent.name}: {self.name}"


class Notebook(IPyNbFile):  # type: ignore[misc]
    """A notebook's cells as tests, in one kernel.

    Attributes:
        once: run each cell once, and no more than the cells.
        prefix, variables: of its kernel.
    """

    once = False
    prefix: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012
    kernel: Kernel

    def collect(self) -> Iterator[pytest.Item]:
        self.cells = [
            Cell.from_parent(self, name=cell.name, cell_num=cell.cell_num, cell=cell.cell, options=cell.options)
            for cell in super().collect()
        ]
        yield from self.cells
        if not self.once:
            yield WhatIsLeft.from_parent(self, name="what is left")

    def setup(self) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="kernel-"))
        self.kernel = Kernel(self.path.parent, self.temporary, self.prefix, **self.variables)
        if not self.once:
            self.ask(WATCH)

    def teardown(self) -> None:
        if self.kernel is not None:
            self.kernel.end()
            shutil.rmtree(self.temporary, ignore_errors=True)

    def ask(self, source: str) -> str:
        """Run a line of ours in the kernel; what it prints."""
        text: list[str] = []
        done = self.kernel.kc.execute_interactive(
            source, store_history=False, timeout=START_S, output_hook=lambda each: text.append(_text(each))
        )
        assert done["content"]["status"] == "ok", done["content"]
        return "".join(text).strip()

    def run(self) -> list[Cell]:
        """All cells, each once, in one test: the cells, with their outputs. The first that fails fails the test."""
        self.once = True
        cells = list(self.collect())
        self.setup()
        try:
            for cell in cells:
                try:
                    cell.runtest()
                except NbCellError as exc:
                    pytest.fail(told(exc), pytrace=False)
        finally:
            self.teardown()
        return cells


def told(error: NbCellError) -> str:
    return f"cell {error.cell_num}: {error}\n\n{error.source}\n\n{error.inner_traceback}"


def _text(message: dict[str, Any]) -> str:
    assert message["msg_type"] != "error", message["content"]
    return str(message["content"].get("text", "")) if message["msg_type"] == "stream" else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("the book's notebooks")
    group.addoption("--once", action="store_true", help="run each cell of a notebook once, and not twice")
    group.addoption("--full", action="store_true", help="run each notebook on every tier and as every user")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(parent: pytest.Collector) -> Generator[None, Any, Any]:
    """What nbval found as notebooks of ours."""
    found = yield
    return [_ours(each, parent) if isinstance(each, IPyNbFile) else each for each in found]


def _ours(theirs: IPyNbFile, parent: pytest.Collector) -> Notebook:
    notebook: Notebook = Notebook.from_parent(parent, path=theirs.path)
    notebook.once = parent.config.option.once
    return notebook
