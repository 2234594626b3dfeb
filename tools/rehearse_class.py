"""A class on this machine: as many kernels as learners, all running one notebook at the same time.

    .venv/bin/python tools/rehearse_class.py 20

It says how many passed, which cells failed and why, how long it took, and what memory and processor time the learners
took, with the helper processes of their labs. A learner passes when no cell raises and every cell that is marked
the tag nbval-check-output prints what is stored. The exit code is 1 when one did not.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

ROOT = Path(__file__).resolve().parent.parent
RACE = ROOT / "notebooks/03_https/08_the_race.ipynb"
TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
START_S = 180
SAMPLE_S = 2.0


@dataclass(frozen=True)
class Cell:
    """A code cell, with what it has to print: None where nothing is compared."""

    number: int
    source: str
    printed: str | None


@dataclass
class Learner:
    """A learner who works, and what came of it."""

    name: str
    pids: list[int]
    client: AsyncKernelClient
    took_s: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Memory:
    """What processes hold, in MiB. PSS divides what is shared among those who share it, so it can be added up."""

    pss: float
    rss: float


def read_cells(notebook: Path) -> list[Cell]:
    """The notebook's code cells."""
    cells = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            texts = ["".join(each["text"]) for each in cell["outputs"] if each["output_type"] == "stream"]
            checked = "nbval-check-output" in cell["metadata"].get("tags", ())
            cells.append(Cell(number, source, "".join(texts) if checked else None))
    return cells


