"""An HTTP/1.1 server, with TLS 1.2, TLS 1.3, both or none."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

from labkit import checks
from labkit.servers.answer import answer
from labkit.servers.authority import version_range
from labkit.servers.hosts import HostLike
from labkit.servers.http1 import serve_http1
from labkit.servers.messages import Handler, Request, Response, describe_connection
from labkit.servers.threaded import ThreadedServer

HANDSHAKE_TIMEOUT_S = 15.0
GOODBYE_TIMEOUT_S = 2.0


class HttpServer(ThreadedServer):
    """HTTP/1.1 with keep-alive, a thread for each connection, Nagle's algorithm off.

    Args:
        host: the host it runs on; its certificate is for the host's name and address.
        handler: from Request to Response, called in the connection's thread; by default it describes the connection.
        port: 443 with TLS and 80 without; 0 for a free one.
        tls: None, "1.2", "1.3" or ("1.2", "1.3"). Session tickets are on: clients may resume.
        fast_open: take data in the SYN (RFC 7413).
        backlog: how many connections the kernel may hold ready for accept(2).
        name: a new server of the same name closes this one. By default a fixed port is a name.

    Raises:
        InvalidValue: a port, backlog or TLS version that cannot be.
        NameTaken: something else listens on the port.
        LabClosed, NotReady: the lab is closed; the server did not start in time.
    """

    def __init__(
        self,
        host: HostLike,
        handler: Handler | None = None,
        *,
        port: int | None = None,
        tls: str | Sequence[str] | None = None,
        fast_open: bool = False,
        backlog: int = 128,
        name: str | None = None,
    ) -> None:
        if port is None:
            port = 80 if tls is None else 443
        scheme = "http" if tls is None else "https"
        super().__init__(host, port, scheme=scheme, name=name, backlog=backlog, fast_open=fast_open)
        self.handler = checks.optional(checks.function, "handler", handler) or describe_connection
        self.tls: tuple[str, ...] = (
            () if tls is None else (tls,) if isinstance(tls, str) else tuple(checks.texts("tls", tls, ["1.2", "1.3"]))
        )
        if tls is not None:
            version_range(self.tls)
        self._context: ssl.SSLContext | None = None
        self._start()

    def _open(self) -> None:
        if self.tls:
            names = self.host.fqdn, self.host.name, self.host.ip
            self._context = self.host.lab.authority.server_context(*names, versions=self.tls)
        super()._open()

    def _shut(self) -> None:
        super()._shut()
        self._context = None  # it holds the key log open

    def _about(self) -> str:
        words = ["HTTP/1.1"] + [f"TLS {version}" for version in self.tls]
        if self.fast_open:
            words.append("fast open")
        return " ".join(words)

    def _wrap(self, connection: socket.socket) -> socket.socket:
        if self._context is None:
            return connection
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _converse(self, connection: socket.socket, peer: str) -> None:
        idle_timeout_s = connection.gettimeout()
        facts: dict[str, Any] = {"protocol": "HTTP/1.1", "tls_version": None, "alpn": None, "resumed": False}
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(HANDSHAKE_TIMEOUT_S)
            connection.do_handshake()
            connection.settimeout(idle_timeout_s)
            facts["tls_version"] = connection.version()
            facts["alpn"] = connection.selected_alpn_protocol()
            facts["resumed"] = bool(connection.session_reused)
        facts |= {"early_data": False, "peer": peer}

        def respond(request: Request) -> Response:
            return answer(self.handler, request, self.log)

        serve_http1(connection, respond, lambda: facts)
        if isinstance(connection, ssl.SSLSocket):
            _say_goodbye(connection)


def _say_goodbye(connection: ssl.SSLSocket) -> None:
    """Send close_notify, without which a client cannot tell the end from a cut wire (RFC 8446, section 6.1)."""
    connection.settimeout(GOODBYE_TIMEOUT_S)
    try:
        connection.unwrap()
    except OSError:
        return  # the client has gone without waiting for ours, as most do
