"""An HTTP/3 server: the same handler over QUIC, with session tickets and 0-RTT.

Sources: RFC 9000 (QUIC), RFC 9001 (its TLS), RFC 9114 (HTTP/3).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent
from aioquic.tls import SessionTicket, load_pem_private_key, load_pem_x509_certificates

from labkit import checks
from labkit.servers.answer import answer
from labkit.servers.authority import KeyLogWriter
from labkit.servers.background import CLOSE_TIMEOUT_S, START_TIMEOUT_S, Server, join_all
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import complete_headers
from labkit.servers.loop import LoopLease
from labkit.servers.messages import MAX_BODY_BYTES, Handler, Headers, Request, Response, describe_connection

if TYPE_CHECKING:
    import trustme

MAX_TICKETS = 1000


class Http3Server(Server):
    """HTTP/3 on the background event loop; handlers run in threads of their own.

    It never asks clients to prove their address first (Retry), which would cost a round trip.

    Args:
        host: the host it runs on; its certificate is for the host's name and address.
        handler: as in HttpServer; ``request.facts["early_data"]`` tells what came early.
        port: a UDP port; 0 for a free one.
        accept_early_data: when False, tickets still invite 0-RTT, but the server does not know them any more:
            it drops those packets, and the client sends the request again. May be changed while it runs.
        single_use_tickets: when False, a ticket is good again and again, and so are the 0-RTT packets that somebody
            recorded: the server that RFC 8446 section 8 warns of. May be changed while it runs.
        certificate: a leaf with its key and the intermediates that it brings, to show instead of the one that the
            lab's authority makes for the host. Clients of the lab trust what ``lab.authority.root`` has signed.
        name: a new server of the same name closes this one. By default a fixed port is a name.

    Attributes:
        requests: how many requests were answered.
        early_requests: how many of those were complete before the handshake was.

    Raises:
        InvalidValue: a port that cannot be.
        NameTaken: something else has the port.
        LabClosed, NotReady: the lab is closed; the server did not start in time.
    """

    def __init__(
        self,
        host: HostLike,
        handler: Handler | None = None,
        *,
        port: int = 443,
        accept_early_data: bool = True,
        single_use_tickets: bool = True,
        certificate: trustme.LeafCert | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(host, port, scheme="https", protocol="udp", name=name)
        self.handler = checks.optional(checks.function, "handler", handler) or describe_connection
        self.accept_early_data = checks.flag("accept_early_data", accept_early_data)
        self.single_use_tickets = checks.flag("single_use_tickets", single_use_tickets)
        self.certificate = certificate
        self.requests = 0
        self.early_requests = 0
        self.conversations: set[_Conversation] = set()
        self.handler_threads: set[threading.Thread] = set()
        self._tickets: dict[bytes, SessionTicket] = {}
        self._lease: LoopLease | None = None
        self._socket: socket.socket | None = None
        self._endpoint: QuicServer | None = None
        self._start()

    def _about(self) -> str:
        return f"HTTP/3, {self.early_requests} of {self.requests} requests early"

    def _open(self) -> None:
        authority = self.host.lab.authority
        leaf = self.certificate or authority.certificate_for(self.host.fqdn, self.host.name, self.host.ip)
        secrets: Any = KeyLogWriter(authority.keylog_path)
        configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, secrets_log_file=secrets)
        configuration.certificate, *configuration.certificate_chain = load_pem_x509_certificates(
            b"".join(part.bytes() for part in leaf.cert_chain_pems)
        )
        configuration.private_key = load_pem_private_key(leaf.private_key_pem.bytes())
        self._lease = LoopLease()
        with self.host:  # the loop makes the socket in this context, and runs the endpoint's callbacks in it
            self._lease.run(self._listen(configuration), START_TIMEOUT_S)

    async def _listen(self, configuration: QuicConfiguration) -> None:
        def converse(connection: QuicConnection, **_: Any) -> _Conversation:
            return _Conversation(connection, self)

        def endpoint() -> QuicServer:
            return QuicServer(
                configuration=configuration,
                create_protocol=converse,
                session_ticket_fetcher=self._take_ticket,
                session_ticket_handler=self._keep_ticket,
            )

        # Made here, in the loop's thread: an interrupt, which comes to the main thread only, cannot leave it open.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._bind(self._socket)
        loop = asyncio.get_running_loop()
        _, self._endpoint = await loop.create_datagram_endpoint(endpoint, sock=self._socket)

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        self._tickets[ticket.ticket] = ticket
        if len(self._tickets) > MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]

    def _take_ticket(self, label: bytes) -> SessionTicket | None:
        # Taken out, not looked up: each ticket is good once, so that 0-RTT cannot be replayed (RFC 8446, 8.1).
        ticket = self._tickets.pop(label, None) if self.single_use_tickets else self._tickets.get(label)
        return ticket if self.accept_early_data else None

    def _shut(self) -> None:
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        if self._lease is not None and not self._lease.closed:
            self._lease.run(self._stop(), CLOSE_TIMEOUT_S)
            self._lease.close()
        if self._socket is not None:
            self._socket.close()
        join_all(list(self.handler_threads), deadline_s, self)

    async def _stop(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        open_now = list(self.conversations)
        endpoint.close()
        for conversation in open_now:
            conversation.abandon()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next round


class _Conversation(QuicConnectionProtocol):
    """One client's connection."""

    def __init__(self, connection: QuicConnection, server: Http3Server) -> None:
        super().__init__(connection)
        self.server = server
        self._http: H3Connection | None = None
        self._handshake_complete = False
        self._peer = ""
        self._pending: dict[int, tuple[Headers, bytearray]] = {}
        server.conversations.add(self)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if not self._peer:
            self._peer = f"{addr[0]}:{addr[1]}"
            self.server.log.add("connection", self._peer, "first datagram")
        super().datagram_received(data, addr)

    def quic_event_received(self, event: QuicEvent) -> None:
        # Events come in the order of the packets: data before HandshakeCompleted was 0-RTT data.
        if isinstance(event, HandshakeCompleted):
            self._handshake_complete = True
        elif isinstance(event, ConnectionTerminated):
            self.server.conversations.discard(self)
            self.server.log.add("closed", self._peer, event.reason_phrase or f"closed, code {event.error_code:#x}")
        if self._http is None and self._quic.tls.alpn_negotiated in H3_ALPN:
            self._http = H3Connection(self._quic)
        if self._http is not None:
            for http_event in self._http.handle_event(event):
                self._http_event_received(http_event)

    def _http_event_received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
            # A second block of headers on a stream is trailers, which no handler here asks for.
            self._pending.setdefault(event.stream_id, (headers, bytearray()))
        elif isinstance(event, DataReceived) and event.stream_id in self._pending:
            self._pending[event.stream_id][1].extend(event.data)
        if isinstance(event, HeadersReceived | DataReceived) and event.stream_id in self._pending:
            if len(self._pending[event.stream_id][1]) > MAX_BODY_BYTES:
                del self._pending[event.stream_id]
                self._send(event.stream_id, "POST", Response.text("the body is too large\n", 413))
            elif event.stream_ended:
                self._answer(event.stream_id, *self._pending.pop(event.stream_id))

    def _answer(self, stream_id: int, headers: Headers, body: bytearray) -> None:
        early = not self._handshake_complete
        self.server.requests += 1
        self.server.early_requests += early
        pseudo = dict(pair for pair in headers if pair[0].startswith(":"))
        facts = {
            "protocol": "h3",
            "tls_version": "TLSv1.3",
            "alpn": self._quic.tls.alpn_negotiated,
            "resumed": self._quic.tls.session_resumed,
            "early_data": early,
            "peer": self._peer,
        }
        regular = tuple(pair for pair in headers if not pair[0].startswith(":"))
        request = Request(pseudo.get(":method", ""), pseudo.get(":path", ""), regular, bytes(body), facts)
        # In a thread: a handler that sleeps must not stop the loop, which serves everybody.
        name = f"labkit-{self.server.port}-{self._peer}"
        thread = threading.Thread(target=self._run_handler, args=(stream_id, request), name=name, daemon=True)
        self.server.handler_threads.add(thread)
        thread.start()

    def _run_handler(self, stream_id: int, request: Request) -> None:
        response = answer(self.server.handler, request, self.server.log)
        # When the loop has ended there is nobody left to answer to.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._send, stream_id, request.method, response)
        self.server.handler_threads.discard(threading.current_thread())

    def _send(self, stream_id: int, method: str, response: Response) -> None:
        if self._http is None or self not in self.server.conversations:
            return  # the client has gone while the handler ran
        headers = [(b":status", str(response.status).encode("ascii"))]
        no_body = method == "HEAD" or response.status in (204, 304)
        headers += [
            (name.lower().encode("ascii"), value.encode("latin-1")) for name, value in complete_headers(response)
        ]
        if method == "HEAD":
            # Optional here (RFC 9110, section 8.6), and aioquic's client takes a length without a body for an error.
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        self._http.send_headers(stream_id, headers)
        self._http.send_data(stream_id, b"" if no_body else response.body, end_stream=True)
        self.transmit()

    def abandon(self) -> None:
        """Stop at once: no timer may fire after the socket is closed."""
        self.server.conversations.discard(self)
        cancel_timers(self)


def cancel_timers(protocol: QuicConnectionProtocol) -> None:
    """Keep an aioquic protocol from sending after its transport is closed. It has no call for this itself."""
    for handle in (protocol._timer, protocol._transmit_task):
        if handle is not None:
            handle.cancel()
    protocol._timer = protocol._transmit_task = None
