"""A lab without delay, and a look at what a test leaves behind."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=0) as lab:
        for host in lab.hosts.values():
            host.sysctl["net.ipv4.tcp_fastopen"] = 3
        _ = lab.authority
        yield lab


@pytest.fixture
def leftovers() -> Callable[[], set[str]]:
    """What is there now and was not there before: threads and descriptors."""

    def now() -> set[str]:
        gc.collect()  # an exception that a test caught holds frames, and they hold sockets
        descriptors = {f"{fd.name}: {os.readlink(fd)}" for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
        own = {line for line in descriptors if "/proc/" not in line}
        return own | {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}

    gc.collect()  # what earlier tests left to the collector is not this one's
    before = now()
    return lambda: now() - before


@pytest.fixture
def connect(lab: Lab) -> Iterator[Callable[[int], socket.socket]]:
    """``connect(port)`` is a plain TCP connection from the client to the server."""
    opened: list[socket.socket] = []

    def connect(port: int) -> socket.socket:
        with lab.client:
            opened.append(socket.create_connection((lab.server.ip, port), timeout=10))
        return opened[-1]

    yield connect
    for sock in opened:
        sock.close()
