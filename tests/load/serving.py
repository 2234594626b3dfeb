"""Servers to be loaded: a handler for each connection, in threads of the test. They count what they answered."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from labkit import Host

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Server:
    """Calls ``handler(server, connection)`` in a thread for each connection, until it is closed.

    Attributes:
        port: a free one.
        counts: whatever the handler counts, and "connections".
        lock: for the handlers.
        asked: set when the first connection was accepted.
    """

    def __init__(self, host: Host, handler: Callable[[Server, socket.socket], None]) -> None:
        self.handler, self.counts, self.lock = handler, Counter[object](), threading.Lock()
        self.asked = threading.Event()
        self.listener = host.socket()
        self.listener.bind((host.ip, 0))
        self.listener.listen(1024)
        self.port: int = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                connection, _ = self.listener.accept()
                self.count("connections")
                self.connections.append(connection)
                self.asked.set()
                self.threads.append(threading.Thread(target=self.serve, args=[connection]))
                self.threads[-1].start()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self.handler(self, connection)

    def count(self, what: object) -> int:
        with self.lock:
            self.counts[what] += 1
            return self.counts[what]

    def close(self) -> None:
        with self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.threads[0].join(10)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def requests_on(connection: socket.socket) -> Iterator[bytes]:
    """The path of each request, as it comes."""
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            if not (data := connection.recv(65536)):
                return
            received += data
        head, _, received = received.partition(b"\r\n\r\n")
        yield head.split()[1]


def well(server: Server, connection: socket.socket) -> None:
    """Answers each request, and counts them by path."""
    for path in requests_on(connection):
        server.count("requests")
        server.count(path)
        connection.sendall(OK)
