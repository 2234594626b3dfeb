"""HTTP/1.1 over TLS 1.3 whose request travels as early data, in the client's first flight."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from OpenSSL import SSL

from labkit import checks
from labkit.errors import InvalidValue
from labkit.handshakes.clients.base import Client, Deadline, Fetched, TimedSocket, open_tcp
from labkit.servers import Server
from labkit.servers.authority import SMALL_GROUP
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import READ_BYTES, ClientExchange
from labkit.servers.openssl import BioTls, client_context, max_early_data_bytes


class EarlyDataClient(Client):
    """HTTP/1.1 with early data. The first fetch is a full handshake and brings the ticket for the second, and so on.

    Each ticket is used once (RFC 8446, appendix C.4). When the server rejects the early data, the request is
    sent again after the handshake: TLS leaves that to the application.

    Args:
        host, server, timeout_s: as in Client.
        fast_open: ClientHello and early data ride in the SYN together.
        group: the only key exchange group to offer; None for what OpenSSL likes, a post-quantum hybrid among them.

    Attributes:
        last_flight: the bytes of the last first flight with early data, ClientHello and request, as an
            eavesdropper saw them; empty before the first.
    """

    def __init__(
        self,
        host: HostLike,
        server: Server,
        *,
        fast_open: bool = False,
        group: str | None = SMALL_GROUP,
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(host, server, timeout_s=timeout_s)
        self.fast_open = checks.flag("fast_open", fast_open)
        self.last_flight = b""
        self._context = client_context(self._authority, group=group)
        self._session: SSL.Session | None = None

    @property
    def holds_ticket(self) -> bool:
        """Whether the next fetch can send early data."""
        return self._session is not None

    def fetch(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Fetched:
        """As Client.fetch. Raises OpenSSL.SSL.Error where ``ssl`` would raise ssl.SSLError."""
        exchange = ClientExchange(self._authority_header, method, target, body)
        session, self._session = self._session, None
        early = session is not None and len(exchange.request_bytes) <= max_early_data_bytes(session)
        deadline = Deadline(self.timeout_s)
        with (
            self._explained(f"{method} {self.server.url}"),
            open_tcp(self.host, fast_open=self.fast_open) as sock,
        ):
            stream = TimedSocket(sock, deadline)
            tls = BioTls(self._context, stream)
            tls.connection.set_connect_state()
            tls.verify_name(self._server_name)
            tls.callbacks.early_data_accepted = False
            if session is not None:
                tls.connection.set_session(session)
            stream.connect(self._address)
            if early:
                tls.write_early_data(exchange.request_bytes)
                # In one write, because a fast-open SYN carries what the first write holds, and no more.
                self.last_flight = tls.take_output()
                stream.sendall(self.last_flight)
            tls.handshake()
            if not tls.callbacks.early_data_accepted:
                tls.sendall(exchange.request_bytes)
            response = exchange.read_response(tls)
            self._take_session(tls)
        facts: dict[str, Any] = {
            "tls_version": tls.connection.get_protocol_version_name(),
            "alpn": tls.alpn,
            "resumed": tls.resumed,
            "early_data_offered": early,
            "early_data_accepted": tls.callbacks.early_data_accepted,
        }
        return Fetched(response.status, response.body, facts)

    def _take_session(self, tls: BioTls) -> None:
        """Close TLS and keep the session for the next fetch."""
        with contextlib.suppress(ConnectionError):  # a server that closes TCP without closing TLS
            # To the end: the ticket follows the client's Finished, and an early response comes before that.
            while tls.recv(READ_BYTES):
                continue
        session = tls.connection.get_session()
        if session is not None and max_early_data_bytes(session) > 0:
            self._session = session
        tls.say_goodbye()

    def replay(self) -> bytes:
        """Send the last first flight again, byte by byte the same, over a new TCP connection: an attacker's view.

        Nobody but the first sender holds the keys, so the handshake cannot be completed and the answer not be
        read. What the server did with the request is in its log.

        Returns:
            what the server sent back, encrypted.

        Raises:
            InvalidValue: no fetch with early data was made yet.
            NotReady, OSError: as in fetch.
        """
        if not self.last_flight:
            raise InvalidValue("there is no flight to replay yet: fetch twice, the second one sends early data")
        answer = bytearray()
        deadline = Deadline(self.timeout_s)
        with (
            self._explained(f"replay to {self.server.url}"),
            open_tcp(self.host, fast_open=self.fast_open) as sock,
        ):
            stream = TimedSocket(sock, deadline)
            stream.connect(self._address)
            stream.sendall(self.last_flight)
            sock.shutdown(socket.SHUT_WR)  # no more will come: the server stops waiting for the rest of the handshake
            while data := stream.recv(READ_BYTES):
                answer += data
        return bytes(answer)
