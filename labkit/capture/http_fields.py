"""What HTTP's fields say, whatever the version: the start line, the status, and what stands in the body.

Sources: RFC 9110; RFC 9113 section 8.3 (the fields that begin with ":", in HTTP/2 and HTTP/3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from labkit.capture.fields import printable
from labkit.capture.messages import Found, Role
from labkit.capture.protocol import BodyProtocol, HandOver, Side, StreamProtocol
from labkit.capture.protocols import body_protocols, upgraded

Headers = tuple[tuple[str, str], ...]


def readable(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Fields as text that is safe to show."""
    return tuple((printable(name, 256).lower(), printable(value, 8192)) for name, value in fields)


def start_of(headers: Mapping[str, str]) -> tuple[Role, str, int | None]:
    """Tell role, start line and status of a block of fields: ("request", "GET /", None), ("response", "200", 200).

    Trailers are the end of a message that began before: ("data", "", None). "?" stands for what is not known.
    """
    status = headers.get(":status", "")
    if status:
        number = len(status) == 3 and status.isascii() and status.isdecimal()
        return "response", status, int(status) if number else None
    if ":method" in headers or ":path" in headers:
        target = headers.get(":path") or headers.get(":authority") or "?"
        return "request", f"{headers.get(':method', '?')} {target}", None
    return "data", "", None


def body_protocol(headers: Mapping[str, str]) -> type[BodyProtocol] | None:
    """The protocol of a body with these fields, None where it is no protocol that is known here."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = {kind, kind.partition("+")[0]} - {""}
    return next((protocol for protocol in body_protocols() if wanted & protocol.content_types), None)


def tunnel(token: str, headers: Mapping[str, str], stream: int) -> dict[bool, Body]:
    """The two directions of a stream that has become another protocol (RFC 8441), by whether the client sends.

    Args:
        token: the protocol, as in the field ``:protocol``.
        headers: of the response.
        stream: of the connection.

    Returns:
        {} where the protocol is not known.
    """
    protocol = upgraded(token)
    if protocol is None:
        return {}
    client, server = Side(from_client=True), Side(from_client=False)
    client.synchronised = server.synchronised = True
    reader = protocol(client, server, HandOver(token, headers))
    return {side.from_client: Body(reader, side, stream) for side in (client, server)}


class Body:
    """A body whose messages are named as it comes."""

    def __init__(self, protocol: BodyProtocol | StreamProtocol, side: Side, stream: int | None = None) -> None:
        self._protocol = protocol
        self._side = side
        self._stream = stream

    @property
    def rest(self) -> int:
        """Bytes that have come of a message that is not complete."""
        return len(self._side.data)

    def receive(self, carrier: Found, data: bytes) -> list[Found]:
        """Name the messages that end in these bytes.

        Args:
            carrier: what carries them: a frame, a segment, a record.
            data: the bytes of the body in it.
        """
        if not data:
            return []
        self._side.add(replace(carrier, data=data))
        self._protocol.receive(self._side)
        # What nobody takes is in the carrier's name already.
        found = [each for each in self._side.found if each.protocol != carrier.protocol]
        named = [replace(each, stream=self._stream) for each in found]
        self._side.found.clear()
        return named
