from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from labkit import InvalidValue, Lab
from labkit.servers import HttpServer, Request, Response

Connect = Callable[[int], socket.socket]


def echo(request: Request) -> Response:
    lines = [request.method, request.target, request.header("X-Word", "no word"), str(len(request.body))]
    return Response.text(" ".join(str(line) for line in lines))


@pytest.fixture
def server(lab: Lab) -> Iterator[HttpServer]:
    with HttpServer(lab.server, echo, port=0) as server:
        yield server


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


# Other people's clients.


@pytest.mark.parametrize("tls", [None, "1.2", "1.3", ("1.2", "1.3")])
def test_httpx(lab: Lab, tls: str | tuple[str, ...] | None) -> None:
    with HttpServer(lab.server, tls=tls, port=0) as server, lab.client:
        with httpx.Client(verify=lab.authority.client_context()) as client:
            first, second = client.get(server.url), client.post(server.url, content=b"x" * 100_000)
        assert (first.status_code, second.status_code) == (200, 200)
        version = {None: "no TLS", "1.2": "TLSv1.2"}.get(tls if not isinstance(tls, tuple) else "both", "TLSv1.3")
        assert version in first.text
        # One connection for both: keep-alive.
        assert len(server.log.of("connection")) == 1


@pytest.mark.parametrize(("tls", "expected"), [("1.2", "TLSv1.2"), ("1.3", "TLSv1.3")])
def test_curl(lab: Lab, require_program: Callable[[str], str], tls: str, expected: str) -> None:
    curl = [require_program("curl"), "-sS", "--cacert", str(lab.authority.ca_path)]
    only = ["--tlsv1.2", "--tls-max", "1.2"] if tls == "1.2" else ["--tlsv1.3"]
    with HttpServer(lab.server, tls=tls, port=0) as server:
        done = lab.client.run([*curl, *only, server.url, server.url]).check()
        assert done.stdout.count(expected) == 2
        assert len(server.log.of("connection")) == 1


def test_curl_refuses_without_the_authority(lab: Lab, require_program: Callable[[str], str]) -> None:
    with HttpServer(lab.server, tls="1.3", port=0) as server:
        done = lab.client.run([require_program("curl"), "-sS", "--cacert", "/dev/null", server.url])
        assert done.returncode in (60, 77)  # not to be trusted, or no authority at all
        server.close()
        assert server.log.of("request") == []


def test_curl_with_tcp_fast_open(lab: Lab, require_program: Callable[[str], str]) -> None:
    curl = [require_program("curl"), "-sS", "--tcp-fastopen"]
    with HttpServer(lab.server, fast_open=True, port=0) as server:
        lab.client.run([*curl, server.url]).check()
        before = lab.server.counters
        assert "no TLS" in lab.client.run([*curl, server.url]).check().stdout
        assert (lab.server.counters - before)["TcpExtTCPFastOpenPassive"] == 1


def test_curl_posts_a_large_body_after_100_continue(lab: Lab, require_program: Callable[[str], str]) -> None:
    curl = [require_program("curl"), "-sS", "--data-binary", "@-", "-H", "Expect: 100-continue"]
    with HttpServer(lab.server, echo, port=0) as server:
        done = lab.client.run([*curl, server.url], stdin=b"y" * 3_000_000).check()
        assert done.stdout == "POST / no word 3000000"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes(lab: Lab, require_program: Callable[[str], str], version: str) -> None:
    session = str(lab.directory / f"session{version}.pem")
    with HttpServer(lab.server, tls=("1.2", "1.3"), port=0) as server:
        base = [require_program("openssl"), "s_client", "-connect", f"{server.host.ip}:{server.port}", version]
        base += ["-CAfile", str(lab.authority.ca_path), "-verify_return_error", "-verify_hostname", server.host.fqdn]
        base += ["-ign_eof"]
        request = b"GET / HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n"
        first = lab.client.run([*base, "-sess_out", session], stdin=request).check()
        second = lab.client.run([*base, "-sess_in", session], stdin=request).check()
        assert "full handshake" in first.stdout
        assert "session resumed" in second.stdout


# HTTP/1.1.


