"""A lab's server in the learner's own browser.

A lab's hosts are reached from the lab alone. A page listens on this machine, at 127.0.0.1, and hands on what a
browser asks, over the wire, where it is captured, as if the browser ran on the lab's client::

    chat = HttpServer(lab.server, handler, port=8000)
    Page(chat)          # as a cell's last line: a link

The response comes back byte by byte as the server sends it, server-sent events and WebSockets included.

On Binder and JupyterHub the browser is far away, and the link leads through jupyter-server-proxy, ``/proxy/PORT/``.

- It takes that prefix off, so **a page must use relative URLs**: ``new EventSource("events")``, and not "/events".
- It holds a response back until it is complete, except for WebSockets and for requests with ``Accept:
  text/event-stream``. An EventSource sends that header; a ``fetch`` that reads a stream has to set it itself.
- The page is of Jupyter's own origin there: its scripts can do what JupyterLab can. Open your own servers only.
"""

from __future__ import annotations

import contextlib
import contextvars
import html
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import h11

from labkit import checks
from labkit.errors import InvalidValue, LabError
from labkit.servers.admission import TOKEN, Admission, Refused, Requests
from labkit.servers.background import Server
from labkit.servers.hosts import HostLike, check_host
from labkit.servers.http1 import READ_BYTES, check_request
from labkit.servers.jupyter import base_url
from labkit.servers.threaded import ThreadedServer, interrupt

CONNECT_TIMEOUT_S = 15.0
CONTAINER_MARKS = "/.dockerenv", "/run/.containerenv"


