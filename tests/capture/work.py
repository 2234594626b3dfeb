"""Whether the work for each byte or packet stays the same, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 3
LEAST_S = 0.002  # a clock of the processor's time has steps


def check_work(few: Callable[[], object], many: Callable[[], object], *, most: int = 24) -> None:
    """Eight times as much takes about eight times the processor's time, not 64. For tests marked ``alone``.

    Other processes do not count, and both are looked at side by side, on a machine that may be busy.

    Args:
        few: reads something; what it needs is imported and made before.
        many: reads eight times as much.
        most: how many times as long it may take.
    """
    times = [(cpu_s(few), cpu_s(many)) for _ in range(ROUNDS)]
    assert min(all_s for _, all_s in times) < most * max(min(few_s for few_s, _ in times), LEAST_S)


def cpu_s(read: Callable[[], object]) -> float:
    """The processor's time that it takes, seconds."""
    begin_s = time.process_time()
    read()
    return time.process_time() - begin_s
