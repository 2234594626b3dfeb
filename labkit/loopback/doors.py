"""A door: a port of 127.0.0.1 that stands for an endpoint of the lab, as one of its hosts sees it.

For programs, which cannot be taught the lab's addresses. What they say there is carried as that host's, see
labkit.loopback.relay. Others on this machine cannot use it: the kernel is asked whose socket speaks. A program's
connection is open before the lab's is, because the kernel of this machine opens it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from labkit.loopback import ports
from labkit.loopback.frames import Endpoint, udp_frame
from labkit.loopback.ports import LOOPBACK_ADDRESS

KNOWN_S = 1.0  # for so long a sender of datagrams is known
READ_BYTES = 1 << 16


class Carrier(Protocol):
    """What a door needs of the relay."""

    @property
    def mouths(self) -> Mapping[Endpoint, socket.socket]: ...
    def lend_mouth(self, endpoint: Endpoint) -> None: ...
    def watch(self, sock: Any, read: Callable[[], None] | None) -> None: ...
    def emit(self, frame: bytes) -> None: ...
    def connect(self, client: Endpoint, server: Endpoint, sock: socket.socket) -> None: ...


class Door:
    """A way for programs of one host to an endpoint.

    Args:
        carrier: the relay.
        number: of the host whose programs use it.
        server: where it leads.

    Attributes:
        port: of 127.0.0.1, for TCP and UDP.
    """

    def __init__(self, carrier: Carrier, number: int, server: Endpoint) -> None:
        self.carrier, self.number, self.server = carrier, number, server
        stream, datagrams = ports.free_pair()
        self.listener = socket.socket(fileno=stream.detach())
        self.datagrams = socket.socket(fileno=datagrams.detach())
        self.port: int = self.listener.getsockname()[1]
        self.known: dict[int, float] = {}
        self.listener.listen(1024)
        for sock, read in ((self.listener, self.accept), (self.datagrams, self.read)):
            sock.setblocking(False)
            carrier.watch(sock, read)

    def accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, (_, port) = self.listener.accept()
                if ports.ours(socket.SOCK_STREAM, port, self.port):
                    self.carrier.connect(Endpoint(self.number, port), self.server, sock)
                else:
                    sock.close()

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(64):
                data, (_, port) = self.datagrams.recvfrom(READ_BYTES)
                if self.knows(port):
                    client = Endpoint(self.number, port)
                    if client not in self.carrier.mouths:
                        self.carrier.lend_mouth(client)  # to which the answer is sent
                    self.carrier.emit(udp_frame(client, self.server, data))

    def knows(self, port: int) -> bool:
        now = time.monotonic()
        if self.known.get(port, 0) < now:
            if not ports.ours(socket.SOCK_DGRAM, port, self.port):
                return False
            self.known[port] = now + KNOWN_S
        return True

    def deliver(self, client: Endpoint, data: bytes) -> None:
        """A datagram from the endpoint to one of its clients."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.datagrams.sendto(data, (LOOPBACK_ADDRESS, client.port))
