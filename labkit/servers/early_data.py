"""An HTTP/1.1 server that takes TLS 1.3 early data (0-RTT) and answers it before the handshake is complete."""

from __future__ import annotations

import socket
import threading
from typing import Any

from OpenSSL import SSL

from labkit import checks
from labkit.servers.answer import answer
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import READ_BYTES, Stream, serve_http1
from labkit.servers.messages import Handler, Request, Response, describe_connection
from labkit.servers.openssl import BioTls, server_context
from labkit.servers.threaded import ThreadedServer


class EarlyDataServer(ThreadedServer):
    """HTTP/1.1 over TLS 1.3 with early data. Clients without it are served, too.

    Early data can be replayed by anybody who recorded it: the same bytes, sent once more, ask for the same
    thing once more (RFC 8446, section 8). With ``replay_protection`` a ticket is good for one use; without it
    a handler runs once for every copy.

    Args:
        host: the host it runs on; its certificate is for the host's name and address.
        handler: as in HttpServer; ``request.facts["early_data"]`` tells what came early.
        port: 0 for a free one.
        replay_protection: take each ticket once (the server remembers them).
        accept_early_data: when False, tickets still invite early data, and what comes is thrown away: the
            client has to send it again. May be changed while it runs; it holds for connections from then on.
        fast_open, backlog, name: as in HttpServer.

    Attributes:
        requests: how many requests were answered.
        early_requests: how many of those were read, and answered, before the handshake was complete.

    Raises:
        InvalidValue, NameTaken, LabClosed, NotReady: as in HttpServer.
    """

    def __init__(
        self,
        host: HostLike,
        handler: Handler | None = None,
        *,
        port: int = 443,
        replay_protection: bool = True,
        accept_early_data: bool = True,
        fast_open: bool = False,
        backlog: int = 128,
        name: str | None = None,
    ) -> None:
        super().__init__(host, port, scheme="https", name=name, backlog=backlog, fast_open=fast_open)
        self.handler = checks.optional(checks.function, "handler", handler) or describe_connection
        self.replay_protection = checks.flag("replay_protection", replay_protection)
        self.accept_early_data = checks.flag("accept_early_data", accept_early_data)
        self.requests = 0
        self.early_requests = 0
        self._count_lock = threading.Lock()
        self._start()

    def _open(self) -> None:
        authority = self.host.lab.authority
        certificate = authority.certificate_for(self.host.fqdn, self.host.name, self.host.ip)
        self._context = server_context(authority, certificate, replay_protection=self.replay_protection)
        super()._open()

    def _about(self) -> str:
        return f"HTTP/1.1 TLS 1.3, {self.early_requests} of {self.requests} requests early"

    def _converse(self, connection: socket.socket, peer: str) -> None:
        stream = EarlyDataStream(self._context, connection, self.accept_early_data)

        def facts() -> dict[str, Any]:
            return {
                "protocol": "HTTP/1.1",
                "tls_version": "TLSv1.3",
                "alpn": stream.alpn,
                "resumed": stream.resumed,
                "early_data": not stream.handshake_complete,
                "peer": peer,
            }

        def respond(request: Request) -> Response:
            with self._count_lock:
                self.requests += 1
                self.early_requests += bool(request.facts["early_data"])
            return answer(self.handler, request, self.log)

        serve_http1(stream, respond, facts)
        stream.finish()


class EarlyDataStream(BioTls):
    """The server's end of a connection: first early data, then the handshake's rest, then ordinary data."""

    def __init__(self, context: SSL.Context, sock: Stream, accept_early_data: bool) -> None:
        super().__init__(context, sock)
        self.connection.set_accept_state()
        self.handshake_complete = False
        if not accept_early_data:
            # A server that never asks for early data rejects it: OpenSSL skips over it and goes on.
            self._complete_handshake()

    def _complete_handshake(self) -> None:
        self.handshake()
        self.handshake_complete = True

    def _recv_early(self, max_bytes: int) -> bytes | None:
        """Early data; None when there is no more of it, and the handshake is complete."""
        early = self.read_early_data(max_bytes)
        if early is None:
            self._complete_handshake()
        return early

    def recv(self, max_bytes: int) -> bytes:
        early = None if self.handshake_complete else self._recv_early(max_bytes)
        return super().recv(max_bytes) if early is None else early

    def sendall(self, data: bytes) -> None:
        if self.handshake_complete:
            super().sendall(data)
        else:
            # The client's Finished is still on its way: this goes to somebody who may be replaying (RFC 8446,
            # 2.3).
            self.write_early_data(data)
            self.flush()

    def finish(self) -> None:
        """Complete the handshake where that is still to do, which sends the tickets, and close TLS."""
        while not self.handshake_complete:
            self._recv_early(READ_BYTES)
        self.say_goodbye()
