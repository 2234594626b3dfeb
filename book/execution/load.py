"""The load that the chapter puts on its servers, so that they can be compared."""

from __future__ import annotations

from typing import Any

from book import recorded
from book.execution.workload import FAST, MIX, SLOW
from labkit.lab import Lab
from labkit.load.trial import Trial, trial

CLIENTS = 16
SECONDS = 0.6


@recorded
def under_load(lab: Lab, name: str, serve: Any, *args: Any) -> Trial:
    """A server under the load of all sections: 16 clients, and MIX, of which each tenth request is slow.

    Args:
        lab: the lab. Server and clients run on its server, whose loopback is no limit.
        name: what the server is called in plots.
        serve: the server function, called with its address and args.
        args: what a recording's name can tell, see ``recorded``.
    """
    return trial(lab.server, serve, *args, name=name, requests=MIX, clients=CLIENTS, seconds=SECONDS)


@recorded
def with_slow(lab: Lab, slow_percent: int, clients: int, name: str, serve: Any, *args: Any) -> Trial:
    """A server under a load of which so many percent are slow, asked by so many clients.

    Args:
        lab, name, serve, args: as for ``under_load``.
        slow_percent: share of the slow requests; the others are fast.
        clients: each has one connection, and asks again as soon as it has its response.
    """
    mix = [(request, share) for request, share in ((FAST, 100 - slow_percent), (SLOW, slow_percent)) if share]
    return trial(lab.server, serve, *args, name=name, requests=mix, clients=clients, seconds=SECONDS)
