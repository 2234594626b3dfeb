"""Programs of other people on a host of the lab: a broker, a database, proxies, a resolver.

::

    with PostgreSQL(lab.server) as database, lab.client:
        connection = await asyncpg.connect(database.url)

Each starts in a directory of its own and ends with the lab. ``background=True`` starts it while you go on; ``ready()``
waits. Where its program is not installed, an error says the one command that brings it; ``RabbitMQ.available()`` asks
before. ``Service`` runs any other program that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.lazy import lazy

if TYPE_CHECKING:
    from labkit.services.envoy import Envoy
    from labkit.services.haproxy import HAProxy
    from labkit.services.nginx import Nginx
    from labkit.services.postgresql import PostgreSQL
    from labkit.services.rabbitmq import RabbitMQ
    from labkit.services.service import Service
    from labkit.services.unbound import Unbound

_HOME = {
    "Envoy": "labkit.services.envoy",
    "HAProxy": "labkit.services.haproxy",
    "Nginx": "labkit.services.nginx",
    "PostgreSQL": "labkit.services.postgresql",
    "RabbitMQ": "labkit.services.rabbitmq",
    "Service": "labkit.services.service",
    "Unbound": "labkit.services.unbound",
}

__all__ = [
    "Envoy",
    "HAProxy",
    "Nginx",
    "PostgreSQL",
    "RabbitMQ",
    "Service",
    "Unbound",
]

__getattr__, __dir__ = lazy(__name__, _HOME)
