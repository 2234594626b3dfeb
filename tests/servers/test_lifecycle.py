"""Opening and closing, the same for every server."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from labkit import InvalidValue, Lab, LabClosed, NameTaken
from labkit.handshakes.clients import Client, EarlyDataClient, QuicClient, TcpClient, TlsClient
from labkit.servers import EarlyDataServer, Http3Server, HttpServer, Request, Response, Server

Make = Callable[..., Any]


def https(*args: Any, **options: Any) -> HttpServer:
    return HttpServer(*args, tls="1.3", **options)


def http(*args: Any, **options: Any) -> HttpServer:
    return HttpServer(*args, **options)


MAKERS = pytest.mark.parametrize("make", [http, https, EarlyDataServer, Http3Server], ids=lambda make: make.__name__)
CLIENTS: dict[Make, type[Client]] = {
    http: TcpClient,
    https: TlsClient,
    EarlyDataServer: EarlyDataClient,
    Http3Server: QuicClient,
}


def test_a_thread_that_begins_after_an_interrupt_of_its_start_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to run in the middle of the closing that the interrupt has caused, and waits when that is over."""
    begin, close, select = threading.Thread.start, socket.socket.close, selectors.DefaultSelector.select
    late: list[threading.Thread] = []
    waits, closed = threading.Event(), threading.Event()

    def interrupted_start(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    def close_in_the_middle(sock: socket.socket) -> None:
        if late and late[0].ident is None:
            begin(late[0])
            while late[0].is_alive() and not waits.wait(0.01):
                pass
        close(sock)

    def select_when_all_is_closed(selector: Any, timeout: float | None = None) -> Any:
        waits.set()
        assert closed.wait(5)
        return select(selector, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted_start)
        patched.setattr(socket.socket, "close", close_in_the_middle)
        patched.setattr(selectors.DefaultSelector, "select", select_when_all_is_closed)
        with pytest.raises(KeyboardInterrupt):
            HttpServer(lab.server)
        closed.set()
        late[0].join(5)
    assert late[0].ident is not None, "it has begun"
    assert not late[0].is_alive(), "and ended"


@MAKERS
def test_fifty_cycles_leave_no_thread_and_no_descriptor(
    lab: Lab, make: Make, leftovers: Callable[[], set[str]]
) -> None:
    for _ in range(50):
        with make(lab.server, port=0) as server:
            assert CLIENTS[make](lab.client, server).fetch().status == 200
    assert leftovers() == set()


@MAKERS
def test_close_with_clients_that_are_connected_and_silent(
    lab: Lab, make: Make, leftovers: Callable[[], set[str]], recwarn: pytest.WarningsRecorder
) -> None:
    kind = socket.SOCK_DGRAM if make is Http3Server else socket.SOCK_STREAM
    with make(lab.server, port=0) as server:
        with lab.client:
            silent = [socket.socket(socket.AF_INET, kind) for _ in range(5)]
            for number, sock in enumerate(silent):
                sock.settimeout(10)
                sock.connect((lab.server.ip, server.port))
                if number % 2:
                    sock.send(b"\x16\x03\x01")  # the beginning of something
            CLIENTS[make](lab.client, server).fetch()
        server.close()
        for sock in silent:
            if kind == socket.SOCK_STREAM:
                try:
                    assert sock.recv(1) in (b"", b"H")  # the end; or "HTTP/1.1 400" to three bytes of nonsense
                except ConnectionResetError:
                    continue  # the end as well: the listener still held this one
        for sock in silent:
            sock.close()
    assert leftovers() == set()
    assert not recwarn.list


def test_close_with_a_kept_alive_connection(lab: Lab, leftovers: Callable[[], set[str]]) -> None:
    server = HttpServer(lab.server, port=0)
    with lab.client:
        sock = socket.create_connection((lab.server.ip, server.port), timeout=10)
    with sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        server.close()
        assert sock.recv(1) == b""
    assert leftovers() == set()


@MAKERS
def test_closing_while_requests_run(lab: Lab, make: Make, leftovers: Callable[[], set[str]]) -> None:
    running, go_on = threading.Event(), threading.Event()

    def handler(request: Request) -> Response:
        running.set()
        go_on.wait(10)
        return Response.text("late")

    def fetch() -> None:
        with pytest.raises(OSError, match=r".*"):
            CLIENTS[make](lab.client, server).fetch()

    server = make(lab.server, handler, port=0)
    client = threading.Thread(target=fetch)
    client.start()
    assert running.wait(10)
    closing = threading.Thread(target=server.close)
    closing.start()
    client.join()  # close cut its connection
    go_on.set()
    closing.join()
    assert leftovers() == set()


@MAKERS
def test_closing_twice_and_from_two_threads(lab: Lab, make: Make) -> None:
    server = make(lab.server, port=0)
    threads = [threading.Thread(target=server.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.close()
    assert server.closed
    assert "closed" in repr(server)


@MAKERS
def test_the_same_port_again_closes_the_predecessor(lab: Lab, make: Make) -> None:
    first = make(lab.server, port=4433)
    with make(lab.server, port=4433) as second:
        assert first.closed
        assert CLIENTS[make](lab.client, second).fetch().status == 200


def test_the_same_name_again_closes_the_predecessor(lab: Lab) -> None:
    first = HttpServer(lab.server, port=0, name="shop")
    with HttpServer(lab.server, port=0, name="shop") as second:
        assert first.closed
        assert not second.closed


def test_without_a_name_and_with_port_0_servers_stand_side_by_side(lab: Lab) -> None:
    with HttpServer(lab.server, port=0) as first, HttpServer(lab.server, port=0) as second:
        assert first.port != second.port
        assert not first.closed


@MAKERS
def test_a_port_that_is_taken(lab: Lab, make: Make, leftovers: Callable[[], set[str]]) -> None:
    kind = socket.SOCK_DGRAM if make is Http3Server else socket.SOCK_STREAM
    with lab.server:
        taken = socket.socket(socket.AF_INET, kind)
    with taken:
        taken.bind((lab.server.ip, 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NameTaken, match=rf"port {port}/.* on server is taken.*port=0"):
            make(lab.server, port=port)
    assert leftovers() == set()


@MAKERS
@pytest.mark.parametrize("port", [-1, 65536, 4433.0, "443", True])
def test_ports_that_cannot_be(lab: Lab, make: Make, port: Any, leftovers: Callable[[], set[str]]) -> None:
    with pytest.raises(InvalidValue, match=rf"port={port!r}"):
        make(lab.server, port=port)
    assert leftovers() == set()


@pytest.mark.parametrize("backlog", [-1, 1.5, None, True])
def test_backlogs_that_cannot_be(lab: Lab, backlog: Any) -> None:
    with pytest.raises(InvalidValue, match="backlog"):
        HttpServer(lab.server, port=0, backlog=backlog)


@MAKERS
def test_a_lab_closes_its_servers_and_a_closed_lab_opens_none(make: Make, leftovers: Callable[[], set[str]]) -> None:
    with Lab(rtt_ms=0) as lab:
        server: Server = make(lab.server, port=0)
        other: Server = make(lab.server, port=0)
        other.close()
    assert server.closed
    with pytest.raises(LabClosed):
        make(lab.server, port=0)
    assert leftovers() == set()


def test_ports_below_1024_and_the_clients_host(lab: Lab) -> None:
    with HttpServer(lab.client, port=80) as server:
        assert server.url == "http://client.lab:80/"
        assert TcpClient(lab.server, server).fetch().status == 200


def test_a_handler_may_close_its_own_server(lab: Lab, until: Callable[..., None]) -> None:
    def handler(request: Request) -> Response:
        server.close()
        return Response.text("never sent")

    server = HttpServer(lab.server, handler, port=0)
    with pytest.raises(ConnectionError):
        TcpClient(lab.client, server).fetch()
    until(lambda: server.closed)  # the client has heard of it before the handler's close() has returned
