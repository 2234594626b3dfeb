"""Which of a browser's requests a page lets through to a lab's server, and as what. Knows no socket.

Whoever has the link gets in, as with Jupyter's own: the secret in it buys a cookie (RFC 6265), and nothing is answered
without one. Another web site cannot use the browser's cookie (``Origin``, RFC 6454; ``Sec-Fetch-Site``, W3C Fetch
Metadata), nor can a name of its own that leads to 127.0.0.1: a cookie holds for the Host that it was given to.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus

import h11

# Not "token": Jupyter, where it stands in between, takes that for its own. "token" within it keeps it out of its log.
TOKEN = "page_token"
# What browsers, and proxies before us, add that is nobody's business on the wire, where captures are kept and shown:
# where the learner and the notebook server are, and cookies that open Jupyter.
PRIVATE_HEADERS = re.compile(r"forwarded|via|referer|x-(forwarded-.*|real-ip|scheme|request-id|proxycontextpath)")
PRIVATE_COOKIES = re.compile(r"labkit-page-|username-|jupyter|_xsrf")
CONTEXT_PATH = re.compile(r"/[\w/.~%@!$&'()*+,:=-]*", re.ASCII)


class Refused(Exception):
    """A request that does not reach the server, and the answer to it."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}

    def response(self) -> bytes:
        """All of it, as it goes to the browser."""
        body = f"{self.status}: {self}\n".encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        headers |= {"Cache-Control": "no-store", "Connection": "close", **self.headers}
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Admission:
    """The rules of one page.

    Args:
        port: where the page listens on this machine.
        origin: of the server behind it, "http://server.lab:8000".

    Attributes:
        secret: what the link must have as ``page_token``.
    """

    def __init__(self, port: int, origin: str) -> None:
        self.secret = secrets.token_hex(24)
        self._port = port
        self._origin = origin
        self._cookie = f"labkit-page-{port}"  # cookies don't know ports (RFC 6265, section 8.5)

    def admit(self, request: h11.Request) -> h11.Request:
        """The request as the server gets it.

        Raises:
            Refused: it has no business here; or it brought the secret, and has to come again with the cookie.
        """
        given = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        target, host = request.target.decode("ascii"), given.get("host", "").lower()
        if not target.startswith("/"):
            raise Refused(400, f"{request.method.decode('ascii')} {target}: this is no proxy, ask for a path")
        _refuse_other_sites(given, host)
        local = host in (f"127.0.0.1:{self._port}", f"localhost:{self._port}")
        path, _, query = target.partition("?")
        query, brought = _without_secrets(query, local)
        if any(_same(value, self.secret) for value in brought):
            raise self._admitted(path, query, host, "/" if local else self._prefix(host, given))
        cookies = [pair.strip() for pair in given.get("cookie", "").split(";")]
        if not any(_same(cookie, f"{self._cookie}={self._stamp(host)}") for cookie in cookies):
            raise Refused(
                403, "open this page by its link in the notebook: run the cell again, and click what it shows"
            )
        return h11.Request(method=request.method, target=path + query, headers=self._for_server(request, cookies))

    def _for_server(self, request: h11.Request, cookies: list[str]) -> list[tuple[bytes, bytes]]:
        """The headers that go onto the wire."""
        own = "; ".join(cookie for cookie in cookies if not PRIVATE_COOKIES.match(cookie))
        changed = {"host": self._origin.rpartition("//")[2], "origin": self._origin, "cookie": own}
        headers = []
        for raw_name, raw_value in request.headers.raw_items():
            name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
            value = changed.get(name, value)
            for_jupyter = name == "authorization" and value.lower().startswith("token ")  # no other server's scheme
            # Of what a connection may be turned into, browsers know WebSockets alone (RFC 6455, section 4.1).
            unknown = name == "upgrade" and value.lower() != "websocket"
            if value and not (PRIVATE_HEADERS.fullmatch(name) or for_jupyter or unknown):
                headers.append((raw_name, value.encode("latin-1")))
        return headers

    def _admitted(self, path: str, query: str, host: str, prefix: str) -> Refused:
        """The answer to the secret: the same place with a cookie, so that the secret stays in no history."""
        return Refused(
            307,
            "the same, without the secret",
            {
                # Relative, because what is before the path here only the proxy knows (RFC 9110, section 10.2.2).
                "Location": f"./{path.rpartition('/')[2]}{query}",
                # Not Strict: a browser comes here by a link on JupyterLab's site.
                "Set-Cookie": f"{self._cookie}={self._stamp(host)}; Path={prefix}; HttpOnly; SameSite=Lax",
                "Referrer-Policy": "no-referrer",
            },
        )

    def _stamp(self, host: str) -> str:
        """The cookie's value for a browser that knows this page by that Host."""
        return hmac.new(self.secret.encode(), host.encode("latin-1"), "sha256").hexdigest()

    def _prefix(self, host: str, given: Mapping[str, str]) -> str:
        """Below which path this page is found, for a request that came through jupyter-server-proxy."""
        prefix = given.get("x-proxycontextpath", "")
        if not CONTEXT_PATH.fullmatch(prefix) or not re.search(rf"/proxy/([^/]*:)?{self._port}$", prefix):
            raise Refused(403, f"asked as {host!r}: this page answers as 127.0.0.1 and through jupyter-server-proxy")
        return f"{prefix}/"


