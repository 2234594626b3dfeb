"""A pool's workers are where they were started; what is given to it inside another ``with host:`` would be elsewhere.

So it is refused there. ``ThreadPoolExecutor`` needs no such care: each call brings its own host
(labkit.network.sockets).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from labkit.errors import OutsideTheLab
from labkit.network.engine import OnHost
from labkit.network.inside import being, current_host
from labkit.network.patches import LateLayers

_places: weakref.WeakKeyDictionary[Any, OnHost | None] = weakref.WeakKeyDictionary()


def _place_of(pool: Any) -> OnHost | None:
    """Where a pool's workers are; the host of this block for one that has none yet, and None for no host."""
    if pool not in _places:
        _places[pool] = None if getattr(pool, "_processes", None) else current_host()
    return _places[pool]


def _check(pool: Any, place: OnHost | None) -> None:
    host = current_host()
    if host is not None and host is not place:
        where = "on no host" if place is None else f"on {place.name}"
        raise OutsideTheLab(
            f"this {type(pool).__name__} has its workers {where}, and not on {host.name}: "
            f"make one inside `with lab.{host.name}:`, where its workers start"
        )


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of an executor, which starts its workers when work comes."""

    def submit(self: Any, fn: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        place = _place_of(self)
        _check(self, place)
        with being(() if place is None else (place,)):
            return original(self, fn, *arguments, **options)

    return submit


def _init(original: Callable[..., None]) -> Callable[..., None]:
    """Of multiprocessing's pools, which start their workers at once."""

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        _places[self] = current_host()
        original(self, *arguments, **options)

    return __init__


def _check_running(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def check_running(self: Any) -> None:
        original(self)
        _check(self, _places.get(self))

    return check_running


LATE: LateLayers = {
    "concurrent.futures.process": [("ProcessPoolExecutor", "submit", _submit)],
    "multiprocessing.pool": [("Pool", "__init__", _init), ("Pool", "_check_running", _check_running)],
}
