"""Which host's block this thread or task is in: a context variable, so threads and tasks don't mix, and blocks nest."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from labkit.network.engine import OnHost

# The hosts of the blocks this context is in, innermost last.
entered: contextvars.ContextVar[tuple[OnHost, ...]] = contextvars.ContextVar("labkit_blocks", default=())


def current_host() -> OnHost | None:
    """The host of the innermost ``with host:`` block that this thread or task is in."""
    blocks = entered.get()
    return blocks[-1] if blocks else None


def enter(host: OnHost) -> None:
    entered.set((*entered.get(), host))


def leave() -> None:
    entered.set(entered.get()[:-1])


@contextlib.contextmanager
def being(blocks: tuple[OnHost, ...]) -> Iterator[None]:
    """Be in other blocks for the length of this one; in none with ()."""
    token = entered.set(blocks)
    try:
        yield
    finally:
        entered.reset(token)
