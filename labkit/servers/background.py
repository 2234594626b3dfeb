"""What all servers of the book have in common: they start in the background, and they end completely.

A server that is left behind holds its port against the next run of the cell, and its thread prints into cells
that have nothing to do with it. So a constructor returns a server that accepts connections or leaves nothing
behind, and ``close`` returns when threads and sockets are gone.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from labkit import checks
from labkit.errors import NameTaken
from labkit.servers.hosts import HostLike, check_host
from labkit.servers.log import Log

START_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0


class Server:
    """A server on a host. Subclasses give ``_open`` and ``_shut``, and call ``_start`` when they are set up.

    Args:
        host: where it listens, on the host's address.
        port: 0 lets the kernel choose one.
        scheme: "http" or "https", for the URL.
        protocol: "tcp" or "udp".
        name: a new server of the same name closes this one, so that a cell can be run twice. By default a
            fixed port is a name: "server:443/tcp". With port 0 there is none.

    Raises:
        InvalidValue: a port that cannot be.
        LabClosed: the lab was closed before.
    """

    def __init__(
        self, host: HostLike, port: int, *, scheme: str, protocol: str = "tcp", name: str | None = None
    ) -> None:
        check_host("host", host)
        checks.optional(checks.text, "name", name, "my server")
        self.host = host
        self.port = checks.port("port", port, 0)
        self.protocol = protocol
        self.scheme = scheme
        self.log = Log()
        self.closed = False
        self._close_lock = threading.RLock()
        if name is None and port != 0:
            name = f"{host.name}:{port}/{protocol}"
        self.name = name

    @property
    def url(self) -> str:
        """Where clients of the lab find it: "https://server.lab:443/"."""
        return f"{self.scheme}://{self.host.fqdn}:{self.port}/"

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.url} {self._about()}, {state}, {len(self.log)} log entries>"

    def _about(self) -> str:
        return self.protocol

    def _start(self) -> None:
        """Open, or leave nothing behind. Must be the last act of a constructor."""
        # First, because it closes the predecessor, which may hold the port.
        self.host.lab.register(self, self.name)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it: no thread and no socket is left, also of clients that are connected. Closing twice is fine.

        What an interrupt cut short the next call finishes: the lab's, or that of the next server of this name.
        """
        with self._close_lock:
            if not self.closed:
                self._shut()
                self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Return when clients can connect."""
        raise NotImplementedError

    def _shut(self) -> None:
        """End everything that `_open` started, however far it came, or an interrupted `_shut` before this one."""
        raise NotImplementedError

    def _bind(self, sock: socket.socket) -> None:
        """Give the socket its address, and this server its port. Raises NameTaken, or the kernel's own OSError."""
        try:
            sock.bind((self.host.ip, self.port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            raise NameTaken(
                f"port {self.port}/{self.protocol} on {self.host.name} is taken by another socket: close what listens "
                "there (to find it: ss -ltnup on that host), or use port=0 for a free one"
            ) from exc
        self.port = sock.getsockname()[1]


def join_all(threads: Iterable[threading.Thread], deadline_s: float, owner: Server) -> None:
    """Wait for threads that were told to end. Warns about those that still run a handler at the deadline.

    Args:
        threads: the calling thread may be among them.
        deadline_s: on the monotonic clock.
        owner: whose they are, for the warning.
    """
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    busy = [thread.name for thread in others if thread.is_alive()]
    if busy:
        warnings.warn(
            f"{owner!r}: {', '.join(busy)} did not end in time; a handler is still running",
            RuntimeWarning,
            stacklevel=4,
        )
