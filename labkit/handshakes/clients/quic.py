"""HTTP/3 over QUIC, with or without 0-RTT."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent
from aioquic.tls import SessionTicket

from labkit import checks
from labkit.errors import NotReady
from labkit.handshakes.clients.base import Client, Fetched
from labkit.servers import Server
from labkit.servers.authority import KeyLogWriter
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import check_request
from labkit.servers.http3 import cancel_timers
from labkit.servers.loop import LoopLease

# RFC 9002, section 6.2.2. aioquic's 100 ms would send everything twice where the round trip is longer than 200 ms.
INITIAL_RTT_S = 0.333


class QuicClient(Client):
    """HTTP/3.

    Args:
        host, server, timeout_s: as in Client.
        early_data: keep the ticket of each fetch, and send the next request as 0-RTT data with it.
    """

    def __init__(self, host: HostLike, server: Server, *, early_data: bool = False, timeout_s: float = 10.0) -> None:
        super().__init__(host, server, timeout_s=timeout_s)
        self.early_data = checks.flag("early_data", early_data)
        self._ticket: SessionTicket | None = None

    @property
    def holds_ticket(self) -> bool:
        """Whether the next fetch can send 0-RTT data."""
        return self._ticket is not None

    @property
    def ticket(self) -> SessionTicket | None:
        """The ticket that the next fetch will spend, as aioquic keeps it; None where there is none."""
        return self._ticket

    def fetch(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Fetched:
        check_request(method, target)
        checks.octets("body", body, b"a=1")
        headers = [
            (b":method", method.encode("ascii")),
            (b":scheme", b"https"),
            (b":authority", self._authority_header.encode("ascii")),
            (b":path", target.encode("ascii")),
        ]
        with LoopLease() as loop, self.host:
            try:
                return loop.run(self._fetch(headers, body), self.timeout_s)
            except NotReady as exc:
                raise NotReady(
                    f"{method} {self.server.url} by HTTP/3 from {self.host.name} had no complete answer within "
                    f"{self.timeout_s:g} s: look at the server's log and at a capture, or give the client more time"
                ) from exc

    async def _fetch(self, headers: list[tuple[bytes, bytes]], body: bytes) -> Fetched:
        ticket, self._ticket = self._ticket, None
        loop = asyncio.get_running_loop()
        secrets: Any = KeyLogWriter(self._authority.keylog_path)
        # Made here, in the loop's thread: an interrupt, which comes to the main thread only, cannot leave it open.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind((self.host.ip, 0))
            configuration = QuicConfiguration(
                is_client=True,
                alpn_protocols=H3_ALPN,
                server_name=self._server_name,
                cadata=self._authority.ca_pem,
                secrets_log_file=secrets,
                session_ticket=ticket,
                initial_rtt=INITIAL_RTT_S,
            )
            transport, exchange = await loop.create_datagram_endpoint(lambda: _Exchange(configuration), sock=sock)
            try:
                exchange.send_request(self._address, headers, body)
                await exchange.response
                handshake = await exchange.handshake
                if self.early_data:
                    # An early response comes before the ticket, which the server gives for the client's Finished.
                    self._ticket = await exchange.ticket
                exchange.close()
            finally:
                cancel_timers(exchange)
                transport.close()
                await asyncio.sleep(0)  # the transport lets go of its socket in the loop's next round
        facts: dict[str, Any] = {
            "tls_version": "TLSv1.3",
            "alpn": handshake.alpn_protocol,
            "resumed": handshake.session_resumed,
            "early_data_offered": ticket is not None,
            "early_data_accepted": handshake.early_data_accepted,
        }
        return Fetched(exchange.status, bytes(exchange.body), facts)


class _Exchange(QuicConnectionProtocol):
    """One connection, one request, one response."""

    def __init__(self, configuration: QuicConfiguration) -> None:
        loop = asyncio.get_running_loop()
        self.handshake: asyncio.Future[HandshakeCompleted] = loop.create_future()
        self.response: asyncio.Future[None] = loop.create_future()
        self.ticket: asyncio.Future[SessionTicket] = loop.create_future()
        self.status = 0
        self.body = bytearray()
        self._http: H3Connection | None = None
        connection = QuicConnection(configuration=configuration, session_ticket_handler=self._keep_ticket)
        super().__init__(connection)

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        if not self.ticket.done():
            self.ticket.set_result(ticket)

    def send_request(self, address: tuple[str, int], headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the first flight, with the request in it where there is a ticket."""
        # Without transmitting, so that ClientHello and 0-RTT data go out in one datagram. Without a ticket
        # the request waits inside aioquic and leaves together with the client's Finished.
        self.connect(address, transmit=False)
        self._http = H3Connection(self._quic)
        stream_id = self._quic.get_next_available_stream_id()
        self._http.send_headers(stream_id, headers, end_stream=not body)
        if body:
            self._http.send_data(stream_id, body, end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, HandshakeCompleted):
            self.handshake.set_result(event)
        elif isinstance(event, ConnectionTerminated):
            self._fail(event)
        for http_event in self._http.handle_event(event) if self._http is not None else ():
            if isinstance(http_event, HeadersReceived):
                self.status = int(dict(http_event.headers).get(b":status", self.status))
            elif isinstance(http_event, DataReceived):
                self.body += http_event.data
            ended = isinstance(http_event, HeadersReceived | DataReceived) and http_event.stream_ended
            if ended and not self.response.done():
                self.response.set_result(None)

    def _fail(self, event: ConnectionTerminated) -> None:
        """The connection ended: whoever still waits for something learns why."""
        reason = f"QUIC connection ended: {event.reason_phrase or 'no reason given'} (code {event.error_code:#x})"
        for future in (self.response, self.handshake, self.ticket):
            if not future.done():
                future.set_exception(ConnectionError(reason))
                future.exception()  # only one of the three is waited for; the others would complain when collected
