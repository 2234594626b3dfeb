"""Steps, and histories put together from samples."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from labkit.queues import diag
from labkit.queues.history import Steps, build, total

ABOUT = {"host": "server", "port": 80, "counters": {}, "tier": "kernel"}


def sample(at: int, looks: int, syn: int, listeners: dict[str, list[int]], **clients: list[int]) -> dict[str, object]:
    queues = {"syn_queue": syn, "listeners": listeners, "connections": clients}
    return {"at": at, "looks": looks, "cpu_s": 0.0, **queues}


def test_steps_hold_until_the_next() -> None:
    steps = Steps((0.0, 1.0, 2.5), (4, 7, 1))
    assert [steps.at(moment) for moment in (-1, 0, 0.9, 1, 2.4, 2.5, 99)] == [0, 4, 4, 7, 7, 1, 1]
    assert (steps.peak, steps.last) == (7, 1)
    assert (Steps().peak, Steps().last, Steps().at(1)) == (0, 0, 0)


def test_the_sum_of_steps_is_the_sum_at_every_moment() -> None:
    rng = random.Random(4)
    parts = []
    for _ in range(4):
        times = sorted(rng.sample(range(100), 20))
        parts.append(Steps(tuple(map(float, times)), tuple(rng.randrange(5) for _ in times)))
    summed = total(parts)
    for moment in range(-1, 101):
        assert summed.at(moment) == sum(part.at(moment) for part in parts)
    assert all(a != b for a, b in zip(summed.values, summed.values[1:], strict=False))
    assert total([]) == Steps()


def test_what_is_gone_has_nothing_from_then_on() -> None:
    samples = [
        sample(1_000_000_000, 1, 0, {"5": [0, 16]}),
        sample(1_500_000_000, 40, 2, {"5": [1, 16]}, a=[10, 0, 3, 10, 900, 64]),
        sample(2_000_000_000, 90, 0, {"6": [0, 8]}),
    ]
    history = build(samples, 3_000_000_000, **ABOUT)
    assert history.listeners[5].accept_queue == Steps((0.0, 0.5, 1.0), (0, 1, 0))
    assert history.listeners[5].limit == Steps((0.0, 1.0), (16, 0))
    assert history.limit == Steps((0.0, 1.0), (16, 8))
    assert history.connections["a"].unacknowledged == Steps((0.5, 1.0), (3, 0))
    assert (history.syn_queue.peak, history.looks, history.duration_s, history.rate_hz) == (2, 90, 2.0, 45.0)


def message(kind: int, body: bytes) -> bytes:
    size = 16 + len(body)
    return struct.pack("=IHHII", size, kind, 0, 1, 0) + body + bytes(-size % 4)


def test_an_answer_is_read_to_its_end() -> None:
    entry = (
        struct.pack("=BBBB", socket.AF_INET, 10, 0, 0) + b"\x00\x50\x00\x00" + socket.inet_aton("192.0.2.2") + bytes(28)
        + struct.pack("=IIIIIIII", 0, 0, 0, 0, 3, 7, 0, 4711)
    )  # fmt: skip
    data = message(20, entry) + message(diag.NLMSG_DONE, bytes(4))
    found, end = diag.entries(data)
    assert end is None
    assert found is not None
    assert (found.local, found.peer, found.receive_queue, found.send_queue, found.inode) == (
        "192.0.2.2:80", "0.0.0.0:0", 3, 7, 4711,
    )  # fmt: skip
    assert (found.rtt_us, found.cwnd, found.unsent, found.send_window) == (0, 0, 0, 0)


def test_the_kernels_refusal_is_raised() -> None:
    with pytest.raises(PermissionError, match="sock_diag"):
        list(diag.entries(message(diag.NLMSG_ERROR, struct.pack("=i", -13) + bytes(16))))
