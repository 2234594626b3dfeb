"""What the tests of the load may use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from serving import Server

from labkit import Lab

Handler = Callable[[Server, socket.socket], None]


@pytest.fixture
def serve(lab: Lab) -> Iterator[Callable[[Handler], Server]]:
    """``serve(handler)`` starts a server on lab.server, which ends with the test."""
    servers: list[Server] = []

    def start(handler: Handler) -> Server:
        servers.append(Server(lab.server, handler))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
