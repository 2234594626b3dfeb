"""A server under load, watched; and the servers of the execution patterns."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest

from book.execution import patterns
from book.execution.trial import Trial, trial
from book.execution.workers import thread
from book.execution.workload import FAST, MIX, RESPONSE, SLOW
from labkit import InvalidValue, Lab
from labkit.load.server_process import ServerProcess, listening

# Each pattern, how many sockets it listens with, and the names of what serves.
PATTERNS: list[tuple[Callable[..., Any], tuple[Any, ...], int, str]] = [
    (patterns.thread_per_connection, (), 1, "reader"),
    (patterns.one_thread, (), 1, "one_thread"),
    (patterns.many_readers, (), 1, "reader"),
    (patterns.many_readers, (thread,), 1, "reader"),
    (patterns.balanced_messages, (), 1, "worker"),
    (patterns.balanced_messages, (thread,), 1, "worker"),
    (patterns.many_acceptors, (), 1, "acceptor"),
    (patterns.many_acceptors, (thread,), 1, "acceptor"),
    (patterns.sharding, (), 4, "shard"),
    (patterns.sharding, (thread,), 4, "shard"),
]


@pytest.mark.parametrize(("pattern", "args", "listeners", "who"), PATTERNS)
def test_a_pattern_under_load(
    lab: Lab, pattern: Callable[..., Any], args: tuple[Any, ...], listeners: int, who: str
) -> None:
    found = trial(lab.server, pattern, *args, listeners=listeners, clients=8, seconds=0.4, warmup_s=0, requests=MIX)
    assert found.load.errors == {}
    assert found.load.completed > 0
    assert len(found.history.listeners) == listeners
    assert any(times.name.startswith(who) and times.running_s > 0 for times in found.threads)
    assert found.observed_s > found.load.duration_s
    again = Trial.of_data(json.loads(json.dumps(found.as_data())), "recorded, Linux")
    assert again.tier == "recorded, Linux"
    assert again.load.completed == found.load.completed
    assert again.threads == found.threads
    assert listening(lab.server, 8080) == 0


def connected(lab: Lab, count: int) -> list[socket.socket]:
    with lab.client:
        return [socket.create_connection(("server.lab", 8080), timeout=10) for _ in range(count)]


def test_in_one_thread_everybody_waits_for_the_slow_one(lab: Lab) -> None:
    """epoll(7) tells sockets in the order in which they became ready, and the slow request comes first."""
    with ServerProcess(lab.server, 8080, patterns.one_thread):
        clients = connected(lab, 4)
        for client in clients:
            client.sendall(FAST)
            assert client.recv(4096) == RESPONSE
        clients[0].sendall(SLOW)
        for client in clients[1:]:
            client.sendall(FAST)
        first, _, _ = select.select(clients, [], [], 10)
        assert clients[0] in first
        for client in clients:
            assert client.recv(4096) == RESPONSE
            client.close()


def test_clients_that_reset_do_no_harm(lab: Lab) -> None:
    for pattern, args, listeners, _ in PATTERNS:
        with ServerProcess(lab.server, 8080, pattern, *args, listeners=listeners):
            for client in connected(lab, 4):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(SLOW)
                client.close()
            for client in connected(lab, 8):
                client.sendall(FAST)
                assert client.recv(4096) == RESPONSE, pattern
                client.close()


def test_values_that_cannot_be_leave_nothing(lab: Lab, processes_of: Callable[[object], dict[int, str]]) -> None:
    before = set(processes_of(lab.directory))
    with pytest.raises(InvalidValue, match="clients"):
        trial(lab.server, patterns.one_thread, clients=0)
    with pytest.raises(InvalidValue, match="port"):
        trial(lab.server, patterns.one_thread, port=0)
    assert set(processes_of(lab.directory)) == before
