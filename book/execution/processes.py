"""What the section "Process and thread" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import functools
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.apart import by_value, watched
from book.execution.workers import process
from book.learn.judging import serving
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.queues.run_queue import ThreadTimes

TEXT = Text(__file__)

WAIT_S = 5.0

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
        wall_s, threads = watched(0.4, _hidden_workloads)
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
        return pickle.loads, (by_value(self.job),)


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


@recorded
def trace(lab: Lab) -> Captured:
    """Two requests over one connection: one that computes, and one that does not."""
    with lab.capture() as capture, serving(lab.server, _serve, port=8080), lab.client:
        with socket.create_connection(("server.lab", 8080), timeout=WAIT_S) as connection:
            for target in ("compute", "health"):
                connection.sendall(f"GET /{target} HTTP/1.1\r\nHost: server.lab\r\n\r\n".encode())
                connection.recv(4096)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request that computes and one that does not, over one connection of this lab, with four blanks."""
    capture = trace(lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "from", "whose kernel answers a SYN? The program need not even be running"),
            Blank("GET /compute", "round trip", "the client waits for the SYN-ACK before it asks"),
            Blank("GET /health", "round trip", "it follows the first response; computing adds time and no round trip"),
            Blank(
                "GET /health", "seq", "it follows the first request, and the payload column says how long that one is"
            ),
        ],
        tier=capture.tier,
    )
