"""A lab's server in a browser of this machine: by itself, behind a real Jupyter server, in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
import websockets
from websockets.sync.client import connect as open_websocket
from websockets.sync.server import ServerConnection, serve

import labkit.servers.page as module
from labkit import InvalidValue, Lab, LabClosed
from labkit.servers import Http3Server, HttpServer, Page, Request, Response
from labkit.servers.admission import TOKEN

ROOT = Path(__file__).resolve().parents[2]
WAIT_MS = 60_000
Leftovers = Callable[[], set[str]]
Converse = Callable[[socket.socket], None]


def page_of(request: Request) -> Response:
    """What the server was asked, all of it."""
    body = {"method": request.method, "target": request.target, "body": request.body.decode()}
    return Response(200, (("content-type", "application/json"),), json.dumps(body | dict(request.headers)).encode())


@pytest.fixture
def server(lab: Lab) -> Iterator[HttpServer]:
    with HttpServer(lab.server, page_of, port=0) as server:
        yield server


@pytest.fixture
def page(server: HttpServer) -> Iterator[Page]:
    with Page(server) as page:
        yield page


@pytest.fixture
def browser(page: Page) -> Iterator[httpx.Client]:
    """A client that has opened the link."""
    with httpx.Client(base_url=f"http://127.0.0.1:{page.port}", timeout=30) as client:
        assert client.get(page.url).status_code == 307
        yield client


def secret_of(page: Page) -> str:
    return page.url.partition(f"{TOKEN}=")[2]


@contextlib.contextmanager
def handmade(lab: Lab, converse: Converse) -> Iterator[int]:
    """A server that labkit did not make, on a port of lab.server; it serves one client after the other."""

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(30)
                    converse(connection)

    with lab.server:
        listener = socket.create_server((lab.server.ip, 0))
    with listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def own_headers(page: Page) -> str:
    """Of a request of the page's own: the right Host, and the cookie that the link has bought."""
    cookie = httpx.get(page.url).headers["set-cookie"].partition(";")[0]
    return f"Host: 127.0.0.1:{page.port}\r\nCookie: {cookie}\r\n"


def head_of(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1) or b"\r\n\r\n"
    return head


# Who may come in.


def test_the_link_buys_a_cookie_and_the_cookie_opens(page: Page, server: HttpServer) -> None:
    with httpx.Client(follow_redirects=True) as client:
        answer = client.get(page.url)
        assert [step.status_code for step in (*answer.history, answer)] == [307, 200]
        cookie = answer.history[0].headers["set-cookie"]
        assert cookie.startswith(f"labkit-page-{page.port}=")
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax")
        again = client.get(f"http://127.0.0.1:{page.port}/a/b?c=d&e").json()
    assert again["target"] == "/a/b?c=d&e"
    assert again["method"] == "GET"
    assert len(server.log.of("request")) == 2


@pytest.mark.parametrize("path", ["/", "/index", "/a/b/", "/a:b", "/a?b=c&d", "/a/?b=c/d"])
def test_the_redirect_leads_to_where_the_link_did(server: HttpServer, path: str) -> None:
    with Page(server, path=path) as page, httpx.Client(follow_redirects=True) as client:
        answer = client.get(page.url)
        assert answer.json()["target"] == path
        assert str(answer.url) == f"http://127.0.0.1:{page.port}{path}"