class Requests:
    """The requests of one connection. Each is admitted for itself: a browser shares a connection that is kept alive
    between all that asks for something there, other sites included.

    Args:
        admit: what becomes of a request's head; may raise Refused.
    """

    def __init__(self, admit: Callable[[h11.Request], h11.Request]) -> None:
        self._admit = admit
        self._switched = False
        self._next_request()

    def _next_request(self) -> None:
        self._from_browser, self._to_server = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)

    def receive(self, data: bytes) -> bytes:
        """What the server gets for these bytes of the browser's, maybe nothing yet. Raises Refused."""
        if self._switched:
            return data
        sent = []
        try:
            self._from_browser.receive_data(data)
            while isinstance(event := self._from_browser.next_event(), h11.Request | h11.Data | h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    event = self._admit(event)
                    self._switched = any(name == b"upgrade" for name, _ in event.headers)
                sent.append(self._to_server.send(event) or b"")
                if isinstance(event, h11.EndOfMessage):
                    following, _ = self._from_browser.trailing_data
                    if self._switched:  # what follows is no HTTP
                        return b"".join([*sent, following])
                    self._next_request()
                    if following:  # nothing would mean the end
                        self._from_browser.receive_data(following)
        except h11.RemoteProtocolError as exc:
            raise Refused(exc.error_status_hint, f"this is no HTTP/1.1: {exc}") from exc
        return b"".join(sent)


def _refuse_other_sites(given: Mapping[str, str], host: str) -> None:
    if given.get("origin", f"//{host}").lower().rpartition("//")[2] != host:
        raise Refused(403, f"a page of {given['origin']} asked, which is another site than {host}")
    same_site = given.get("sec-fetch-site", "none") in ("none", "same-origin")
    if not same_site and given.get("sec-fetch-mode") != "navigate":
        raise Refused(403, "a page of another site asked, says the browser (Sec-Fetch-Site)")


def _without_secrets(query: str, local: bool) -> tuple[str, list[str]]:
    """The query as the server gets it, with its question mark, and the secrets that stood in it."""
    parameters = [part.partition("=") for part in query.split("&")]
    # Jupyter leaves its own token in the URL when it hands a request on.
    private = (TOKEN,) if local else (TOKEN, "token")
    kept = "&".join("".join(part) for part in parameters if part[0] not in private)
    return f"?{kept}" if kept else "", [value for name, _, value in parameters if name == TOKEN]


def _same(given: str, expected: str) -> bool:
    """Compare in a time that tells nothing about where they differ."""
    return hmac.compare_digest(given.encode("latin-1"), expected.encode("latin-1"))
