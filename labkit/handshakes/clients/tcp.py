"""HTTP/1.1 over TCP, alone or with the TLS of the standard library; both with or without TCP Fast Open."""

from __future__ import annotations

import socket
import ssl
from typing import Any, Literal

from labkit import checks
from labkit.handshakes.clients.base import Client, Deadline, Fetched, TimedSocket, open_tcp
from labkit.servers import Server
from labkit.servers.authority import SMALL_GROUP
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import ClientExchange


class TcpClient(Client):
    """HTTP/1.1 over TCP.

    Args:
        host, server, timeout_s: as in Client.
        fast_open: send the request in the SYN. The first fetch brings the cookie, which the host's kernel keeps.
    """

    def __init__(self, host: HostLike, server: Server, *, fast_open: bool = False, timeout_s: float = 10.0) -> None:
        super().__init__(host, server, timeout_s=timeout_s)
        self.fast_open = checks.flag("fast_open", fast_open)

    def fetch(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Fetched:
        exchange = ClientExchange(self._authority_header, method, target, body)
        deadline = Deadline(self.timeout_s)
        with self._explained(f"{method} {self.server.url}"), self._socket() as sock:
            stream = TimedSocket(sock, deadline)
            stream.connect(self._address)
            facts = self._handshake(sock)
            stream.sendall(exchange.request_bytes)
            response = exchange.read_response(stream)
            sock.settimeout(deadline.left_s())
            self._goodbye(sock)
        return Fetched(response.status, response.body, facts)

    def _socket(self) -> socket.socket:
        return open_tcp(self.host, fast_open=self.fast_open)

    def _handshake(self, sock: socket.socket) -> dict[str, Any]:
        """What is to be done between connecting and the request. Returns the facts."""
        return {"tls_version": None, "alpn": None, "resumed": False}

    def _goodbye(self, sock: socket.socket) -> None:
        """What is to be done between the response and closing."""


class TlsClient(TcpClient):
    """HTTP/1.1 over TLS.

    Args:
        host, server, fast_open, timeout_s: as in TcpClient. With fast_open the ClientHello rides in the SYN.
        version: "1.2" or "1.3"; no other is accepted.
        resume: keep the session of each fetch for the next. When False every handshake is a full one.

    Raises:
        InvalidValue: an unknown version, a deadline that is not positive.
    """

    def __init__(
        self,
        host: HostLike,
        server: Server,
        *,
        version: Literal["1.2", "1.3"] = "1.3",
        resume: bool = False,
        fast_open: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(host, server, fast_open=fast_open, timeout_s=timeout_s)
        # OpenSSL's own choice may start with a post-quantum hybrid, and a ClientHello of 1.5 kB does not fit
        # into a SYN. All variants of TLS 1.3 offer the same group, so that they differ in nothing else. A
        # ClientHello of TLS 1.2 holds no key share, and its list of groups must have the curve of the
        # certificate (RFC 8422).
        group = SMALL_GROUP if version == "1.3" else None
        self._context = self._authority.client_context(versions=[version], group=group)
        self.resume = checks.flag("resume", resume)
        self._session: ssl.SSLSession | None = None

    def _socket(self) -> ssl.SSLSocket:
        sock = super()._socket()
        try:
            # Before connecting: wrap_socket looks for a peer and for data, which a fast-open socket does not
            # have until the first write has sent its SYN.
            tls: ssl.SSLSocket = self._context.wrap_socket(
                sock, server_hostname=self._server_name, do_handshake_on_connect=False, session=self._session
            )
            return tls
        except BaseException:
            sock.close()
            raise

    def _handshake(self, sock: socket.socket) -> dict[str, Any]:
        assert isinstance(sock, ssl.SSLSocket)
        sock.do_handshake()
        return {
            "tls_version": sock.version(),
            "alpn": sock.selected_alpn_protocol(),
            "resumed": bool(sock.session_reused),
        }

    def _goodbye(self, sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        if self.resume:
            # Now and not after the handshake: in TLS 1.3 the tickets come with the first data (RFC 8446,
            # 4.6.1).
            self._session = sock.session
        try:
            # OpenSSL marks the session of a connection that is not closed properly as not resumable.
            sock.unwrap()
        except OSError:
            return  # the server closed TCP without closing TLS; the response is complete all the same
