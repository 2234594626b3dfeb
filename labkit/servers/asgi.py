"""A server for ASGI applications (Starlette and its like): HTTP/1.1 and WebSockets, by uvicorn.

The application's loop runs in a thread of its own, so a handler that blocks it stops all its clients, and no cell of
the notebook. What the application raises stands in ``server.log``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

from labkit import checks
from labkit.errors import NotReady
from labkit.servers.background import CLOSE_TIMEOUT_S, START_TIMEOUT_S, Server
from labkit.servers.hosts import HostLike

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 0.2


class _Told(logging.Handler):
    """What uvicorn says in a server's thread goes into that server's log, and never into a cell."""

    def emit(self, record: logging.LogRecord) -> None:
        server = _SERVERS.get(threading.get_ident())
        if server is not None and not server.ending and record.levelno >= logging.WARNING:
            error = record.exc_info[1] if record.exc_info else None
            server.log.add("error", "", record.getMessage() if error is None else f"{type(error).__name__}: {error}")


_SERVERS: dict[int, AsgiServer] = {}  # by the thread that each runs in


def _listen_to_uvicorn() -> None:
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(handler, _Told) for handler in logger.handlers):
        logger.addHandler(_Told())
        logger.propagate = False


class AsgiServer(Server):
    """An ASGI application on a host.

    Args:
        host: where it listens.
        app: the application: ``async def app(scope, receive, send)``.
        port: 443 with TLS and 80 without; 0 for a free one.
        tls: with TLS 1.2 or 1.3.
        backlog: how many connections the kernel may hold ready for accept(2).
        name: a new server of the same name closes this one. By default a fixed port is a name.

    Raises:
        InvalidValue, NameTaken, LabClosed: as in Server. NotReady: its loop did not start in time.
    """

    def __init__(
        self,
        host: HostLike,
        app: Any,
        *,
        port: int | None = None,
        tls: bool = False,
        backlog: int = 128,
        name: str | None = None,
    ) -> None:
        self.tls = checks.flag("tls", tls)
        if port is None:
            port = 443 if tls else 80
        super().__init__(host, port, scheme="https" if tls else "http", name=name)
        self.app = checks.function("app", app)
        self.backlog = checks.whole("backlog", backlog, 0, 2**31 - 1)
        self._ready = threading.Event()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None
        self.ending = False
        self._start()

    def _about(self) -> str:
        return "ASGI, TLS" if self.tls else "ASGI"

    def _open(self) -> None:
        context = self.host.lab.authority.server_context(self.host.fqdn, self.host.ip) if self.tls else None
        with self.host:
            # With the protocol named, asyncio turns Nagle's algorithm off for what it accepts.
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(self._listener)
            self._listener.listen(self.backlog)
            self._uvicorn = self._make(context)
            self._thread = threading.Thread(target=self._run, name=f"labkit-{self.port}", daemon=True)
            self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise NotReady(f"the server on port {self.port} did not start in {START_TIMEOUT_S:g} s: try again")

    def _make(self, context: ssl.SSLContext | None) -> uvicorn.Server:
        import uvicorn

        _listen_to_uvicorn()

        class Config(uvicorn.Config):
            def load(self) -> None:
                super().load()
                self.ssl = context

            def configure_logging(self) -> None:
                """Leave the loggers of the notebook's process alone."""

        config = Config(
            self.app, http="h11", ws="websockets-sansio", access_log=False, server_header=False, backlog=self.backlog
        )
        config.timeout_graceful_shutdown = GRACE_S  # type: ignore[assignment]  # seconds for asyncio.wait_for
        return uvicorn.Server(config)

    def _run(self) -> None:
        # Not asyncio.run: nest_asyncio, where a notebook has applied it, breaks that in all threads.
        loop = asyncio.new_event_loop()
        _SERVERS[threading.get_ident()] = self
        try:
            loop.run_until_complete(self._serve())
        except Exception as exc:  # such as a lifespan that fails
            self.log.add("error", "", f"{type(exc).__name__}: {exc}")
        finally:
            loop.close()
            del _SERVERS[threading.get_ident()]

    async def _serve(self) -> None:
        assert self._uvicorn is not None
        assert self._listener is not None
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._listener]))
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.001)
        self._ready.set()
        await serving
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the loop's next round

    def _shut(self) -> None:
        self.ending = True
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._listener is not None:
            self._listener.close()
