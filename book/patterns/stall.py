"""What the section "Synchronous and asynchronous workloads" measures with: a stall, and processes that die."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from book import recorded
from book.execution.apart import PROGRAM, by_value
from book.execution.kernel import unacknowledged, unread
from book.execution.one_thread_experiments import Answers, answers_in
from labkit.errors import LabError, MeasurementFailed
from labkit.lab import Lab
from labkit.queues.history import History, total
from labkit.waiting import wait_until

PORT = 80
EVERY_S = 0.04  # from one fan to the next
END_S = 20.0
SLOW, SCORE = (b"GET %s HTTP/1.1\r\nHost: server.lab\r\n\r\n" % path for path in (b"/slow", b"/score"))


@recorded
def behind_a_report(lab: Lab, fans: int, serve: Callable[..., Any], *args: Any) -> tuple[Answers, History, float]:
    """One client asks for a report, and while that is in work fans ask for the score, one each 40 ms.

    The first half of the fans is connected already, the others connect when they ask.

    Args:
        lab: the lab.
        fans: so many.
        serve, args: ``serve(lab, *args)`` gives the server, on port 80.

    Returns:
        what became of the requests, as ``answers_in`` tells it; the queues; when the report's request came, on the
        clock of the queues.
    """
    with contextlib.ExitStack() as opened:
        opened.enter_context(serve(lab, *args))
        watch = opened.enter_context(lab.watch(PORT, connections=True))
        capture = opened.enter_context(lab.capture())

        def client() -> socket.socket:
            with lab.client:
                return opened.enter_context(socket.create_connection(("server.lab", PORT), timeout=10))

        slow, *known = (client() for _ in range(1 + fans // 2))
        lab.wire.settle()
        slow.sendall(SLOW)
        wait_until(lambda: not unacknowledged(slow) and not unread(watch.so_far()))
        begun, asked = time.monotonic(), []
        for number in range(fans):
            time.sleep(max(0.0, begun + number * EVERY_S - time.monotonic()))
            fan = known[number] if number < len(known) else client()
            fan.sendall(SCORE)
            asked.append(fan)
        for each in (slow, *asked):
            each.recv(4096)
        lab.wire.settle()
        watch.close()
        capture.close()
        came_ns = [
            packet.transit.received_ns or packet.transit.time_ns
            for packet in capture.messages
            if packet.from_client and any("GET /slow" in message.name for message in packet.messages)
        ]
        return answers_in(capture), watch.history, (came_ns[0] - watch.history.started_ns) / 1e9


def unread_over_time(history: History, from_s: float) -> tuple[list[float], list[int]]:
    """Bytes in all receive queues of the port, and since when, seconds after a moment."""
    steps = total([connection.receive_queue for connection in history.connections.values()])
    return [time_s - from_s for time_s in steps.times_s], list(steps.values)


def in_a_process(function: Callable[..., object], *args: Any) -> int | str:
    """Call a function in a process of its own, and wait for its end. What it prints is lost.

    Returns:
        its exit status, or the name of the signal that ended it.

    Raises:
        LabError: it raised something. MeasurementFailed: it did not end in time.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM],
            input=by_value((function, args)),
            capture_output=True,
            timeout=END_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise MeasurementFailed(f"the process did not end in {END_S:g} s: is the machine busy?") from exc
    if ended.returncode > 0:
        raise LabError(f"the process failed. It said:\n{ended.stderr.decode('utf-8', 'replace')[-1500:]}")
    return signal.Signals(-ended.returncode).name if ended.returncode else 0


def timed(program: str, *modes: str, rounds: int) -> dict[str, list[float]]:
    """Run a program in a fresh interpreter for each mode, in turn, so many rounds. It prints one number.

    Returns:
        the numbers by mode; a mode in which the program fails is left out.
    """
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode in list(found):
            try:
                found[mode].append(float(told(program, mode)))
            except ValueError:
                del found[mode]
    return found


def told(program: str, mode: str) -> str:
    """What a program prints in a fresh interpreter, or the last line of its complaint. It gets the mode as argument."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", program, mode], capture_output=True, text=True, timeout=END_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise MeasurementFailed(f"the program did not end in {END_S:g} s: is the machine busy?") from exc
    if ended.returncode:
        return "failed: " + (ended.stderr.strip().splitlines() or ["without a word"])[-1] + "\n"
    return ended.stdout
