"""How long programs of other people take to be ready on a host, and what memory they take then, for `labkit bench`."""

from __future__ import annotations

from typing import Any

from labkit.errors import NotAvailableHere
from labkit.network.host import Host
from labkit.services.envoy import Envoy
from labkit.services.haproxy import HAProxy
from labkit.services.nginx import Nginx
from labkit.services.postgresql import PostgreSQL
from labkit.services.rabbitmq import RabbitMQ

# By the names of their figures, with the seconds to be ready and the MiB that they should stay under, idle.
PROGRAMS: dict[str, tuple[Any, float, float]] = {
    "nginx": (Nginx, 0.2, 10),
    "haproxy": (HAProxy, 0.3, 15),
    "envoy": (Envoy, 0.5, 100),
    "postgresql": (PostgreSQL, 2, 60),
    "rabbitmq": (RabbitMQ, 10, 200),
}


def startups(host: Host) -> dict[str, float | None]:
    """Start each once, one after the other.

    Returns:
        "nginx_ready_s": seconds from its start until it was ready, with what had to be done before (its configuration
        checked, a database cluster made); "nginx_mib": memory of its processes then, MiB, see Service.memory. And so on
        for PROGRAMS. None for a program that is not installed, or cannot run on this tier.
    """
    figures: dict[str, float | None] = {}
    for name, (kind, *_) in PROGRAMS.items():
        seconds = mib = None
        if kind.available():
            try:
                with kind(host) as service:
                    seconds, mib = service.ready_s, service.memory.mib
            except NotAvailableHere:
                pass
        figures |= {f"{name}_ready_s": seconds, f"{name}_mib": mib}
    return figures