def test_the_redirect_leads_to_no_other_site(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
        target = f"//other.example/x?{TOKEN}={secret_of(page)}"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        assert b"\r\nLocation: ./x\r\n" in head_of(sock)


@pytest.mark.parametrize("query", ["", f"?{TOKEN}=", f"?{TOKEN}=" + "0" * 48, "?token=SECRET", f"?{TOKEN}=%C3%A9"])
def test_nothing_is_answered_without_the_secret(page: Page, server: HttpServer, query: str) -> None:
    query = query.replace("SECRET", secret_of(page))
    for cookie in ("", "0" * 64, secret_of(page), "é"):
        headers = {b"Cookie": f"labkit-page-{page.port}={cookie}".encode()} if cookie else {}
        answer = httpx.get(f"http://127.0.0.1:{page.port}/{query}", headers=headers)
        assert answer.status_code == 403
        assert "open this page by its link in the notebook" in answer.text
        assert "set-cookie" not in answer.headers
    assert server.log.of("connection") == []


def test_a_wrong_secret_with_the_cookie_is_taken_away(browser: httpx.Client) -> None:
    assert browser.get(f"/x?a=b&{TOKEN}=old&c").json()["target"] == "/x?a=b&c"


def test_neither_secret_nor_cookie_goes_on_the_wire_or_into_the_log(lab: Lab, page: Page, server: HttpServer) -> None:
    cookies = {"_xsrf": "a", "username-127-0-0-1-8888": "b", "jupyterhub-session-id": "c", "labkit-page-1": "d"}
    private = {"Authorization": "token jupyters", "Referer": "https://hub.example/", "X-Forwarded-For": "192.0.2.1"}
    with lab.capture() as capture, httpx.Client(follow_redirects=True, cookies=cookies | {"session": "mine"}) as client:
        asked = client.get(page.url, headers={**private, "X-Word": "kept"}).json()
        cookie = client.cookies[f"labkit-page-{page.port}"]
    assert (asked["cookie"], asked["x-word"], asked["host"]) == ("session=mine", "kept", f"server.lab:{server.port}")
    assert not {name.lower() for name in private} & asked.keys()
    sent = b"".join(transit.data for transit in capture.transits)
    assert b"session=mine" in sent
    assert secret_of(page).encode() not in sent
    assert cookie.encode() not in sent
    told = repr(list(page.log)) + repr([entry.facts for entry in page.log])
    assert secret_of(page) not in told
    assert cookie not in told
    assert [entry.text for entry in page.log.of("request")] == ["GET /"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Origin": "http://other.example"}, "page of http://other.example asked"),
        ({"Origin": "http://127.0.0.1:1"}, "page of http://127.0.0.1:1 asked"),
        ({"Origin": "null"}, "page of null asked"),
        ({"Origin": ""}, "another site"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "Sec-Fetch-Site"),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "Sec-Fetch-Site"),
        ({"Host": "other.example"}, "open this page by its link"),  # a browser would not even send the cookie
        ({"Host": "localhost:PORT"}, "open this page by its link"),  # the same machine, but the cookie of another name
    ],
)
def test_other_sites_and_other_names_are_refused(
    page: Page, server: HttpServer, browser: httpx.Client, headers: dict[str, str], reason: str
) -> None:
    headers = {name: value.replace("PORT", str(page.port)) for name, value in headers.items()}
    answer = browser.get("/", headers=headers)
    assert answer.status_code == 403
    assert reason in answer.text
    assert server.log.of("connection") == []


def test_the_secret_under_another_name_is_refused(page: Page) -> None:
    """DNS rebinding: a name of somebody else's that leads here. And headers only our own proxy would set."""
    for context in (
        "",
        "/proxy/1",
        f"/proxy/{page.port}; Path=/",
        f"https://x/proxy/{page.port}",
        f"/proxy/1{page.port}",
    ):
        headers = {"Host": f"other.example:{page.port}"} | ({"X-ProxyContextPath": context} if context else {})
        answer = httpx.get(page.url, headers=headers)
        assert answer.status_code == 403
        assert "asked as 'other.example" in answer.text
        assert "set-cookie" not in answer.headers


def test_as_the_proxy_of_a_hub_asks(page: Page, server: HttpServer) -> None:
    prefix = f"/user/ada%40b/proxy/{page.port}"
    host = {"Host": "hub.example"}
    answer = httpx.get(f"{page.url}&token=jupyters&x=y", headers={**host, "X-ProxyContextPath": prefix})
    assert (answer.status_code, answer.headers["location"]) == (307, "./?x=y")
    cookie, _, attributes = answer.headers["set-cookie"].partition("; ")
    assert attributes.startswith(f"Path={prefix}/;")
    url, own = f"http://127.0.0.1:{page.port}/?token=jupyters&x=y", {**host, "Cookie": cookie}
    asked = httpx.post(url, headers={**own, "Origin": "https://hub.example"}).json()
    assert (asked["target"], asked["origin"]) == ("/?x=y", f"http://server.lab:{server.port}")
    assert "cookie" not in asked
    assert httpx.get(url, headers={**own, "Host": f"127.0.0.1:{page.port}"}).status_code == 403


