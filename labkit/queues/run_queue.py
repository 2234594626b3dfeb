"""Where threads wait for a CPU: what the scheduler says of each thread of some processes.

Sources: Documentation/scheduler/sched-stats.rst ("/proc/<pid>/schedstat"), proc_pid_status(5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit import checks
from labkit.errors import NotAvailableHere

PROC = Path("/proc")


@dataclass(frozen=True)
class ThreadTimes:
    """One thread, since it began, or of a difference, in between.

    Attributes:
        name: as the thread is called; the kernel keeps 15 bytes of it.
        pid: of its process.
        tid: of the thread; that of a process's first thread is the process's.
        running_s: on a CPU, seconds.
        waiting_s: could have run and waited in a CPU's run queue, seconds.
        voluntary: how often it gave up the CPU because it had to wait for something.
        involuntary: how often the scheduler took the CPU from it.
    """

    name: str
    pid: int
    tid: int
    running_s: float
    waiting_s: float
    voluntary: int
    involuntary: int

    def since(self, earlier: ThreadTimes | None) -> ThreadTimes:
        """What was between two looks at this thread; with None since it began."""
        if earlier is None:
            return self
        return replace(
            self,
            running_s=self.running_s - earlier.running_s,
            waiting_s=self.waiting_s - earlier.waiting_s,
            voluntary=self.voluntary - earlier.voluntary,
            involuntary=self.involuntary - earlier.involuntary,
        )

    def as_data(self) -> dict[str, Any]:
        """Plain data that JSON takes."""
        return asdict(self)


def threads_of(pids: Iterable[int]) -> dict[int, ThreadTimes]:
    """The threads of some processes, now, by thread id. Those of a process that has ended are left out.

    Args:
        pids: as this process sees them, such as ``os.getpid()``.

    Raises:
        NotAvailableHere: a system that does not tell, such as macOS.
    """
    if not (PROC / "self/schedstat").exists():
        raise NotAvailableHere(
            "this system does not tell how long its threads wait for a CPU: there is no /proc/self/schedstat"
        )
    found = {}
    for pid in [checks.whole("pids", pid, 0) for pid in pids]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found[int(task.name)] = _read(pid, task)
    return found


def between(earlier: dict[int, ThreadTimes], later: dict[int, ThreadTimes]) -> tuple[ThreadTimes, ...]:
    """What each thread of the later look did since the earlier one."""
    return tuple(times.since(earlier.get(tid)) for tid, times in later.items())


def tree(pid: int) -> Sequence[int]:
    """A process and all that descend from it, now. [] where it has ended."""
    import psutil

    checks.whole("pid", pid, 0)
    try:
        first = psutil.Process(pid)
        return [pid, *(child.pid for child in first.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def state(pid: int) -> str:
    """Of a process, as proc_pid_stat(5) has it: "R" can run, "S" sleeps, "T" is stopped; "" where it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _read(pid: int, task: Path) -> ThreadTimes:
    running_ns, waiting_ns, _ = map(int, (task / "schedstat").read_text().split())
    switches = {}
    for line in (task / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.endswith("voluntary_ctxt_switches"):
            switches[name] = int(value)
    return ThreadTimes(
        name=(task / "comm").read_text().rstrip("\n"),
        pid=pid,
        tid=int(task.name),
        running_s=running_ns / 1e9,
        waiting_s=waiting_ns / 1e9,
        voluntary=switches["voluntary_ctxt_switches"],
        involuntary=switches["nonvoluntary_ctxt_switches"],
    )
