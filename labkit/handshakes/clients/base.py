"""What all clients share: the server's name, deadlines, and sockets that send at once."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit import checks
from labkit.errors import NotReady
from labkit.servers import Server
from labkit.servers.hosts import HostLike, check_host
from labkit.servers.http1 import Stream

TCP_FASTOPEN_CONNECT = 30  # linux/tcp.h; the socket module has no name for it


@dataclass(frozen=True)
class Fetched:
    """The answer to one fetch.

    Attributes:
        status: 200.
        body: the response's.
        facts: what the library says of the connection: "tls_version", "alpn", "resumed", and for early data
            "early_data_offered" and "early_data_accepted". A claim, not a proof: look at the packets.
    """

    status: int
    body: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)


class Client:
    """Fetches from one server, with a new connection for each fetch. Not for two threads at once.

    Args:
        host: where its sockets come from.
        server: where it connects to; its certificate must carry the server's name.
        timeout_s: deadline of each fetch in seconds, from the first packet to the last.

    Raises:
        InvalidValue: a deadline that is not positive.
    """

    def __init__(self, host: HostLike, server: Server, *, timeout_s: float = 10.0) -> None:
        if not hasattr(server, "url"):
            raise checks.wrong("server", server, "give a server of the lab, for instance HttpServer(lab.server)")
        check_host("host", host)
        checks.number("timeout_s", timeout_s, 0.001, 86_400, unit="seconds")
        self.host = host
        self.server = server
        self.timeout_s = timeout_s
        self._authority = server.host.lab.authority

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host.name} → {self.server.url}>"

    @property
    def _server_name(self) -> str:
        """The name that the certificate must carry."""
        return self.server.host.fqdn

    @property
    def _address(self) -> tuple[str, int]:
        return self.server.host.ip, self.server.port

    @property
    def _authority_header(self) -> str:
        return f"{self.server.host.fqdn}:{self.server.port}"

    def fetch(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Fetched:
        """Open a connection, send one request, read the response, close.

        Args:
            target: path and query.
            method: of HTTP.
            body: the request's.

        Raises:
            InvalidValue: a request that HTTP cannot carry.
            NotReady: no complete answer before the deadline.
            OSError: the kernel's or TLS's own: connection refused or reset, certificate not trusted.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn a deadline that passed into an error that tells what was tried."""
        try:
            yield
        except TimeoutError as exc:
            if exc.errno == errno.ETIMEDOUT:
                raise  # the kernel gave up by itself
            raise NotReady(
                f"{what} from {self.host.name} had no complete answer within {self.timeout_s:g} s: look at the "
                "server's log and at a capture, or give the client a longer timeout_s"
            ) from exc


class Deadline:
    """A point in time that bounds many waits together."""

    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds until then. Raises TimeoutError when it has passed."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("deadline passed")
        return left_s


class TimedSocket(Stream):
    """A socket (also one of ``ssl``) whose every wait ends at the same deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self._deadline = deadline

    def connect(self, address: tuple[str, int]) -> None:
        self.sock.settimeout(self._deadline.left_s())
        self.sock.connect(address)

    def recv(self, max_bytes: int, /) -> bytes:
        self.sock.settimeout(self._deadline.left_s())
        return self.sock.recv(max_bytes)

    def sendall(self, data: bytes, /) -> None:
        self.sock.settimeout(self._deadline.left_s())
        self.sock.sendall(data)


def open_tcp(host: HostLike, *, fast_open: bool) -> socket.socket:
    """A TCP socket of the host, not yet connected, that sends small writes at once.

    Args:
        host: where it comes from.
        fast_open: put the first write into the SYN, where the kernel holds the server's cookie (RFC 7413);
            ``connect`` then returns before a packet was sent.
    """
    with host:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Without it Nagle's algorithm holds the request back until the client's Finished is acknowledged: a round trip.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    except BaseException:
        sock.close()
        raise
    return sock
