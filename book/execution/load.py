"""The load that the chapter puts on its servers, so that they can be compared."""

from __future__ import annotations

from typing import Any

from book import recorded
from book.execution.patterns import WORKERS
from book.execution.trial import Trial, trial
from book.execution.workload import FAST, MIX, SLOW
from labkit.lab import Lab

CLIENTS = 16
SECONDS = 0.6
BRIEF_S = 0.3  # of many in a row
LISTENERS = {"sharding": WORKERS}  # where a server opens more than one


@recorded
def under_load(lab: Lab, name: str, serve: Any, *args: Any) -> Trial:
    """A server under the load of all sections: 16 clients, and MIX, of which each tenth request is slow.

    Args:
        lab: the lab. Server and clients run on its server, whose loopback is no limit.
        name: what the server is called in plots.
        serve: the server function, called with its address and args.
        args: what a recording's name can tell, see ``recorded``.
    """
    return _trial(lab, name, serve, args, requests=MIX, clients=CLIENTS, seconds=SECONDS)


@recorded
def with_slow(lab: Lab, slow_percent: int, clients: int, name: str, serve: Any, *args: Any) -> Trial:
    """A server under a load of which so many percent are slow, asked by so many clients.

    Args:
        lab, name, serve, args: as for ``under_load``.
        slow_percent: share of the slow requests; the others are fast.
        clients: each has one connection, and asks again as soon as it has its response.
    """
    return _trial(lab, name, serve, args, requests=_mix(slow_percent), clients=clients, seconds=SECONDS)


@recorded
def without_warm_up(lab: Lab, slow_percent: int, clients: int, name: str, serve: Any, *args: Any) -> Trial:
    """As ``with_slow``, briefly, and from the first request on, so that none is left out of throughput and latency.

    Args:
        lab, slow_percent, clients, name, serve, args: as for ``with_slow``.
    """
    requests = _mix(slow_percent)
    return _trial(lab, name, serve, args, requests=requests, clients=clients, seconds=BRIEF_S, warmup_s=0)


def _trial(lab: Lab, name: str, serve: Any, args: tuple[Any, ...], **load: Any) -> Trial:
    return trial(lab.server, serve, *args, name=name, listeners=LISTENERS.get(serve.__name__, 1), **load)


def _mix(slow_percent: int) -> list[tuple[bytes, int]]:
    return [(request, share) for request, share in ((FAST, 100 - slow_percent), (SLOW, slow_percent)) if share]