def test_links_from_other_sites_and_the_pages_own_requests_come_in(page: Page, browser: httpx.Client) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Origin": f"http://127.0.0.1:{page.port}"},
    ):
        assert browser.get("/", headers=headers).status_code == 200


def test_each_request_of_a_connection_is_admitted_for_itself(page: Page, server: HttpServer) -> None:
    own = own_headers(page)
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
        for number in range(2):
            sock.sendall(f"GET /{number} HTTP/1.1\r\n{own}\r\n".encode())
            assert json.loads(_body(sock))["target"] == f"/{number}"
        sock.sendall(f"GET /without HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        assert sock.recv(1) == b""
    # Two at once: the second is smuggled in the first one's packet.
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
        bare = f"GET /without HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n"
        sock.sendall(f"GET /with HTTP/1.1\r\n{own}\r\n{bare}".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 403")
    # An upgrade to anything but a WebSocket would be a way around.
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
        sock.sendall(f"GET /h2c HTTP/1.1\r\n{own}Connection: upgrade\r\nUpgrade: h2c\r\n\r\n".encode())
        assert "upgrade" not in json.loads(_body(sock))
        sock.sendall(bare.encode())
        assert sock.recv(1) == b""
    assert [entry.text for entry in server.log.of("request")] == ["GET /0", "GET /1", "GET /h2c"]


def _body(sock: socket.socket) -> bytes:
    head = head_of(sock)
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert found, head
    body = b""
    while len(body) < int(found[1]):
        body += sock.recv(int(found[1]) - len(body))
    return body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET http://server.lab/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT server.lab:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
)
def test_what_is_no_request_for_a_page(page: Page, sent: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
        sock.sendall(sent)
        assert sock.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


# What comes through.


def test_bodies_of_either_kind_and_size(browser: httpx.Client) -> None:
    large = "x" * 3_000_000
    assert browser.post("/", content=large).json()["body"] == large
    asked = browser.put("/", content=(part.encode() for part in ("a" * 70_000, "b", "c"))).json()
    assert asked["body"] == "a" * 70_000 + "bc"
    assert asked["transfer-encoding"] == "chunked"
    assert browser.head("/").status_code == 200


def test_requests_cross_the_wire(lab: Lab, server: HttpServer) -> None:
    with lab.server:  # a block is no matter
        page = Page(server)
    with page, lab.capture() as capture:
        assert httpx.get(page.url, follow_redirects=True).status_code == 200
    assert "client" in str(capture.ladder())
    assert "GET /" in str(capture.ladder())
    with Page(server, client=lab.server) as page:
        assert httpx.get(page.url, follow_redirects=True).status_code == 200
    assert [entry.peer.partition(":")[0] for entry in server.log.of("request")] == [lab.client.ip, lab.server.ip]


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_a_server_with_tls(lab: Lab, tls: str) -> None:
    with HttpServer(lab.server, page_of, tls=tls, port=0) as server:
        with Page(server) as page, httpx.Client(follow_redirects=True, timeout=30) as client:
            assert page.url.startswith("http://127.0.0.1:")
            assert client.get(page.url).json()["host"] == f"server.lab:{server.port}"
            large = "x" * 3_000_000
            assert client.post(f"http://127.0.0.1:{page.port}/", content=large).json()["body"] == large
        with Page(lab.server, server.port, tls=True) as page:
            assert httpx.get(page.url, follow_redirects=True).status_code == 200
        with Page(lab.server, server.port) as page:  # plain text to a TLS port: what the server says to that
            with contextlib.suppress(httpx.RemoteProtocolError):
                httpx.get(page.url, follow_redirects=True)
    assert not [entry for entry in server.log.of("error") if "SSL" not in entry.text]


def test_events_come_one_by_one(lab: Lab) -> None:
    read = threading.Event()

    def converse(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            connection.sendall(b"data: %d\n\n" % number)
            assert read.wait(30)  # and not before the browser has this one
            read.clear()

    with handmade(lab, converse) as port, Page(lab.server, port) as page:
        with httpx.Client(follow_redirects=True, timeout=30) as client, client.stream("GET", page.url) as stream:
            pieces = []
            for piece in stream.iter_raw():
                pieces.append(piece)
                read.set()
    assert pieces == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


def test_a_reader_that_is_gone_ends_the_stream(lab: Lab) -> None:
    ended = threading.Event()

    def converse(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n1")
        assert connection.recv(1) == b""
        ended.set()

    with handmade(lab, converse) as port, Page(lab.server, port) as page:
        with httpx.Client(follow_redirects=True, timeout=30) as client, client.stream("GET", page.url) as stream:
            assert next(stream.iter_raw()) == b"1"
        assert ended.wait(30)


def test_a_slow_reader_does_not_stop_the_other_direction(lab: Lab) -> None:
    """A relay that waits until the browser takes the response would not take the request, and hang."""
    size = 8 << 20  # more than the kernels' buffers hold

    def converse(connection: socket.socket) -> None:
        head_of(connection)
        answer = threading.Thread(target=connection.sendall, args=(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * size,))
        answer.start()
        got = 0
        while got < size and (piece := connection.recv(65536)):
            got += len(piece)
        answer.join(30)

    with handmade(lab, converse) as port, Page(lab.server, port) as page:
        head = f"POST / HTTP/1.1\r\n{own_headers(page)}Content-Length: {size}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
            sock.sendall(head.encode() + b"x" * size)  # and reads nothing before all of it is sent
            assert b"".join(iter(lambda: sock.recv(65536), b"")).endswith(b"\r\n\r\n" + b"y" * size)


@contextlib.contextmanager
def websocket_server(lab: Lab, tls: bool = False) -> Iterator[int]:
    """A page at "/" whose script talks to an echo at "/echo"."""

    def answer(connection: ServerConnection, request: Any) -> Any:
        if request.path == "/echo":
            return None
        response = connection.respond(200, WITH_SCRIPT)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html"
        return response

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    context = lab.authority.server_context("server.lab") if tls else None
    with lab.server:
        sock = socket.create_server((lab.server.ip, 0))
    with serve(echo, sock=sock, ssl=context, process_request=answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(30)


WITH_SCRIPT = """<!DOCTYPE html><title>Echo</title><p id="said">nothing yet</p><script>
const socket = new WebSocket(new URL("echo", location).href.replace("http", "ws"));
socket.onopen = () => socket.send("heard over the wire");
socket.onmessage = event => { document.getElementById("said").textContent = event.data; };
</script>"""


@pytest.mark.parametrize("tls", [False, True])
def test_a_websocket_both_ways(lab: Lab, tls: bool) -> None:
    with websocket_server(lab, tls) as port, Page(lab.server, port, tls=tls) as page:
        url = f"ws://127.0.0.1:{page.port}/echo"
        cookie = {"Cookie": httpx.get(page.url).headers["set-cookie"].partition(";")[0]}
        own = f"http://127.0.0.1:{page.port}"
        with open_websocket(url, additional_headers=cookie, origin=own, max_size=None) as sock:  # type: ignore[arg-type]
            for message in ("hello", b"\0\1", "x" * 1_000_000):
                sock.send(message)
                assert sock.recv(30) == message
        for headers, origin in (({}, own), (cookie, "http://other.example"), (cookie, "http://127.0.0.1:1")):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
                open_websocket(url, additional_headers=headers, origin=origin)  # type: ignore[arg-type]


def test_a_server_that_is_not_there(page: Page, server: HttpServer, browser: httpx.Client) -> None:
    server.close()
    answer = browser.get("/")
    assert answer.status_code == 502
    assert f"client.lab cannot reach http://server.lab:{server.port}/" in answer.text
    assert "Run the cell" in answer.text


# Coming and going.


def test_it_shows_a_link(server: HttpServer, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "base_url", lambda: None)
    monkeypatch.setattr(module, "CONTAINER_MARKS", ())
    assert repr(page) == page.url == f"http://127.0.0.1:{page.port}/?{TOKEN}={secret_of(page)}"
    shown = page._repr_html_()
    assert shown == f'<a href="{page.url}" target="_blank" rel="noopener noreferrer">{page.url}</a>'
    with Page(server, path="/chat?room=1&name=a", name="other") as other:
        assert other.url == f"http://127.0.0.1:{other.port}/chat?room=1&name=a&{TOKEN}={secret_of(other)}"
        assert "room=1&amp;name=a&amp;" in other._repr_html_()
    page.close()
    assert repr(page) == f"<Page of http://server.lab:{server.port}/, closed>"
    assert page._repr_html_() == f"&lt;Page of http://server.lab:{server.port}/, closed&gt;"


def test_where_the_link_leads(page: Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CONTAINER_MARKS", ())
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    link = f"proxy/{page.port}/?{TOKEN}={secret_of(page)}"
    local = f"http://127.0.0.1:{page.port}/?{TOKEN}={secret_of(page)}"
    for text in ("", "{}", '{"base_url"'):  # no notebook server, or one that is about to say so
        monkeypatch.setenv("JPY_PARENT_PID", "1")
        (tmp_path / "jpserver-1.json").write_text(text)
        assert page._links() == [local]
    (tmp_path / "jpserver-1.json").write_text('{"base_url": "/my/"}')
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert page._links() == [local]
    monkeypatch.setattr(module, "find_spec", lambda name: "installed")
    assert page._links() == [local, f"/my/{link}"]
    assert page._repr_html_().count("href=") == 2
    monkeypatch.setattr(module, "CONTAINER_MARKS", (str(tmp_path),))
    assert page._links() == [f"/my/{link}", local]
    monkeypatch.setattr(module, "CONTAINER_MARKS", ())
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert page._links() == [page.url] == [f"/user/ada/{link}"]


def test_run_twice(server: HttpServer) -> None:
    first = Page(server)
    with Page(server) as second:
        assert first.closed
        assert not second.closed
        assert secret_of(second) not in repr(first)
        assert httpx.get(second.url, follow_redirects=True).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{first.port}/")


def test_it_listens_on_this_machine_only_and_not_afterwards(lab: Lab, server: HttpServer) -> None:
    with lab.client, Page(server) as page:  # a block is no matter
        mine = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [words[1] for words in mine if words[1].endswith(f":{page.port:04X}") and words[3] == "0A"] == [
            f"0100007F:{page.port:04X}"
        ]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", page.port))  # the lab's client
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", page.port))


def test_fifty_cycles_leave_nothing(server: HttpServer, leftovers: Leftovers) -> None:
    for _ in range(50):
        with Page(server) as page:
            assert httpx.get(page.url, follow_redirects=True).status_code == 200
    assert leftovers() == set()


def test_it_ends_with_the_lab_and_with_streams_that_run(leftovers: Leftovers, recwarn: pytest.WarningsRecorder) -> None:
    with Lab(rtt_ms=0) as lab, websocket_server(lab) as port:
        page = Page(lab.server, port)
        cookie = {"Cookie": httpx.get(page.url).headers["set-cookie"].partition(";")[0]}
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as silent:
            with open_websocket(f"ws://127.0.0.1:{page.port}/echo", additional_headers=cookie) as sock:
                sock.send("hello")
                assert sock.recv(30) == "hello"
                page.close()
                assert silent.recv(1) == b""
                with pytest.raises(websockets.exceptions.ConnectionClosedError):
                    sock.recv(30)
        another = Page(lab.server, port)
    assert another.closed
    with pytest.raises(LabClosed):
        Page(lab.server, port)
    assert leftovers() == set()
    assert not recwarn.list


@pytest.mark.parametrize("tls", [False, True])
def test_closing_while_it_connects(lab: Lab, tls: bool, leftovers: Leftovers, until: Callable[..., None]) -> None:
    """To a server that does not answer: one whose queue is full, or that says nothing to a ClientHello."""
    with lab.server:
        listener = socket.create_server((lab.server.ip, 0), backlog=0)
    with listener:
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as stack, Page(lab.server, port, tls=tls) as page:
            if not tls:
                lab.client.set_link(loss=1.0)
                stack.callback(lab.client.set_link, loss=0.0)
            head = f"GET / HTTP/1.1\r\n{own_headers(page)}\r\n"
            with socket.create_connection(("127.0.0.1", page.port), timeout=30) as sock:
                sock.sendall(head.encode())
                if tls:
                    with listener.accept()[0] as accepted:
                        assert accepted.recv(1) == b"\x16"
                        page.close()
                else:
                    until(lambda: page._to_server and page.log.of("request"))
                    page.close()
                assert sock.recv(65536)[:12] in (b"", b"HTTP/1.1 502")
    assert leftovers() == set()


def test_values_that_cannot_be(lab: Lab, server: HttpServer, leftovers: Leftovers) -> None:
    for port in (None, 0, -1, 65536, "80", True):
        with pytest.raises(InvalidValue, match=rf"port={port!r}: give a whole number"):
            Page(lab.server, port)  # type: ignore[arg-type]
    for path in ("", "chat", "/#a", "/a b", "/é", None):
        with pytest.raises(InvalidValue, match=repr(path)):
            Page(server, path=path)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="knows both"):
        Page(server, 80)
    with pytest.raises(InvalidValue, match=r"page of 'http://server\.lab/': give a server"):
        Page("http://server.lab/")  # type: ignore[arg-type]
    with Http3Server(lab.server, port=0) as quic, pytest.raises(InvalidValue, match="over TCP"):
        Page(quic)
    assert leftovers() == set()


# Behind a real Jupyter server.

NOTEBOOK = """
from labkit import Lab
from labkit.servers import HttpServer, Page, Response
lab = Lab(rtt_ms=0, name="lab")
server = HttpServer(lab.server, lambda request: Response.text(f"{request.method} {request.target} is here"))
Page(server, path="/hello")
"""


@pytest.fixture(scope="module")
def jupyter(jupyterlab_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A JupyterLab with jupyter-server-proxy, below a path of its own: what it says about itself."""
    home = tmp_path_factory.mktemp("jupyter")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK.strip())])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, home / "page.ipynb")
    words = ["--ServerApp.base_url=/user/ada/", "--IdentityProvider.token=jupyters-own"]
    with jupyterlab_in(home, *words, PYTHONPATH=str(ROOT)) as about:
        yield about


def test_through_jupyter_server_proxy(jupyter: dict[str, Any], page: Page, server: HttpServer) -> None:
    """Both secrets are needed, and neither the one nor the other gets to the server or into Jupyter's log."""
    url = f"{jupyter['url']}proxy/{page.port}/"
    link = f"{url}?{TOKEN}={secret_of(page)}"
    token = {"Authorization": f"token {jupyter['token']}"}
    assert "/user/ada/login" in httpx.get(link).headers["location"]
    assert httpx.get(url, headers=token).status_code == 403
    with httpx.Client(headers=token, timeout=30) as client:
        answer = client.get(link)
        assert answer.status_code == 307
        assert f"; Path=/user/ada/proxy/{page.port}/; HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
        asked = client.get(str(answer.next_request.url) if answer.next_request else "", follow_redirects=True).json()
        posted = client.post(f"{url}a?b=c", content="body").json()
    assert (asked["method"], asked["target"]) == ("GET", "/")
    assert (posted["method"], posted["target"], posted["body"]) == ("POST", "/a?b=c", "body")
    assert not {"authorization", "cookie", "referer", "x-proxycontextpath", "x-forwarded-prefix"} & asked.keys()
    assert asked["host"] == f"server.lab:{server.port}"
    assert secret_of(page) not in Path(jupyter["log"]).read_text()


def test_events_come_one_by_one_through_jupyter_server_proxy(lab: Lab, jupyter: dict[str, Any]) -> None:
    read = threading.Event()

    def converse(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            connection.sendall(b"data: %d\n\n" % number)
            assert read.wait(30)
            read.clear()

    headers = {"Authorization": f"token {jupyter['token']}", "Accept": "text/event-stream"}
    with handmade(lab, converse) as port, Page(lab.server, port) as page:
        link = f"{jupyter['url']}proxy/{page.port}/?{TOKEN}={secret_of(page)}"
        with httpx.Client(headers=headers, follow_redirects=True, timeout=30) as client:
            with client.stream("GET", link) as stream:
                pieces = []
                for piece in stream.iter_raw():
                    pieces.append(piece)
                    read.set()
    assert b"".join(pieces) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_a_websocket_in_a_real_browser(lab: Lab, chromium: Any, jupyter: dict[str, Any]) -> None:
    """Locally and through Jupyter, in which the browser is logged in."""
    with websocket_server(lab) as port, Page(lab.server, port) as page:
        tab = chromium.new_context().new_page()
        tab.goto(f"{jupyter['url']}?token={jupyter['token']}", timeout=WAIT_MS)
        for url in (f"http://127.0.0.1:{page.port}/", f"{jupyter['url']}proxy/{page.port}/"):
            tab.goto(f"{url}?{TOKEN}={secret_of(page)}", timeout=WAIT_MS)
            tab.get_by_text("heard over the wire").wait_for(timeout=WAIT_MS)
            assert tab.url == url
            tab.reload()
            tab.get_by_text("heard over the wire").wait_for(timeout=WAIT_MS)
        # Another page on this machine, which the browser takes for the same site: it gets no WebSocket.
        with Page(lab.server, port, name="stranger") as stranger:
            tab.goto(f"http://127.0.0.1:{stranger.port}/?{TOKEN}={secret_of(stranger)}", timeout=WAIT_MS)
            script = """url => new Promise(say => {
                const socket = new WebSocket(url);
                socket.onopen = () => say("open");
                socket.onerror = () => say("refused");
            })"""
            assert tab.evaluate(script, f"ws://127.0.0.1:{page.port}/echo") == "refused"
            assert tab.evaluate(script, f"ws://127.0.0.1:{stranger.port}/echo") == "open"
        tab.context.close()


def test_the_links_in_a_notebook(chromium: Any, jupyter: dict[str, Any]) -> None:
    """As a learner does: run the cell, click what it shows, once for each place that the browser can be in."""
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(f"{jupyter['url']}lab/tree/page.ipynb?token={jupyter['token']}&reset", timeout=WAIT_MS)
    tab.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=WAIT_MS)
    tab.wait_for_function(
        """async () => {
            const panel = window.jupyterapp.shell.currentWidget;
            if (!panel?.context?.path?.endsWith("page.ipynb")) return false;
            await panel.sessionContext.ready;
            const kernel = panel.sessionContext.session?.kernel;
            await kernel?.info;
            await kernel?.requestCommInfo({target_name: "jupyter.widget"});  // a status may have been missed
            return kernel?.status === "idle";
        }""",
        timeout=WAIT_MS,
    )
    tab.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    links = tab.locator(".jp-OutputArea a")
    links.last.wait_for(timeout=WAIT_MS)
    assert links.count() == 2
    for text, start in (("http", r"http://127\.0\.0\.1:\d+/"), ("/user", re.escape(jupyter["url"]) + r"proxy/\d+/")):
        with context.expect_page(timeout=WAIT_MS) as opened:
            links.filter(has_text=re.compile(f"^{text}")).click()
        opened.value.get_by_text("GET /hello is here").wait_for(timeout=WAIT_MS)
        assert re.fullmatch(start + "hello", opened.value.url)
    context.close()
