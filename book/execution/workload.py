"""The one small workload that all execution patterns of the book are given, so that they can be compared.

Nine requests of ten only compute for a moment; the tenth also waits, as for a slow query. The wait is a sleep: nothing
is queried, and no CPU is used. Two requests more are for the sections that look at who waits for whom: their response
names the worker, and one of them waits for a database, which is the notebook.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

FAST = b"GET /fast HTTP/1.1\r\nHost: server.lab\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: server.lab\r\n\r\n"
MIX = [(FAST, 9), (SLOW, 1)]
WHO = b"GET /who HTTP/1.1\r\nHost: server.lab\r\n\r\n"
REPORT = b"GET /report HTTP/1.1\r\nHost: server.lab\r\n\r\n"
DATABASE = "database.lab", 5432
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
ROUNDS = 4000  # some 200 µs
WAIT_S = 0.02


def work(request: bytes) -> bytes:
    """Do what a request asks for.

    Args:
        request: FAST, SLOW, WHO or REPORT, or what begins like one of them.

    Returns:
        the response's bytes.
    """
    if request.startswith((WHO[:9], REPORT[:12])):
        return _tell_who(request)
    compute()
    if request.startswith(b"GET /slow"):
        time.sleep(WAIT_S)
    return RESPONSE


def compute(rounds: int = ROUNDS) -> int:
    """A fixed number of steps in Python, all of them with the GIL held: a linear congruential generator."""
    value = 1
    for _ in range(rounds):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def _tell_who(request: bytes) -> bytes:
    """The response names the request, and the thread that worked on it. A report takes as long as the database does."""
    target = request.split()[1]
    if target == b"/report":
        with socket.create_connection(DATABASE) as database:
            database.recv(1)
    name = Path("/proc/thread-self/comm").read_bytes().strip()
    return b"HTTP/1.1 200 for %s\r\nContent-Length: %d\r\n\r\n%s" % (target, len(name), name)
