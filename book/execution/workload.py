"""The one small workload that all execution patterns of the book are given, so that they can be compared.

Nine requests of ten only compute for a moment; the tenth also waits, as for a slow query. The wait is a sleep: nothing
is queried, and no CPU is used.
"""

from __future__ import annotations

import time

FAST = b"GET /fast HTTP/1.1\r\nHost: server.lab\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: server.lab\r\n\r\n"
MIX = [(FAST, 9), (SLOW, 1)]
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
ROUNDS = 4000  # some 200 µs
WAIT_S = 0.02


def work(request: bytes) -> bytes:
    """Do what a request asks for.

    Args:
        request: FAST or SLOW, or what begins like one of them.

    Returns:
        the response's bytes.
    """
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