class Page(ThreadedServer):
    """A server of the lab in the learner's browser. As a cell's last line it is a link that opens a new tab.

    The server gets the browser's requests with ``Host`` and ``Origin`` rewritten to its own, as the lab's client
    would have sent them. Without a browser: ``curl -L -b '' URL``.

    Args:
        server: a server of the lab; or a host, for a server that labkit did not make.
        port: where on that host.
        tls: it speaks TLS there, with a certificate of ``lab.authority``.
        path: what the link opens, "/chat?room=1".
        client: the lab's host that connections come from, by default ``lab.client``.
        name: a new page of the same name closes this one. By default one of the same server does.

    Raises:
        InvalidValue: no server that a browser could speak with, no port, or a path that HTTP cannot carry.
        LabClosed, NotReady: the lab is closed; the page did not start in time.
    """

    def __init__(
        self,
        server: Server | HostLike,
        port: int | None = None,
        *,
        tls: bool = False,
        path: str = "/",
        client: HostLike | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(server, Server):
            if port is not None or tls:
                raise InvalidValue(f"port={port!r}, tls={tls!r}: {server!r} knows both, leave them out")
            if server.protocol != "tcp":
                raise InvalidValue(f"{server!r}: a page is for servers over TCP, such as HttpServer")
            name = name or f"page of {server.name or server.url}"
            port, tls, server = server.port, server.scheme == "https", server.host
        elif not hasattr(server, "fqdn"):
            raise InvalidValue(f"page of {server!r}: give a server of the lab, or a host and a port: lab.server, 8000")
        port = checks.port("port", port)
        checks.flag("tls", tls)
        checks.text("path", path, "/chat?room=1")
        if not path.startswith("/") or "#" in path:
            raise InvalidValue(f"path={path!r}: from the first slash on and without a fragment, '/chat?room=1'")
        check_request("GET", path)
        checks.optional(checks.text, "name", name, "my page")
        name = name or f"page of {server.fqdn}:{port}"
        if client is not None:
            check_host("client", client)
        super().__init__(_ThisMachine(server.lab), 0, scheme="http", name=name, backlog=128, fast_open=False)
        self.path = path
        self._client = client or server.lab.client
        self._server = server
        self._server_port = port
        self._origin = f"{'https' if tls else 'http'}://{server.fqdn}:{port}"
        self._context: ssl.SSLContext | None = server.lab.authority.client_context() if tls else None
        self._to_server: dict[threading.Thread, socket.socket] = {}
        self._closing = False
        self._start()

    @property
    def url(self) -> str:
        """The link, with its secret. On a Hub and in a container it begins with the path of jupyter-server-proxy."""
        return self._links()[0]

    def __repr__(self) -> str:
        return f"<Page of {self._origin}/, closed>" if self.closed else self.url

    def _repr_html_(self) -> str:
        if self.closed:
            return html.escape(repr(self))
        first, *others = (
            f'<a href="{link}" target="_blank" rel="noopener noreferrer">{link}</a>'
            for link in map(html.escape, self._links())
        )
        return first + "".join(f"<br>or, if your browser cannot reach that, {other}" for other in others)

    def _links(self) -> list[str]:
        link = f"{self.path}{'&' if '?' in self.path else '?'}{TOKEN}={self._admission.secret}"
        local, base = f"http://127.0.0.1:{self.port}{link}", base_url()
        if os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):
            return [f"{base}proxy/{self.port}{link}"]
        if base is None or not find_spec("jupyter_server_proxy"):
            return [local]
        links = [local, f"{base}proxy/{self.port}{link}"]
        return links[::-1] if any(map(os.path.exists, CONTAINER_MARKS)) else links

    def _open(self) -> None:
        # Without the blocks that this thread may be in: the listener and its threads are this machine's.
        contextvars.Context().run(super()._open)

    def _bind(self, sock: socket.socket) -> None:
        super()._bind(sock)
        self._admission = Admission(self.port, self._origin)

    def _shut(self) -> None:
        with self._lock:
            self._closing = True
            for sock in self._to_server.values():
                interrupt(sock)
        super()._shut()
        self._context = None  # it holds the key log open

    def _converse(self, connection: socket.socket, peer: str) -> None:
        def admit(request: h11.Request) -> h11.Request:
            admitted = self._admission.admit(request)
            self.log.add("request", peer, f"{admitted.method.decode('ascii')} {admitted.target.decode('ascii')}")
            return admitted

        requests, first = Requests(admit), b""
        try:
            try:
                while not first:
                    received = connection.recv(READ_BYTES)
                    if not received:
                        return
                    first = requests.receive(received)
                server = self._connect()
            except Refused as refused:
                self.log.add("error" if refused.status >= 400 else "response", peer, f"{refused.status}, {refused}")
                connection.sendall(refused.response())
                return
            # What is refused from here on ends the connection without a word: a response may be under way.
            _relay(connection, server, first, requests.receive)
            if isinstance(server, ssl.SSLSocket):
                with contextlib.suppress(OSError):  # does not wait for the server's own (RFC 8446, section 6.1)
                    server.unwrap()
        finally:
            with self._lock:
                opened = self._to_server.pop(threading.current_thread(), None)
            if opened is not None:
                opened.close()

    def _connect(self) -> socket.socket:
        """A connection from the lab's client to the server. Raises Refused, a 502, where there is none to be had."""
        try:
            with self._client:
                server = self._hold(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                server.settimeout(CONNECT_TIMEOUT_S)
                server.connect((self._server.ip, self._server_port))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                fqdn = self._server.fqdn
                wrapped = self._context.wrap_socket(server, server_hostname=fqdn, do_handshake_on_connect=False)
                server = self._hold(wrapped)
                wrapped.do_handshake()
        except (OSError, LabError) as exc:
            text = f"{self._client.fqdn} cannot reach {self._origin}/: {exc}. Run the cell that starts that server."
            raise Refused(502, text) from exc
        return server

    def _hold(self, sock: socket.socket) -> socket.socket:
        """Let `close` find the socket that is in use."""
        with self._lock:
            self._to_server[threading.current_thread()] = sock
            if self._closing:
                raise OSError("the page was closed")
        return sock


class _ThisMachine:
    """This machine where a host is expected. Inside ``with`` nothing changes."""

    name = "this machine"
    fqdn = "localhost"
    ip = "127.0.0.1"

    def __init__(self, lab: Any) -> None:
        self.lab = lab

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


def _relay(
    browser: socket.socket, server: socket.socket, to_server: bytes, translate: Callable[[bytes], bytes]
) -> None:
    """Hand on what either sends, at once, until one of them ends. A slow reader slows its writer and nobody else."""
    unsent = {browser: b"", server: to_server}
    others = {browser: server, server: browser}
    by_descriptor = {sock.fileno(): sock for sock in unsent}
    later = contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    for sock in unsent:
        sock.setblocking(False)
    while True:
        poll = select.poll()
        for sock, other in others.items():
            wanted = (0 if unsent[other] else select.POLLIN) | (select.POLLOUT if unsent[sock] else 0)
            if wanted:  # else poll would still report the end of a stream, again and again
                poll.register(sock, wanted)
        for descriptor, events in poll.poll():
            sock = by_descriptor[descriptor]
            other = others[sock]
            if unsent[sock]:
                with later:
                    unsent[sock] = unsent[sock][sock.send(unsent[sock]) :]
            if not unsent[other] and events & ~select.POLLOUT:
                with later:
                    # More than a TLS record holds: what stayed behind in the TLS library, poll would not see.
                    received = sock.recv(READ_BYTES)
                    if not received:
                        return
                    unsent[other] = received if sock is server else translate(received)
