"""Experiments in processes of their own: nothing else competes for the GIL, and its end ends all that it started."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from book.learn.live import key_of
from labkit.errors import LabError, MeasurementFailed, NotAvailableHere, NotReady
from labkit.lab import Lab
from labkit.load.thread_names import name_threads
from labkit.network.environment import COLOURED
from labkit.queues.run_queue import ThreadTimes, between, state, threads_of, tree
from labkit.recorded import keep, recall, recording_to

SOURCES = ("/proc/self/schedstat", "/proc/self/smaps_rollup")  # what a run on this machine reads
START_S = 20.0
WAIT_S = 5.0
LOOK_S = 0.02  # a look that took longer does not tell when it was
PROGRAM = """
from labkit.network.namespaces import end_with_parent
end_with_parent()
import pickle, sys
function, args = pickle.load(sys.stdin.buffer)
function(*args)
"""


@dataclass(frozen=True)
class Seen:
    """What the threads of an experiment did between two looks.

    Attributes:
        name: of the experiment.
        threads: those that were watched, by name.
        wall_s: from the first look to the second, seconds.
        cores: CPU cores that they could be on.
        tier: of the lab, or when and where it was recorded.
    """

    name: str
    threads: tuple[ThreadTimes, ...]
    wall_s: float
    cores: int
    tier: str

    @property
    def running(self) -> float:
        """Cores that the threads had together, on average."""
        return sum(times.running_s for times in self.threads) / self.wall_s

    @property
    def waiting(self) -> float:
        """Threads that were in a run queue, on average."""
        return sum(times.waiting_s for times in self.threads) / self.wall_s


def cores() -> int:
    """The CPU cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def here() -> bool:
    """Whether this system tells what the experiments ask for: Linux does."""
    return all(Path(path).exists() for path in SOURCES)


def apart(lab: Lab, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own, with a GIL of its own.

    Args:
        lab: its name says for which section a run is recorded; one is asked for only where this machine cannot do it.
        function: whose result JSON can carry. What it starts ends with it.
        args: for the function; a recording's name can tell them, see ``recorded``.

    Returns:
        its result, here or as it was recorded.

    Raises:
        LabError: it failed; its last words are quoted. NotReady: it took too long.
        NotAvailableHere: this system does not tell, and the run was not recorded.
    """
    return _told(lab, key_of(function, lab, args), functools.partial(_result, function, *args))[0]


def observe(lab: Lab, name: str, function: Callable[..., object], *args: Any, seconds: float = 0.3) -> Seen:
    """Start workers in a process of its own, and watch from here what the scheduler says of them.

    Args:
        lab, args: as in ``apart``.
        name: of the experiment, in plots.
        function: starts threads or processes called "worker …", which never end by themselves, and returns.
        seconds: from the first look to the second.

    Returns:
        the workers; they have ended by then. Raises as ``apart`` does.
    """

    def look() -> dict[str, Any]:
        wall_s, threads = watched(seconds, function, *args)
        return {"wall_s": wall_s, "threads": threads, "cores": cores()}

    told, tier = _told(lab, key_of(function, lab, args), look)
    return Seen(name, tuple(ThreadTimes(**times) for times in told["threads"]), told["wall_s"], told["cores"], tier)


def on_hosts(lab: Lab, function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """Make a run that needs programs on this lab's hosts, or give the recorded one.

    Args:
        lab, args: as in ``apart``.
        function: takes the lab, too, before the arguments. JSON can carry its result.

    Returns:
        its result, and the tier it comes from.
    """
    return _told(lab, key_of(function, lab, args), functools.partial(function, lab, *args), lab.can("kernel"))


def _told(lab: Lab, key: str, make: Callable[[], Any], can: bool = True) -> tuple[Any, str]:
    """A value and the tier it comes from: made here where this system, or this lab, can; else a recorded one."""
    if not (here() and can):
        told = recall(key, tier=lab.tier)
        return told["value"], f"recorded, {told['kernel']}, {told['date']}"
    value = make()
    if (folder := recording_to()) is not None:
        kernel = f"{platform.system()} {platform.release()}"
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        keep(key, {"value": value, "kernel": kernel, "date": date}, folder)
    return value, lab.tier


@contextlib.contextmanager
def _started(function: Callable[..., object], *args: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that calls the function. It ends with the block, with all that it started, or with this process."""
    if not here():
        raise NotAvailableHere(
            f"this system does not tell what its scheduler and its memory do: there is no {' or no '.join(SOURCES)}"
        )
    parcel = by_value((_tell, (function, *args)))
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in COLOURED},
        start_new_session=True,
    )
    try:
        assert running.stdin is not None
        with contextlib.suppress(BrokenPipeError), running.stdin as stdin:
            stdin.write(parcel)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        for pipe in (running.stdout, running.stderr):
            assert pipe is not None
            pipe.close()


