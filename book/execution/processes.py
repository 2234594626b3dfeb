"""What the section "Process and thread" asks, and what runs its experiments in processes of their own."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import pickle
import platform
import select
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.patches import Patch

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.judging import serving
from labkit.capture.captured import Captured
from labkit.errors import LabError, MeasurementFailed, NotAvailableHere, NotReady
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.workers import name_threads, process
from labkit.network.process import COLOURED
from labkit.network.tiers import origin
from labkit.plots import Picture, style
from labkit.queues.run_queue import ThreadTimes, between, state, threads_of, tree
from labkit.recorded import recall

TEXT = Text(__file__)

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

# Experiments, each in a process of its own: nothing else competes for its GIL, and its end ends all that it started.


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


def apart(lab: Lab, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own, with a GIL of its own.

    Args:
        lab: asked only where this machine cannot do it.
        name: of the experiment; a recorded run is kept under it.
        function: whose result JSON can carry. What it starts ends with it.
        args: for the function.

    Returns:
        its result, here or as it was recorded.

    Raises:
        LabError: it failed; its last words are quoted. NotReady: it took too long.
        NotAvailableHere: this system does not tell, and the run was not recorded.
    """
    return _told(lab, name, functools.partial(_result, function, *args))[0]


def observe(lab: Lab, name: str, function: Callable[..., object], *args: Any, seconds: float = 0.3) -> Seen:
    """Start workers in a process of its own, and watch from here what the scheduler says of them.

    Args:
        lab, name, args: as in ``apart``.
        function: starts threads or processes called "worker …", which never end by themselves, and returns.
        seconds: from the first look to the second.

    Returns:
        the workers; they have ended by then. Raises as ``apart`` does.
    """

    def look() -> dict[str, Any]:
        wall_s, threads = _watched(seconds, function, *args)
        return {"wall_s": wall_s, "threads": threads, "cores": cores()}

    told, tier = _told(lab, name, look)
    return Seen(name, tuple(ThreadTimes(**times) for times in told["threads"]), told["wall_s"], told["cores"], tier)


