"""Conversations over TCP and UDP without encryption. Every function takes a ``Recorder``."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from peers import DEADLINE_S, REQUEST, RESPONSE, answer, ask, connect, listen, read_until, serving
from recorder import Recorder


def http(recorder: Recorder) -> None:
    with serving(listen(recorder), answer), connect(recorder) as client:
        ask(client)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def http_head_in_two_writes(recorder: Recorder) -> None:
    with serving(listen(recorder), answer), connect(recorder) as client:
        client.sendall(REQUEST[:21])
        client.sendall(REQUEST[21:])
        read_until(client, b"hello")


def http_pipelined(recorder: Recorder) -> None:
    def serve(connection: socket.socket) -> None:
        data = b""
        while data.count(b"\r\n\r\n") < 2:
            data += connection.recv(65536)
        connection.sendall(RESPONSE)
        connection.sendall(RESPONSE)

    with serving(listen(recorder), serve), connect(recorder) as client:
        client.sendall(REQUEST + REQUEST.replace(b"/hello", b"/again"))
        while client.recv(65536):
            pass


def http_large(recorder: Recorder) -> None:
    body = bytes(range(256)) * 200

    def serve(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with serving(listen(recorder), serve), connect(recorder) as client:
        client.sendall(REQUEST)
        received = b""
        while more := client.recv(65536):
            received += more
        assert received.endswith(body)


def refused(recorder: Recorder) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        connect(recorder).close()


def udp(recorder: Recorder) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", recorder.port))
        client.sendto(b"ping", ("127.0.0.1", recorder.port))
        _, address = server.recvfrom(100)
        server.sendto(b"pong!", address)
        client.recvfrom(100)
        client.sendto(b"nobody is there", ("127.0.0.1", 9))


# Losses and Fast Open ----------------------------------------------------------------------------------


def lost_request(recorder: Recorder) -> None:
    """The first copy of the request is lost; the kernel sends it again."""
    accepted = threading.Event()
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        accepted.set()
        answer(connection)

    with serving(listen(recorder), serve), connect(recorder) as client:
        accepted.wait(DEADLINE_S)
        with recorder.losing(connections[0], client):
            client.sendall(REQUEST)
        read_until(client, b"hello")


def lost_and_never_repeated(recorder: Recorder) -> None:
    """A request is lost, and the client gives up before it sends it again."""
    connections, accepted, done = [], threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        accepted.set()
        done.wait(DEADLINE_S)

    with serving(listen(recorder), serve):
        with connect(recorder) as client:
            accepted.wait(DEADLINE_S)
            with recorder.losing(connections[0], client):
                client.sendall(REQUEST)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        done.set()


def fast_open(recorder: Recorder) -> None:
    """The first connection fetches a cookie, the second sends its request in the SYN, the third's is refused."""
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
    listener = listen(recorder, fast_open=True)
    with serving(listener, answer, times=3):
        for number in range(3):
            if number == 2:  # the server no longer knows the cookies that it gave
                key = Path("/proc/sys/net/ipv4/tcp_fastopen_key")
                key.write_text("01234567-89abcdef-01234567-89abcdef")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as client:
                # Blocking: with a time-out the first call ends in EINPROGRESS, before there is a cookie.
                client.sendto(REQUEST, socket.MSG_FASTOPEN, ("127.0.0.1", recorder.port))
                client.settimeout(DEADLINE_S)
                assert read_until(client, b"hello") == RESPONSE
