"""Servers and clients in a few lines each, for the scenarios."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from recorder import Recorder

REQUEST = b"GET /hello HTTP/1.1\r\nHost: lab.test\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
DEADLINE_S = 20


def listen(recorder: Recorder, fast_open: bool = False) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if fast_open:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    listener.bind(("127.0.0.1", recorder.port))
    listener.listen()
    listener.settimeout(DEADLINE_S)
    return listener


def connect(recorder: Recorder) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", recorder.port), timeout=DEADLINE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


@contextlib.contextmanager
def serving(listener: socket.socket, serve: Callable[[socket.socket], None], times: int = 1) -> Iterator[None]:
    """Accept ``times`` connections in a thread; ``serve`` gets each. An error there fails the scenario."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(times):
                connection, _ = listener.accept()
                connection.settimeout(DEADLINE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with connection:
                    serve(connection)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)
        listener.close()
    if errors:
        raise errors[0]


def read_until(connection: Any, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = connection.recv(65536)
        if not more:
            break
        data += more
    return data


def answer(connection: Any) -> None:
    read_until(connection, b"\r\n\r\n")
    connection.sendall(RESPONSE)


def ask(connection: Any) -> None:
    connection.sendall(REQUEST)
    assert read_until(connection, b"hello") == RESPONSE