def families(roots: Iterable[int]) -> dict[int, list[int]]:
    """Each of these processes with all its living descendants: those of a lab have the kernel as their ancestor."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = {}
    for root in roots:
        family = [root]
        for pid in family:  # grows while it is walked
            family += children.get(pid, [])
        found[root] = family
    return found


def memory(pids: Iterable[int]) -> Memory:
    """What these processes hold now."""
    pss = rss = 0.0
    for pid in pids:
        try:
            rss += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MIB
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        pss += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
    return Memory(pss, rss)


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of these processes and of those children of theirs that have ended."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks * TICKS_S


def everyone(learners: list[Learner]) -> list[int]:
    """All processes of these learners."""
    return [pid for family in families(pid for each in learners for pid in each.pids).values() for pid in family]


@asynccontextmanager
async def seat(name: str, folder: Path, with_server: bool) -> AsyncIterator[Learner]:
    """A kernel that is ready, and on request the JupyterLab that each learner has on a hub, which stands idle."""
    with tempfile.TemporaryDirectory(prefix=f"rehearsal-{name}-") as home:
        environment = {**os.environ, "LABKIT_HOME": home, "IPYTHONDIR": home, "JUPYTER_RUNTIME_DIR": home}
        server = None
        if with_server:
            command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
            server = subprocess.Popen(
                [*command, "--ServerApp.port=0", f"--ServerApp.root_dir={home}"],
                env={**environment, "JUPYTER_CONFIG_DIR": home},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        # Not over TCP: many kernels that look for free ports at once may find the same.
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{home}/kernel")
        try:
            await manager.start_kernel(env=environment, cwd=str(folder), stderr=subprocess.DEVNULL)
            client = manager.client()
            client.start_channels()
            await client.wait_for_ready(timeout=START_S)
            while server and not list(Path(home).glob("jpserver-*.json")):
                await asyncio.sleep(0.1)
            kernel = int(getattr(manager.provisioner, "pid"))  # noqa: B009 — a provisioner that starts processes has it
            yield Learner(name, [kernel, server.pid] if server else [kernel], client)
            client.stop_channels()
        finally:
            await manager.shutdown_kernel(now=True)
            await manager.cleanup_resources()
            if server:
                server.kill()
                server.wait()


async def run_cell(client: AsyncKernelClient, cell: Cell, deadline_s: float) -> str:
    """Run a cell to its end; why it failed, or ""."""
    request = client.execute(cell.source)
    end = time.monotonic() + deadline_s
    printed, failure = "", ""
    while True:
        try:
            message: dict[str, Any] = await client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
        except queue.Empty:
            return f"did not end in {deadline_s:.0f} s"
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            printed += content["text"]
        elif kind == "error":
            failure = f"{content['ename']}: {content['evalue']}"
        elif kind == "status" and content["execution_state"] == "idle":
            break
    if not failure and cell.printed is not None and printed != cell.printed:
        lines = difflib.unified_diff(cell.printed.splitlines(), printed.splitlines(), "stored", "printed", lineterm="")
        failure = "\n    ".join(["printed something else", *lines])
    return failure


async def work(learner: Learner, cells: list[Cell], deadline_s: float) -> None:
    """Run the notebook until a cell fails."""
    start = time.monotonic()
    for cell in cells:
        failure = await run_cell(learner.client, cell, deadline_s)
        if failure:
            learner.failure = f"cell {cell.number} ({cell.source.strip().splitlines()[-1]}): {failure}"
            break
    learner.took_s = time.monotonic() - start


async def watch(learners: list[Learner], seen: list[Memory]) -> None:
    """Look at the memory of all of them again and again."""
    while True:
        seen.append(await asyncio.to_thread(lambda: memory(everyone(learners))))
        await asyncio.sleep(SAMPLE_S)


async def rehearse(options: argparse.Namespace) -> dict[str, Any]:
    """The class: all kernels come up, all run at once, all stand idle for a while."""
    cells = read_cells(options.notebook)
    async with AsyncExitStack() as room:
        seats = (
            seat(str(number), options.notebook.parent, options.servers) for number in range(1, options.learners + 1)
        )
        learners = await asyncio.gather(*map(room.enter_async_context, seats))
        before_s, before = cpu_s(everyone(learners)), memory(everyone(learners))
        seen: list[Memory] = []
        watcher = asyncio.create_task(watch(learners, seen))
        await asyncio.gather(*(work(each, cells, options.cell_seconds) for each in learners))
        watcher.cancel()
        worked_s, after = cpu_s(everyone(learners)), memory(everyone(learners))
        started = time.monotonic()
        await asyncio.sleep(options.idle_seconds)
        idle = (cpu_s(everyone(learners)) - worked_s) / (time.monotonic() - started)
        failures = {each.name: each.failure for each in learners if each.failure}
        return {
            "notebook": options.notebook.name,
            "learners": len(learners),
            "passed": len(learners) - len(failures),
            "failures": failures,
            "wall_s": max(each.took_s for each in learners),
            "cpu_s": worked_s - before_s,
            "idle_cpu_percent": 100 * idle,
            "processes": len(everyone(learners)),
            "before_mib": asdict(before),
            "peak_mib": {
                "pss": max(each.pss for each in [*seen, after]),
                "rss": max(each.rss for each in [*seen, after]),
            },
            "after_mib": asdict(after),
        }


def tell(told: dict[str, Any]) -> str:
    """The result in words."""
    count = told["learners"]
    lines = [
        f"{told['notebook']}: {told['passed']} of {count} passed",
        *(f"  learner {name}, {failure}" for name, failure in told["failures"].items()),
        f"time:      {told['wall_s']:.1f} s until the last one was through",
        f"processor: {told['cpu_s']:.1f} s in all, {told['cpu_s'] / count:.1f} s each; "
        f"idle afterwards {told['idle_cpu_percent'] / count:.1f} % of a core each",
    ]
    for when in ("before", "peak", "after"):
        held = told[f"{when}_mib"]
        each = f"each {held['pss'] / count:.0f} MiB PSS, {held['rss'] / count:.0f} MiB RSS"
        lines.append(f"memory:    {when} {held['pss']:.0f} MiB PSS in all, {each}")
    return "\n".join(lines)


def main() -> int:
    """Rehearse, and tell."""
    parser = argparse.ArgumentParser(description="as many kernels as learners run one notebook at the same time")
    parser.add_argument("learners", type=int, help="how many")
    parser.add_argument("--notebook", type=Path, default=RACE, help="which notebook (the race)")
    parser.add_argument("--servers", action="store_true", help="a JupyterLab for each learner, too, as on a hub")
    parser.add_argument("--cell-seconds", type=float, default=300, help="how long a cell may take (300)")
    parser.add_argument("--idle-seconds", type=float, default=10, help="how long to watch them idle (10)")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    told = asyncio.run(rehearse(options))
    print(json.dumps(told, indent=2) if options.json else tell(told))
    return 1 if told["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