def test_keep_alive_and_pipelined_requests(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = read_to_end(sock)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.index(b"GET /1") < answer.index(b"GET /2")


def test_http_1_0_ends_the_connection(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert read_to_end(sock).endswith(b"GET / no word 0")


def test_a_chunked_body_and_a_header(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(
        b"POST /p HTTP/1.1\r\nHost: a\r\nx-word: hi\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    sock.sendall(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert read_to_end(sock).endswith(b"POST /p hi 5")


def test_head_has_no_body(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = read_to_end(sock)
    assert b"content-length: 16" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


def test_what_is_no_http_gets_a_400_and_an_entry(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(b"hello?\r\n\r\n")
    assert read_to_end(sock).startswith(b"HTTP/1.1 400")
    server.close()
    assert server.log.of("error")[0].facts["exception"] == "RemoteProtocolError"


def test_a_body_that_is_too_large_gets_a_413(server: HttpServer, connect: Connect) -> None:
    sock = connect(server.port)
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n")
    sock.sendall(b"z" * ((16 << 20) + 1))
    assert read_to_end(sock).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_is_no_error(server: HttpServer, connect: Connect) -> None:
    connect(server.port).close()
    sock = connect(server.port)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_to_end(sock)
    server.close()
    assert server.log.of("error") == []


def boom(request: Request) -> Response:
    raise KeyError("learner")


def nothing(request: Request) -> Response:
    return None  # type: ignore[return-value]


def bad_header(request: Request) -> Response:
    return Response(headers=(("x", "a\r\nb"),))


def own_length(request: Request) -> Response:
    return Response(headers=(("Content-Length", "3"),))


def bad_status(request: Request) -> Response:
    return Response(99)


def text_body(request: Request) -> Response:
    return Response(body="text")  # type: ignore[arg-type]


@pytest.mark.parametrize("handler", [boom, nothing, bad_header, own_length, bad_status, text_body])
def test_a_handler_that_fails_gives_a_500_and_the_server_goes_on(
    lab: Lab, handler: Callable[[Request], Response]
) -> None:
    with HttpServer(lab.server, handler, port=0) as server, lab.client, httpx.Client() as client:
        for _ in range(2):
            answer = client.get(server.url)
            assert answer.status_code == 500
            assert "the handler raised" in answer.text
        errors = server.log.of("error")
        assert len(errors) == 2
        assert "Traceback" in errors[0].facts["traceback"]


def test_empty_responses(lab: Lab) -> None:
    with HttpServer(lab.server, lambda _: Response(204), port=0) as server, lab.client, httpx.Client() as client:
        assert [client.get(server.url).status_code for _ in range(2)] == [204, 204]
        assert len(server.log.of("connection")) == 1


def test_handlers_run_on_the_servers_host_side_by_side(lab: Lab) -> None:
    both_are_here = threading.Barrier(2, timeout=10)

    def handler(request: Request) -> Response:
        both_are_here.wait()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((lab.client.ip, 9))
            return Response.text(str(sock.getsockname()[0]))

    with HttpServer(lab.server, handler, port=0) as server, lab.client:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(httpx.get(server.url).text)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [lab.server.ip] * 2


def test_nagle_is_off_on_the_listener_s_connections(lab: Lab, connect: Connect) -> None:
    seen: list[int] = []

    class Curious(HttpServer):
        def _converse(self, connection: socket.socket, peer: str) -> None:
            seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super()._converse(connection, peer)

    with Curious(lab.server, port=0) as server, lab.client:
        httpx.get(server.url)
    assert seen == [1]


def test_a_tls_client_is_told_the_end(lab: Lab, connect: Connect) -> None:
    with HttpServer(lab.server, tls="1.3", port=0) as server:
        context = lab.authority.client_context()
        with context.wrap_socket(connect(server.port), server_hostname="server.lab", suppress_ragged_eofs=False) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            # A cut connection would raise SSLEOFError.
            assert read_to_end(tls).startswith(b"HTTP/1.1 200")
            tls.unwrap()


def test_plain_http_to_a_tls_port_is_an_entry(lab: Lab, connect: Connect) -> None:
    with HttpServer(lab.server, tls="1.3", port=0) as server:
        sock = connect(server.port)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        read_to_end(sock)
        server.close()
        assert server.log.of("error")[0].facts["exception"] == "SSLError"


@pytest.mark.parametrize("tls", ["1.1", "", (), ("1.2", "2")])
def test_tls_versions_that_cannot_be(lab: Lab, tls: str | tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue, match="choose from"):
        HttpServer(lab.server, tls=tls)


def test_default_ports_and_names(lab: Lab) -> None:
    with HttpServer(lab.server) as plain, HttpServer(lab.server, tls="1.3", fast_open=True) as tls:
        assert (plain.url, tls.url) == ("http://server.lab:80/", "https://server.lab:443/")
        assert repr(plain) == "<HttpServer http://server.lab:80/ HTTP/1.1, open, 0 log entries>"
        assert "TLS 1.3 fast open, open" in repr(tls)
    assert "closed" in repr(plain)
