"""What is measured in the section "Process and thread": memory, the time to an answer, a crowd of requests."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from book.execution.workers import Start, process, thread
from labkit.errors import LabError, NotReady
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess

START_S = 20.0
PORT = 8080


def memory(name: str) -> float:
    """Of this process, in MB: the lines of /proc/self/smaps_rollup that begin with a name."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def one_more(start: Start, number: int) -> tuple[float, float]:
    """Start so many threads or processes that then rest. Of each: microseconds, and MB of its own."""
    reading, writing = os.pipe()

    def rest() -> None:
        os.write(writing, b"%12.3f" % memory("Private_"))
        time.sleep(60)

    before, began = memory("Private_"), time.perf_counter()
    for _ in range(number):
        start("resting", rest)
    told = b""
    while len(told) < 12 * number:
        told += os.read(reading, 4096)
    each_us = (time.perf_counter() - began) / number * 1e6
    if start is thread:
        return each_us, (memory("Private_") - before) / number
    return each_us, statistics.mean(map(float, told.split()))


def ask_it(serve: Callable[..., object], *args: Any) -> list[float]:
    """Milliseconds from each of ten questions to its answer, asked of a process that serves one end of a socket pair.

    Args:
        serve: called in the process, with a connection and args.
        args: for it.
    """
    here, there = socket.socketpair()
    process("answers", serve, there, *args)
    times_ms = []
    for _ in range(11):
        time.sleep(0.015)  # longer than the GIL takes to come round
        asked = time.perf_counter()
        here.sendall(b"?")
        here.recv(1)
        times_ms.append((time.perf_counter() - asked) * 1e3)
    return times_ms[1:]  # the first one also waited for the start


def crowd(lab: Lab, serve: Callable[..., object], *args: Any) -> tuple[list[float], list[float]]:
    """20 requests that compute, at once, and one health check after the other meanwhile.

    Returns:
        milliseconds to each answer, and to those of the health checks.
    """
    with ServerProcess(lab.server, PORT, serve, *args), lab.client:
        runs = [ask_at_once((lab.server.ip, PORT), 20) for _ in range(3)]
    # What else this machine does can only delay an answer: each is the soonest of three.
    computed = [min(times) for times in zip(*(sorted(run) for run, _ in runs), strict=True)]
    return computed, max((healthy for _, healthy in runs), key=len)


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
