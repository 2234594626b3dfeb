"""HTTP/1.1 over anything with recv and sendall: both ends, on top of h11, which knows the protocol and no socket.

Source: RFC 9112.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any, Protocol

import h11

from labkit import checks
from labkit.errors import InvalidValue
from labkit.servers.messages import MAX_BODY_BYTES, Headers, Request, Response

READ_BYTES = 65536


class Stream(Protocol):
    """A byte stream: a socket, or TLS over one."""

    def recv(self, max_bytes: int, /) -> bytes:
        """At least one byte, or b"" at the end of the stream."""

    def sendall(self, data: bytes, /) -> None: ...


class BodyTooLarge(Exception):
    """A request's body exceeds MAX_BODY_BYTES."""


def serve_http1(stream: Stream, respond: Callable[[Request], Response], facts: Callable[[], Mapping[str, Any]]) -> None:
    """Answer requests on one connection until one side ends it.

    Args:
        stream: the connection. Closing it is the caller's business.
        respond: the handler; it must not raise.
        facts: called after each request was read, for its ``facts``.

    Raises:
        h11.RemoteProtocolError: the client sent what is no HTTP/1.1; it got a 400.
        OSError: the connection broke or fell silent.
    """
    connection = h11.Connection(h11.SERVER)
    while True:
        try:
            request = _read_request(connection, stream, facts)
        except h11.RemoteProtocolError as exc:
            if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                _send_response(connection, stream, "GET", Response.text(f"bad request: {exc}\n", exc.error_status_hint))
            raise
        except BodyTooLarge:
            _send_response(connection, stream, "POST", Response.text("the body is too large\n", 413), last=True)
            return
        if request is None:
            return
        _send_response(connection, stream, request.method, respond(request))
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


def _read_request(connection: h11.Connection, stream: Stream, facts: Callable[[], Mapping[str, Any]]) -> Request | None:
    """The next request; None where the client has ended the connection instead."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                stream.sendall(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(stream.recv(READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise BodyTooLarge
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return Request(
                head.method.decode("ascii"),
                head.target.decode("ascii"),
                _decoded(head.headers),
                bytes(body),
                facts(),
            )
        else:
            return None


def _send_response(
    connection: h11.Connection, stream: Stream, method: str, response: Response, last: bool = False
) -> None:
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in complete_headers(response)]
    if last:
        headers.append((b"connection", b"close"))
    parts = [connection.send(h11.Response(status_code=response.status, headers=headers))]
    if method != "HEAD" and response.status not in (204, 304):
        parts.append(connection.send(h11.Data(data=response.body)))
    parts.append(connection.send(h11.EndOfMessage()))
    # In one call: two small writes would be two packets, and with Nagle's algorithm the second would wait.
    stream.sendall(b"".join(part or b"" for part in parts))


def complete_headers(response: Response) -> Headers:
    """The response's headers and those that every response has (RFC 9110, sections 6.6.1 and 8.6)."""
    given = {name.lower() for name, _ in response.headers}
    added = {"date": formatdate(usegmt=True)}
    if response.status not in (204, 304):
        added |= {"content-length": str(len(response.body)), "content-type": "application/octet-stream"}
    return response.headers + tuple((name, value) for name, value in added.items() if name not in given)


def _decoded(headers: Any) -> Headers:
    return tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in headers)


class ClientExchange:
    """The client's side of one request and its response; the connection ends after it.

    Args:
        authority: host and port for the Host header.

    Raises:
        InvalidValue: a method, target or header that HTTP/1.1 cannot carry.

    Attributes:
        request_bytes: the request as it goes over the wire.
    """

    def __init__(self, authority: str, method: str, target: str, body: bytes = b"", headers: Headers = ()) -> None:
        check_request(method, target)
        checks.octets("body", body, b"a=1")
        self._connection = h11.Connection(h11.CLIENT)
        own: Headers = (("host", authority), ("connection", "close"))
        if body or method in ("POST", "PUT", "PATCH"):
            own += (("content-length", str(len(body))),)
        try:
            encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in own + headers]
            head = h11.Request(method=method, target=target, headers=encoded)
            parts = [self._connection.send(head)]
            if body:
                parts.append(self._connection.send(h11.Data(data=body)))
            parts.append(self._connection.send(h11.EndOfMessage()))
        except (h11.LocalProtocolError, UnicodeError) as exc:
            raise InvalidValue(f"request {method!r} {target!r}: {exc}") from exc
        self.request_bytes = b"".join(part or b"" for part in parts)

    def read_response(self, stream: Stream) -> Response:
        """Read until the response is complete.

        Raises:
            ConnectionError: the server ended the connection too early, or sent what is no HTTP/1.1.
        """
        try:
            return self._read(stream)
        except h11.RemoteProtocolError as exc:
            raise ConnectionError(f"no complete HTTP/1.1 response: {exc}") from exc

    def _read(self, stream: Stream) -> Response:
        status, headers, body = 0, (), bytearray()  # type: tuple[int, Headers, bytearray]
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(stream.recv(READ_BYTES))
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, _decoded(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Response(status, headers, bytes(body))


def check_headers(headers: Headers) -> None:
    """Raises InvalidValue for headers that HTTP cannot carry, or that the server sets itself."""
    for name, value in headers:
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise InvalidValue(f"header {name!r}: the server sets it, leave it out")
        try:
            h11.Response(status_code=200, headers=[(name.encode("ascii"), value.encode("latin-1"))])
        except (h11.LocalProtocolError, UnicodeError) as exc:
            raise InvalidValue(f"header {name!r}: {value!r}: {exc}") from exc


def check_request(method: str, target: str) -> None:
    """Raises InvalidValue for a method or target that HTTP cannot carry (RFC 9110, section 9.1; RFC 9112, 3.2)."""
    checks.text("method", method, "GET")
    checks.text("target", target, "/orders?id=1")
    try:
        h11.Request(method=method, target=target, headers=[("host", "any")])
    except (h11.LocalProtocolError, UnicodeError) as exc:
        raise InvalidValue(f"request {method!r} {target!r}: {exc}") from exc
