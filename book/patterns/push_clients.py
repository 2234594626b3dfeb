"""WebSocket clients of the section "Push": one that reads all that comes, and one that reads when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.sync.client import connect
from websockets.uri import parse_uri

from labkit.servers.hosts import HostLike
from labkit.waiting import wait_until

SIZE = 10_000
BATCH = 10
TIMEOUT_S = 10.0


class Listener:
    """A client that keeps what comes, read by a thread of its own.

    Args:
        host: where it runs.
        url: "ws://server.lab/chat".

    Attributes:
        texts: the messages so far.
    """

    def __init__(self, host: HostLike, url: str = "ws://server.lab/chat") -> None:
        self.texts: list[str] = []
        with host:
            self._socket = connect(url, compression=None, open_timeout=TIMEOUT_S, close_timeout=1)
            self._thread = threading.Thread(target=self._read, name="listener", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in self._socket:
                self.texts.append(str(message))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: object, traceback: TracebackType | None) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Send a message."""
        self._socket.send(text)

    def close(self) -> None:
        """Leave: a close frame, and then the end of the connection."""
        self._socket.close()
        self._thread.join(TIMEOUT_S)


class SlowClient:
    """A client that connects and reads nothing until it is told to. Its receive buffer is small.

    Args:
        host: where it runs.
        url: "ws://server.lab/chat".

    Attributes:
        name: its address and port, as ``lab.watch`` names its connection.
        texts: the messages that it has read.
        close_code: of the close frame that it has read, or None.
    """

    def __init__(self, host: HostLike, url: str = "ws://server.lab/chat", receive_buffer: int = 8192) -> None:
        self.texts: list[str] = []
        self.close_code: int | None = None
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri)
        with host:
            self._socket = socket.socket()
            self._socket.settimeout(TIMEOUT_S)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._socket.connect((uri.host, uri.port))
        address, port = self._socket.getsockname()
        self.name = f"{address}:{port}"
        self._protocol.send_request(self._protocol.connect())
        self._socket.sendall(b"".join(self._protocol.data_to_send()))
        while self._protocol.state is State.CONNECTING:
            self._take(self._socket.recv(1))  # no byte of what comes behind the response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: object, traceback: TracebackType | None) -> None:
        self._socket.close()

    def _take(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.texts.append(bytes(event.data).decode())
            elif isinstance(event, Frame) and event.opcode is Opcode.CLOSE and self._protocol.close_rcvd is not None:
                self.close_code = self._protocol.close_rcvd.code

    def read(self, until: Callable[[Self], object]) -> None:
        """Begin to read, with a larger buffer, until that holds or the server has closed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 500_000)
        while not until(self) and self.close_code is None and self._protocol.state is not State.CLOSED:
            self._take(self._socket.recv(65536))


def numbered(number: int) -> str:
    """A message of 10 kB that begins with its number."""
    return f"{number} ".ljust(SIZE, ".")


def number_of(text: str) -> int:
    """The number that a message begins with."""
    return int(text.partition(" ")[0])


def publish(
    listeners: Sequence[Listener],
    count: int,
    stuck: Callable[[], object] = lambda: False,
    after_batch: Callable[[int], object] = lambda sent: None,
) -> int:
    """The first of the listeners says numbered messages, ten at a time; the next ten when all listeners have these.

    Args:
        listeners: all that read.
        count: how many messages.
        stuck: gives up when it holds.
        after_batch: called with the number of messages so far.

    Returns:
        how many were said.
    """
    for begin in range(0, count, BATCH):
        end = min(begin + BATCH, count)
        for number in range(begin + 1, end + 1):
            listeners[0].say(numbered(number))
        wait_until(lambda end=end: all(len(each.texts) >= end for each in listeners) or stuck(), what="the next batch")  # type: ignore[misc]
        if not all(len(each.texts) >= end for each in listeners):
            return end
        after_batch(end)
    return count