def on_hosts(lab: Lab, name: str, function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """Make a run that needs programs on this lab's hosts, or give the recorded one.

    Args:
        lab, name, args: as in ``apart``.
        function: whose result JSON can carry.

    Returns:
        its result, and the tier it comes from.
    """
    return _told(lab, name, functools.partial(function, *args), hosts=True)


def _told(lab: Lab, name: str, make: Callable[[], Any], hosts: bool = False) -> tuple[Any, str]:
    """A value and the tier it comes from: made here where this system, or this lab, can; else a recorded one."""
    key = f"execution.processes/{name}"
    if not here() or (hosts and not lab.can("kernel")):
        told = recall(key, tier=lab.tier)
        return told["value"], f"recorded, {told['kernel']}, {told['date']}"

    def run() -> dict[str, Any]:
        kernel = f"{platform.system()} {platform.release()}"
        return {"value": make(), "kernel": kernel, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}

    return (lab.live_or_recorded(key, run) if lab.can("kernel") else run())["value"], lab.tier


@contextlib.contextmanager
def _started(function: Callable[..., object], *args: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that calls the function. It ends with the block, with all that it started, or with this process."""
    if not here():
        raise NotAvailableHere(
            f"this system does not tell what its scheduler and its memory do: there is no {' or no '.join(SOURCES)}"
        )
    parcel = _by_value((_tell, (function, *args)))
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


def _by_value(value: Any) -> bytes:
    """Pickled so that whoever loads it need not import this module, which takes long."""
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


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


def _watched(seconds: float, function: Callable[..., object], *args: Any) -> tuple[float, list[dict[str, Any]]]:
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


# The client of the server that breaks


def ask_at_once(address: tuple[str, int], number: int) -> tuple[list[float], list[float]]:
    """Requests for /compute at the same moment, and meanwhile one for /health after the other, on open connections.

    Returns:
        milliseconds from the start to each answer of /compute; milliseconds that each of the health checks took.
    """
    with contextlib.ExitStack() as open_until_the_end:
        selector = open_until_the_end.enter_context(selectors.DefaultSelector())
        opened = []
        for _ in range(number + 1):
            connection = open_until_the_end.enter_context(socket.create_connection(address, timeout=START_S))
            _get(connection, "/health")  # answered, so the connection has been accepted and its thread started
            connection.recv(4096)
            selector.register(connection, selectors.EVENT_READ)
            opened.append(connection)
        health = opened.pop()
        began = asked = time.perf_counter()
        for connection in opened:
            _get(connection, "/compute")
        _get(health, "/health")
        computed: list[float] = []
        healthy: list[float] = []
        while len(computed) < number:
            ready = selector.select(START_S)
            if not ready:
                raise NotReady(f"no answer within {START_S:g} s: run the cell again")
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if not key.fileobj.recv(4096):
                    raise LabError("the server closed a connection with a request on it: run the cell again")
                now = time.perf_counter()
                if key.fileobj is health:
                    healthy.append((now - asked) * 1e3)
                    asked = now
                    _get(health, "/health")
                else:
                    computed.append((now - began) * 1e3)
    return computed, healthy


def _get(connection: socket.socket, target: str) -> None:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: server.lab\r\n\r\n".encode())


# Pictures


def plot_shares(groups: Sequence[Seen], title: str) -> Picture:
    """Stacked bars, one for each thread: the shares of the time in which it ran, queued for a CPU, and slept.

    Args:
        groups: experiments, from top to bottom.
        title: the finding.
    """
    count = sum(len(seen.threads) for seen in groups)
    figure, axes = style.new_figure(1.3 + 0.26 * count + 0.3 * len(groups))
    labels, places, words, y = [], [], [], 0.0
    for seen in groups:
        axes.text(0, y, seen.name, fontsize=style.SIZE, color=style.INK, weight="bold", va="center")
        y += 1
        for times in seen.threads:
            running, waiting = times.running_s / seen.wall_s, times.waiting_s / seen.wall_s
            if times.voluntary == 0 and running + waiting > 0:
                waiting = 1 - running  # it never slept; the kernel counts a wait when it is over, one is still open
            sleeping = max(0.0, 1 - running - waiting)
            left = 0.0
            for share, (colour, hatch, _) in zip((running, waiting, sleeping), STATES, strict=True):
                axes.barh(y, share * 100, left=left * 100, color=colour, hatch=hatch, edgecolor="white", height=0.8)
                left += share
            labels.append(times.name)
            places.append(y)
            y += 1
        number = len(seen.threads) or 1
        words.append(
            f"{seen.name}: each {seen.running / number:.0%} running and {seen.waiting / number:.0%} waiting for a CPU"
        )
        y += 0.4
    axes.set_yticks(places, labels)
    axes.set_ylim(y - 0.8, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time, %", fontsize=style.SIZE)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white") for colour, hatch, _ in STATES]
    figure.legend(
        handles,
        [label for _, _, label in STATES],
        loc="outside upper right",
        ncols=3,
        fontsize=style.SIZE,
        frameon=False,
    )
    style.set_title(axes, title)
    style.add_note(figure, f"From /proc/…/schedstat. {origin(groups[0].tier, 'Measured')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


STATES = (
    (style.BLUE, "", "running"),
    (style.ORANGE, "//", "waiting for a CPU"),
    ("#d9d9d9", "", "sleeping"),
)


def plot_answers(rows: Mapping[str, Sequence[float]], interval_ms: float, title: str, tier: str) -> Picture:
    """Latencies on a logarithmic scale, a row of dots for each experiment, its median marked.

    Args:
        rows: name of an experiment → milliseconds of its answers.
        interval_ms: the switch interval, drawn as a line.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(1.5 + 0.42 * len(rows))
    words = []
    for y, (name, times_ms) in enumerate(rows.items()):
        middle = statistics.median(times_ms)
        axes.plot(times_ms, [y] * len(times_ms), "o", color=style.SKY, markersize=5, alpha=0.5)
        axes.plot(middle, y, "D", color=style.VERMILION, markersize=7)
        words.append(f"{name}: median {middle:.2g} ms")
    axes.axvline(interval_ms, color=style.GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"time to the answer, ms (dashed: {interval_ms:g} ms; diamond: median)", fontsize=style.SIZE)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_crowd(crowds: Mapping[str, Sequence[float]], title: str, tier: str) -> Picture:
    """How many requests had their answer by when, a line for each server.

    Args:
        crowds: name of a server → milliseconds from the requests to each answer.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(3.2)
    words = []
    for (name, times_ms), colour, line in zip(
        crowds.items(), (style.VERMILION, style.BLUE, style.GREEN), ("-", "--", ":"), strict=False
    ):
        shares = [0.0, *(time_ms / max(times_ms) * 100 for time_ms in sorted(times_ms))]
        axes.step(shares, range(len(shares)), where="post", color=colour, linestyle=line, linewidth=2, label=name)
        words.append(f"{name}: mean {statistics.mean(times_ms):.0f} ms, last {max(times_ms):.0f} ms")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, None)
    axes.set_xlabel("time since the requests, % of the time to the last answer", fontsize=style.SIZE)
    axes.set_ylabel("answers", fontsize=style.SIZE)
    axes.legend(loc="upper left", fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


# Exercise 1


def _hidden_workloads() -> None:
    """Three workers: one of four that share a core, one that often pauses for a moment, one that mostly sleeps."""

    def compute() -> None:
        while True:
            sum(range(1000))

    def compute_and_pause() -> None:
        while True:
            end = time.thread_time() + 0.0004
            while time.thread_time() < end:
                sum(range(100))
            time.sleep(0.00002)  # some 0.1 ms with the timer's slack

    def wait() -> None:
        while True:
            time.sleep(0.05)

    process("worker 2", compute_and_pause)
    process("worker 3", wait)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for number in range(3):
        process(f"crowd {number}", compute)
    process("worker 1", compute)


TRIES = 4
CLEAR = 0.65  # of the time: no doubt that it is more than half


def _hidden_times() -> tuple[float, list[ThreadTimes]]:
    """What the three workers did, and for how long they were watched. Not every moment of a busy machine shows it."""
    for _ in range(TRIES):
        wall_s, threads = _watched(0.4, _hidden_workloads)
        crowded, pausing, _ = found = [ThreadTimes(**{**data, "name": "hidden"}) for data in threads]
        able = [(times.running_s + times.waiting_s) / wall_s for times in found]
        as_meant = min(able[:2]) > CLEAR and able[2] < 1 - CLEAR and crowded.running_s < 0.4 * wall_s
        if as_meant and pausing.voluntary > 2 * pausing.involuntary and not crowded.voluntary:
            return wall_s, found
    shares = ", ".join(f"{share:.0%}" for share in able)
    raise MeasurementFailed(f"the workers were able to run for {shares} of the time: is the machine busy?")


def _judge_kind_of(kind_of: Callable[..., Any]) -> str:
    wall_s, threads = _hidden_times()
    for times, expected in zip(threads, ("computes", "computes", "waits"), strict=True):
        said = kind_of(times, wall_s)
        if said == expected:
            continue
        seen = (
            f"a thread that ran for {times.running_s / wall_s:.0%} of the time, waited in the run queue for "
            f"{times.waiting_s / wall_s:.0%}, with {times.voluntary} voluntary and {times.involuntary} involuntary "
            f"context switches: you said {said!r:.40}"
        )
        if said not in ("computes", "waits"):
            raise Wrong(f"{seen}. Return 'computes' or 'waits'")
        if expected == "waits":
            raise Wrong(f"{seen}. It was asleep nearly all the time, so more CPU would not help it")
        if times.voluntary > times.involuntary:
            raise Wrong(f"{seen}. Its pauses are many and short: how often it paused does not say for how long")
        raise Wrong(f"{seen}. It wanted a CPU all the time and was not given one")
    return "Right for one that shares its core with three others, for one that pauses often, and for one that sleeps."


KIND_OF = TEXT.exercise("kind_of", _judge_kind_of)


# Exercise 2

JOBS, AT_ONCE, JOB_CPU_S = 9, 3, 0.04
COMPANY_S = 5.0  # for workers to start, on a busy machine, too
CROWD_S = 1.0  # for one too many to start


def _job(folder: str, number: int) -> dict[str, Any]:
    """Needs so much of a CPU. Says in which process it ran, and when.

    The first jobs wait for each other, so that it does not depend on the machine how many are under way at once.
    """
    began = time.monotonic()
    opened, mine = os.path.join(folder, "opened"), f"{number} {time.monotonic_ns()}"

    def under_way() -> int:
        names = os.listdir(folder)
        return sum(name.startswith("began") for name in names) - sum(name.startswith("ended") for name in names)

    def look_until(many: int, deadline: float) -> None:
        while not os.path.exists(opened) and under_way() < many and time.monotonic() < deadline:
            time.sleep(0.005)

    with open(os.path.join(folder, f"began {mine}"), "x"):
        look_until(AT_ONCE, began + COMPANY_S)
        if under_way() > 1:
            look_until(AT_ONCE + 1, time.monotonic() + CROWD_S)
    with open(opened, "a"):
        end = time.process_time() + JOB_CPU_S
    while time.process_time() < end:
        sum(range(1000))
    with open(os.path.join(folder, f"ended {mine}"), "x"):
        return {"number": number, "process": os.getpid(), "began": began, "ended": time.monotonic()}


class _Light:
    """A job that is pickled by value: where workers are no forks (Python 3.14), they need not import this module."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self.job = job

    def __call__(self) -> Any:
        return self.job()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return pickle.loads, (_by_value(self.job),)


def _judge_run_all(run_all: Callable[..., Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _judge_jobs(run_all, [_Light(functools.partial(_job, folder, number)) for number in range(JOBS)])


def _judge_jobs(run_all: Callable[..., Any], jobs: list[_Light]) -> str:
    results = run_all(jobs, AT_ONCE)
    try:
        numbers = [result["number"] for result in results]
        used = {result["process"] for result in results}
        most = max(
            sum(other["began"] <= one["began"] < other["ended"] for other in results if other is not one) + 1
            for one in results
        )
    except (TypeError, KeyError, ValueError):
        raise Wrong(f"it returned {results!r:.60}: give the list of what the jobs returned") from None
    if numbers != list(range(JOBS)):
        raise Wrong(f"the results are those of jobs {numbers}: give them in the order of the jobs, each once")
    if len(used) == 1 and most > 1:
        raise Wrong("all jobs ran in one process: their threads share one GIL, and so one core")
    if most == 1:
        raise Wrong(f"one job ran after the other, with {AT_ONCE} cores to run on")
    if most > AT_ONCE:
        raise Wrong(
            f"{most} jobs were under way at once, on {AT_ONCE} cores: they share them in slices, and all are late"
        )
    return f"{JOBS} jobs in {len(used)} processes, never more than {most} at once."


RUN_ALL = TEXT.exercise("run_all", _judge_run_all)

EXERCISES = (KIND_OF, RUN_ALL)

QUIZ = TEXT.quiz


# The trace


def _serve(listener: socket.socket) -> None:
    """Answer the requests of one connection: /compute after some work on the CPU, others at once."""
    connection, _ = listener.accept()
    with connection:
        while request := connection.recv(4096):
            if request.startswith(b"GET /compute"):
                end = time.thread_time() + 0.03
                while time.thread_time() < end:
                    sum(range(1000))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")


def _two_requests(lab: Lab) -> Captured:
    with lab.capture() as capture, serving(lab.server, _serve, port=8080), lab.client:
        with socket.create_connection(("server.lab", 8080), timeout=WAIT_S) as connection:
            for target in ("compute", "health"):
                connection.sendall(f"GET /{target} HTTP/1.1\r\nHost: server.lab\r\n\r\n".encode())
                connection.recv(4096)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request that computes and one that does not, over one connection of this lab, with four blanks."""
    capture = lab.live_or_recorded("execution.processes/trace", _two_requests, lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return HiddenTrace(
        "execution.processes.trace",
        packets,
        [
            Blank("SYN-ACK", "from", "whose kernel answers a SYN? The program need not even be running"),
            Blank("GET /compute", "round trip", "the client waits for the SYN-ACK before it asks"),
            Blank("GET /health", "round trip", "it follows the first response; computing adds time and no round trip"),
            Blank(
                "GET /health", "seq", "it follows the first request, and the payload column says how long that one is"
            ),
        ],
        hints=(
            "A round trip begins when something sent in the one before has been answered.",
            "A response that comes 30 ms late because the server computed is sent in the round trip of its request.",
            "Sequence numbers count bytes, and the first byte of data is number 1.",
        ),
        explanation=(
            "The packets say that the first response came late, and not why. Computing, waiting in a run queue, for "
            "the GIL or for a database: all look the same on the wire. For that you ask the server's scheduler."
        ),
        tier=capture.tier,
    )
