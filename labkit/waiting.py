"""What there is to do on a machine that may be busy: wait with a deadline, run again what a pause made longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from labkit.errors import MeasurementFailed

T = TypeVar("T")

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


def fewest(run: Callable[[], T], count: Callable[[T], Any], enough: Any = None, times: int = 4) -> T:
    """Run it again where that may bring less: a machine that is held up adds round trips and copies, and takes none.

    Args:
        run: one run, from the beginning.
        count: what a run has of that: a number, or several in a tuple.
        enough: as many as there must be. With these or less, no further run is made; without, none after the least
            has come twice.
        times: so many runs at most.

    Returns:
        the run with the least.
    """
    found: list[tuple[Any, T]] = []
    while len(found) < times:
        result = run()
        found.append((count(result), result))
        counts = [counted for counted, _ in found]
        if counts.count(min(counts)) == 2 if enough is None else min(counts) <= enough:
            break
    return min(found, key=lambda each: each[0])[1]
