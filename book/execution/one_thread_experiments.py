"""What the section "One thread does all" measures with: requests behind a slow one, a loop's turns, its lag."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from book import recorded
from book.execution.clients import PORT, connect
from book.execution.kernel import unacknowledged, unread
from book.execution.patterns import slower
from book.execution.workload import FAST, SLOW
from labkit.capture.captured import Captured
from labkit.handshakes.phases import connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.queues.history import History
from labkit.waiting import wait_until

SLOW_S = 0.6  # a slow request's wait in these runs

Answers = Sequence[tuple[bool, float, float]]


def answers_in(capture: Captured) -> list[tuple[bool, float, float]]:
    """Of each request: whether it is a slow one, when it reached the server, when its response left, in seconds.

    The first request's arrival is 0. Connections without a request are left out.
    """
    found = []
    for group in connections(capture.messages):
        asked = [packet for packet in group if packet.from_client and packet.payload]
        answered = [packet for packet in group if not packet.from_client and packet.payload]
        if asked and answered:
            came_ns = asked[0].transit.received_ns or asked[0].transit.time_ns
            slow = any("GET /slow" in message.name for message in asked[0].messages)
            found.append((slow, came_ns, answered[0].transit.time_ns))
    start_ns = min((came_ns for _, came_ns, _ in found), default=0)
    return [(slow, (came - start_ns) / 1e9, (left - start_ns) / 1e9) for slow, came, left in sorted(found)]


def sooner(answered: Answers) -> int:
    """How many of the fast requests had their response before the slow one."""
    (slow_s,) = (left_s for slow, _, left_s in answered if slow)
    return sum(left_s < slow_s for slow, _, left_s in answered if not slow)


@recorded
def behind_a_slow_one(
    lab: Lab, newcomers: int, serve: Callable[..., object], *args: Any
) -> tuple[list[tuple[bool, float, float]], History, str, list[tuple[str, str]]]:
    """Eight clients are connected. One asks for something slow, and then the seven others for something fast.

    Args:
        lab: the lab.
        newcomers: so many connect while the slow request is in work.
        serve, args: the server.

    Returns:
        what became of the requests, as ``answers_in`` tells it; the queues; what the server printed; the steps that
        asyncio reported as slow, with their seconds.
    """
    with (
        contextlib.ExitStack() as opened,
        ServerProcess(lab.server, PORT, slower, SLOW_S, serve, *args) as server,
        lab.watch(PORT, connections=True) as watch,
        lab.capture() as capture,
    ):
        slow, *fast = connect(lab, 8, opened)
        lab.wire.settle()  # the last ACKs have arrived
        wait_until(lambda: _accepted(watch.so_far()) == 8)
        slow.sendall(SLOW)
        wait_until(lambda: not unacknowledged(slow) and not unread(watch.so_far()))
        for client in fast:
            client.sendall(FAST)
        connect(lab, newcomers, opened)
        for client in (slow, *fast):
            client.recv(4096)
        wait_until(lambda: not watch.so_far().accept_queue.last)
        said = server.stdout
        watch.close()
    reports = [line for line in server.stderr.splitlines() if line.startswith("Executing")]
    steps = [(line.partition(" wait_for")[0], line.rpartition("took ")[2]) for line in reports]
    return answers_in(capture), watch.history, said, steps


def _accepted(seen: History) -> int:
    return len(seen.connections) - seen.accept_queue.last


def lags_in(said: str) -> list[tuple[float, float]]:
    """What ``note_lag`` printed: when its timer was due, and how late it was, in seconds."""
    lines = (line.split() for line in said.splitlines())
    return [(float(due), float(late)) for due, late in lines]


def worst_lag(run: tuple[list[tuple[bool, float, float]], History, str, list[tuple[str, str]]]) -> float:
    """How late the timer was at most, in a run of ``behind_a_slow_one``, seconds."""
    return max(late for _, late in lags_in(run[2]))
