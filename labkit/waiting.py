"""Waiting for what no event announces: look again and again, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from labkit.errors import MeasurementFailed

WAIT_S = 10.0
LOOK_S = 0.005


def happens(condition: Callable[[], object], seconds: float = WAIT_S) -> bool:
    """Look again and again whether a condition holds.

    Args:
        condition: called without arguments; it holds where the result is true.
        seconds: the deadline.

    Returns:
        whether it held before the deadline.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def wait_until(condition: Callable[[], object], seconds: float = WAIT_S, what: str = "it") -> None:
    """Wait until a condition holds.

    Args:
        condition: called without arguments, again and again.
        seconds: the deadline.
        what: is waited for, for the message.

    Raises:
        MeasurementFailed: it did not hold in so many seconds.
    """
    if not happens(condition, seconds):
        raise MeasurementFailed(f"{what} did not happen in {seconds:g} s: is the machine too busy? Try again")