def by_value(value: Any) -> bytes:
    """Pickled so that whoever loads it need not import modules of the book, which takes long."""
    import cloudpickle

    import book

    cloudpickle.register_pickle_by_value(book)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        cloudpickle.unregister_pickle_by_value(book)


def _first_line(running: subprocess.Popen[bytes]) -> Any:
    """What the function returned. The pipe is read to its first line; children may still hold it open."""
    assert running.stdout is not None
    assert running.stderr is not None
    told, deadline = b"", time.monotonic() + START_S
    while not told.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([running.stdout], [], [], left_s)[0]:
            raise NotReady(f"the experiment told nothing within {START_S:g} s: is there a loop without an end?")
        data = os.read(running.stdout.fileno(), 65536)
        if not data:
            words = os.read(running.stderr.fileno(), 65536).decode("utf-8", "replace").strip()[-2000:]
            raise LabError(f"the experiment failed. It said:\n{words}" if words else "the experiment ended untold")
        told += data
    return json.loads(told)


def _result(function: Callable[..., Any], *args: Any) -> Any:
    with _started(function, *args) as running:
        return _first_line(running)


def watched(seconds: float, function: Callable[..., object], *args: Any) -> tuple[float, list[dict[str, Any]]]:
    """What the workers that a function starts do in so many seconds: how long it was, and ThreadTimes as data."""

    def start() -> None:
        function(*args)

    with _started(start) as running:
        _first_line(running)
        pids = tree(running.pid)
        _wait_for_names(running.pid, pids)
        first, began = _look(pids)
        time.sleep(seconds)
        last, ended = _look(pids)
        wall_s = ended - began
        workers = [_with_open_wait(times, wall_s) for times in between(first, last) if times.name.startswith("worker")]
    return wall_s, [times.as_data() for times in sorted(workers, key=_by_number)]


def _wait_for_names(pid: int, pids: Sequence[int]) -> None:
    """All that an experiment started are there when it has told; each calls itself by its name when it first runs."""
    deadline = time.monotonic() + START_S
    while True:
        threads = threads_of(pids)
        unnamed = threads[pid].name if pid in threads else ""
        if all(times.name != unnamed for times in threads.values() if times.tid != pid):
            return
        if time.monotonic() > deadline:
            raise NotReady(f"a worker did not begin within {START_S:g} s: is the machine busy? Run the cell again")
        time.sleep(0.002)


def _look(pids: Sequence[int]) -> tuple[dict[int, ThreadTimes], float]:
    """What some processes' threads have done, and when that was. Looks again where it was held up meanwhile."""
    deadline = time.monotonic() + WAIT_S
    while True:
        began = time.monotonic()
        threads = threads_of(pids)
        ended = time.monotonic()
        if ended - began < LOOK_S:
            return threads, (began + ended) / 2
        if ended > deadline:
            raise MeasurementFailed(f"looking took {ended - began:.2f} s, again and again: is the machine busy?")


def _with_open_wait(times: ThreadTimes, wall_s: float) -> ThreadTimes:
    """The kernel counts a wait when it is over. One that never slept and can run has waited whenever it did not run."""
    if times.voluntary or state(times.tid) != "R":
        return times
    return replace(times, waiting_s=max(times.waiting_s, wall_s - times.running_s))


def _by_number(times: ThreadTimes) -> tuple[int, str, int]:
    return len(times.name), times.name, times.tid


def _tell(function: Callable[..., Any], *args: Any) -> None:
    """In the process: call the function, tell what it returned, stay until somebody ends this."""
    name_threads()
    telling = os.dup(1)
    os.dup2(2, 1)  # what an experiment prints must not be taken for its result
    os.write(telling, json.dumps(function(*args)).encode() + b"\n")
    while True:
        signal.pause()
