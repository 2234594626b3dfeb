"""TCP servers with a thread for each connection: the plainest there is, and each client can be followed alone."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
import time
import traceback

from labkit import checks
from labkit.errors import NotReady
from labkit.servers.background import CLOSE_TIMEOUT_S, START_TIMEOUT_S, Server, join_all
from labkit.servers.hosts import HostLike

IDLE_TIMEOUT_S = 60.0
LINGER_S = 2.0
ACCEPT_PAUSE_S = 0.1
FAST_OPEN_QUEUE = 256


class ThreadedServer(Server):
    """Accepts TCP connections and gives each a thread that runs ``_converse``.

    Args:
        host, port, scheme, name: as in Server.
        backlog: how many connections the kernel may hold ready for accept(2).
        fast_open: take data in the SYN (RFC 7413). The host's net.ipv4.tcp_fastopen must allow servers (bit 2).

    Raises:
        InvalidValue, LabClosed: as in Server; a backlog that is not a positive number.
        NameTaken: the port is taken.
        NotReady: its thread did not start in time.
    """

    def __init__(
        self, host: HostLike, port: int, *, scheme: str, name: str | None, backlog: int, fast_open: bool = False
    ) -> None:
        super().__init__(host, port, scheme=scheme, name=name)
        self.backlog = checks.whole("backlog", backlog, 0, 2**31 - 1)
        self.fast_open = checks.flag("fast_open", fast_open)
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self._begun = self._ending = False
        self._waker: socket.socket | None = None
        self._wake: socket.socket | None = None

    def _open(self) -> None:
        # Closing a socket does not wake a thread that waits for it; a byte on this pair does.
        self._waker, self._wake = socket.socketpair()
        with self.host:
            # With the protocol named, asyncio would turn Nagle off for what it accepts from it.
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            # Or the port could not be bound again for the minute that old connections stay in TIME_WAIT.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(self._listener)
            if self.fast_open:
                self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
            self._listener.listen(self.backlog)
            self._listener.setblocking(False)
            self._thread = threading.Thread(target=self._accept, name=f"labkit-{self.port}", daemon=True)
            self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise NotReady(f"the server on port {self.port} did not start in {START_TIMEOUT_S:g} s: try again")

    def _accept(self) -> None:
        assert self._listener is not None
        assert self._waker is not None
        with self._lock:
            if self._ending:
                return
            self._begun = True
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            self._ready.set()
            while True:
                if any(key.fileobj is self._waker for key, _ in selector.select()):
                    return
                try:
                    connection, peer = self._listener.accept()
                except OSError as exc:
                    # The client has gone again, or this process is out of descriptors: later it may work.
                    self.log.add("error", "", f"accept: {exc}")
                    select.select([self._waker], [], [], ACCEPT_PAUSE_S)
                    continue
                self._start_conversation(connection, f"{peer[0]}:{peer[1]}")

    def _start_conversation(self, connection: socket.socket, peer: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(IDLE_TIMEOUT_S)
        thread = threading.Thread(
            target=self._hold_conversation,
            args=(connection, peer),
            name=f"labkit-{self.port}-{peer}",
            daemon=True,
        )
        with self._lock:
            self._connections[thread] = connection
        try:
            thread.start()
        except RuntimeError as exc:  # no more threads: this client is turned away, the next may be luckier
            self.log.add("error", peer, f"no thread for it: {exc}")
            with self._lock:
                del self._connections[thread]
            connection.close()

    def _hold_conversation(self, connection: socket.socket, peer: str) -> None:
        self.log.add("connection", peer, "accepted")
        try:
            with self._lock:  # `close` must find the socket that is in use
                connection = self._connections[threading.current_thread()] = self._wrap(connection)
            self._converse(connection, peer)
            self.log.add("closed", peer, "closed")
        except Exception as exc:  # whatever a client does ends its own connection and no other
            # As text: the exception itself would keep alive what its frames hold, sockets and contexts.
            facts = {"exception": type(exc).__name__, "traceback": traceback.format_exc()}
            self.log.add("error", peer, f"{type(exc).__name__}: {exc}", facts)
        finally:
            let_go(connection)
            with self._lock:
                del self._connections[threading.current_thread()]
                connection.close()

    def _wrap(self, connection: socket.socket) -> socket.socket:
        """The socket to speak over, for servers that put TLS around it. Must not block."""
        return connection

    def _converse(self, connection: socket.socket, peer: str) -> None:
        """Serve one client to its end. What this raises goes into the log."""
        raise NotImplementedError

    def _shut(self) -> None:
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        # An interrupt of Thread.start leaves a thread that begins now, later or never: it reads what is decided here.
        with self._lock:
            self._ending = True
            begun = self._begun
        if begun:
            assert self._wake is not None
            assert self._thread is not None
            with contextlib.suppress(OSError):  # closed by a `_shut` that was interrupted
                self._wake.send(b"x")
            self._thread.join(CLOSE_TIMEOUT_S)
        for sock in (self._listener, self._waker, self._wake):
            if sock is not None:
                sock.close()
        with self._lock:
            for connection in self._connections.values():
                interrupt(connection)
            threads = list(self._connections)
        join_all(threads, deadline_s, self)


def interrupt(connection: socket.socket) -> None:
    """Make a thread that waits for this connection go on: it reads the end of the stream."""
    # Not connection.shutdown(), which SSLSocket overrides: it would turn the thread's TLS into plain text.
    with contextlib.suppress(OSError):  # not connected: the client was faster
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def let_go(connection: socket.socket) -> None:
    """End a connection so that the client gets all that was sent.

    close(2) with unread data resets the connection, and a reset makes the client's kernel throw away what it
    had not read yet. So: say that we are done, then read until the client is (RFC 9112, section 9.6).
    """
    deadline = time.monotonic() + LINGER_S
    try:
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while (left_s := deadline - time.monotonic()) > 0:
            connection.settimeout(left_s)
            if not socket.socket.recv(connection, 65536):
                return
    except OSError:
        return  # reset or silent: there is nobody left to be polite to
