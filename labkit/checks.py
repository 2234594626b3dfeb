"""One way to look at arguments: each function returns the value, or raises InvalidValue that quotes it.

Every check takes the argument's name and its value first, so that a message reads as the call does: ``port=80.5: give
a whole number from 1 to 65535``. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from labkit.errors import InvalidValue

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

MOST_QUOTED = 200  # characters of a value


def quoted(value: object) -> str:
    """A value as a message shows it: not longer than a line or two."""
    words = repr(value)
    return words if len(words) <= MOST_QUOTED else f"{words[:MOST_QUOTED]}…"


def wrong(name: str, value: object, wanted: str) -> InvalidValue:
    """The error for a value that cannot be: ``raise wrong("port", port, "give …")``."""
    return InvalidValue(f"{name}={quoted(value)}: {wanted}")


def optional(check: Callable[..., T], name: str, value: object, *bounds: Any, **more: Any) -> T | None:
    """None, or what a check says of anything else: ``optional(number, "rate", rate, 0.1, 1e6)``."""
    return None if value is None else check(name, value, *bounds, **more)


def number(name: str, value: object, low: float, high: float = sys.float_info.max, *, unit: str = "") -> float:
    """A finite number between two bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        allowed = f"from {low:g} to {high:g}" if high < sys.float_info.max else f"of {low:g} or more"
        raise wrong(name, value, f"give a number {allowed}{' ' + unit if unit else ''}")
    return float(value)


def whole(name: str, value: object, low: int | None = None, high: int | None = None, *, unit: str = "") -> int:
    """A whole number between two bounds."""
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
        bounds = "" if low is None else f" from {low} to {high}" if high is not None else f" of {low} or more"
        raise wrong(name, value, f"give a whole number{bounds}{' ' + unit if unit else ''}")
    return value  # type: ignore[return-value]


def port(name: str, value: object, low: int = 1) -> int:
    """A port. `low` is 0 where the kernel may choose one."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 65535:
        bounds = "from 1 to 65535" if low else "from 0 (a free one) to 65535"
        raise wrong(name, value, f"give a whole number {bounds}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that only counts as such."""
    if not isinstance(value, bool):
        raise wrong(name, value, "give True or False")
    return value


def text(name: str, value: object, example: str = "") -> str:
    """A text without null characters, which no name, path or argument of the kernel can hold."""
    if not isinstance(value, str) or "\0" in value:
        such_as = f", for instance {example!r}" if example else ""
        raise wrong(name, value, f"give a text without null characters{such_as}")
    return value


def texts(name: str, values: object, example: object) -> list[str]:
    """Several texts: a list or the like, and not one text, which is a list of its letters."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise wrong(name, values, f"give a list of texts, for instance {example!r}")
    found = list(values)
    if not all(isinstance(each, str) and "\0" not in each for each in found):
        raise wrong(name, values, f"give a list of texts without null characters, for instance {example!r}")
    return found


def environment(name: str, value: object) -> dict[str, str]:
    """Environment variables: a dictionary from names to values, both texts."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, "give a dictionary from names to values, for instance {'LANG': 'C'}")
    for key, content in value.items():
        if not isinstance(key, str) or not key or {"=", "\0"} & set(key):
            raise wrong(name, value, f"{key!r} is no name of a variable, which is a text without '='")
        if not isinstance(content, str) or "\0" in content:
            raise wrong(name, value, f"the value of {key!r} is no text without null characters")
    return dict(value)


def octets(name: str, value: object, example: bytes = b"GET / HTTP/1.1") -> bytes:
    """Bytes."""
    if not isinstance(value, bytes):
        raise wrong(name, value, f"give bytes, for instance {example!r}")
    return value


def path(name: str, value: object) -> Path:
    """A path: a text, or what os.fspath makes one of."""
    from pathlib import Path  # the lab's own processes, which look at numbers only, start quicker without

    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value) or not str(value):
        raise wrong(name, value, "give a path as a text or a pathlib.Path")
    return Path(value)


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """One of a few words."""
    words = list(allowed)
    if not isinstance(value, str) or value not in words:
        raise wrong(name, value, f"choose from {', '.join(map(repr, words))}")
    return value


def function(name: str, value: Callable[..., T]) -> Callable[..., T]:
    """Something to be called."""
    if not callable(value):
        raise wrong(name, value, "give a function")
    return value


def instance(name: str, value: object, kind: type[T], wanted: str) -> T:
    """A value of one of labkit's own kinds.

    Args:
        wanted: what to give instead: "a host of the lab, for instance lab.client".
    """
    if not isinstance(value, kind):
        raise wrong(name, value, f"give {wanted}")
    return value


def options(given: Mapping[str, object], known: Iterable[str], what: str) -> None:
    """Keyword arguments that are handed on: an unknown one is told with those that there are.

    Args:
        what: takes them: "a rule".
    """
    names = list(known)
    for name in given:
        if name not in names:
            raise wrong(name, given[name], f"{what} has {', '.join(names)}")
