"""HTTP/1.1 and 1.0, message by message, as h11 reads it.

h11 refuses what a server should refuse (no Host, spaces in field names). That is on the wire all the same: then it is
given the start line and the fields that frame the body, and if it refuses these as well, what follows is "data".

Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from labkit.capture.fields import printable
from labkit.capture.http_fields import Body, Headers, body_protocol, readable
from labkit.capture.protocol import Certainty, HandOver, Opening, Side, StreamProtocol

if TYPE_CHECKING:
    import h11

_MAX_HEAD = 2**16
_REQUEST_LINE = re.compile(rb"(?!PRI \* HTTP/2\.0)[A-Z]{2,20} [!-\xff]{1,8000} HTTP/\d(?:\.\d)?[ \t]*\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? \d{3}(?: [^\r\n]{0,1000})?\r?\n")
_EMPTY_LINES = re.compile(rb"[\r\n]+")  # to be ignored in front of a message (RFC 9112 section 2.2)
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_REQUEST_SO_FAR = re.compile(rb"[A-Z]{1,20}(?: [!-\xff]{0,8000}(?: [HTP/\d.]{0,8}[ \t]*\r?)?)?\Z")
_STATUS_SO_FAR = re.compile(rb"HTTP/\d(?:\.\d)? [^\r\n]{0,1004}\r?\Z")
_FRAMING = re.compile(
    rb"^(Content-Length|Transfer-Encoding|Connection|Upgrade)[ \t]*:[ \t]*([!-~][ -~]*?)[ \t]*\r?$", re.M | re.I
)


class Http1(StreamProtocol):
    """Requests and responses, which answer them in their order."""

    ports = frozenset({80, 8000, 8080})

    def __init__(self, client: Side, server: Side, came_by: HandOver) -> None:
        super().__init__(client, server, came_by)
        self._reading: dict[bool, _Body | None] = {True: None, False: None}
        self._looked = {True: 0, False: 0}  # bytes in front that hold no end of a head
        self._unanswered: deque[_Request] = deque()
        self._switching: _Request | None = None  # the client says nothing of HTTP until it is answered

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        if _begins(opening.client, True) or _begins(opening.server, False):
            return Certainty.SURE
        return Certainty.NO

    def receive(self, side: Side) -> None:
        while side.data and self.successor is None:
            body = self._reading[side.from_client]
            if side.from_client and self._switching is not None and body is None:
                return
            if body is not None:
                side.leave(body.read(side.data[: side.piece_end(1)]))
                self._name_inside(side, body)
                if not body.open:
                    self._reading[side.from_client] = None
            elif not self._take_head(side):
                return

    def ended(self, side: Side) -> None:
        if not self._reading[side.from_client] and _begins(side.data, side.from_client):
            self._name(side, len(side.data), ())  # a head without its end
        self._reading[side.from_client], self._looked[side.from_client] = None, 0
        self._unanswered.clear()  # nobody knows what was asked or answered in the gap
        self._switching = None

    def _take_head(self, side: Side) -> bool:
        """Take a head, with what stands of its body in the same segment. False where more has to come."""
        if side.synchronised and (lines := _EMPTY_LINES.match(side.data)):
            side.leave(lines.end())
            return True
        if not _begins(side.data, side.from_client):
            if side.synchronised and _may_begin(side.data, side.from_client):
                return False
            side.leave(side.piece_end(1))  # the next message may begin with a segment
            side.synchronised = False
            return True
        end = _END_OF_HEAD.search(side.data, max(self._looked[side.from_client] - 3, 0))
        if end is None and len(side.data) < _MAX_HEAD:
            self._looked[side.from_client] = len(side.data)
            return False
        length = end.end() if end is not None else side.piece_end(len(side.data))
        self._looked[side.from_client] = 0
        side.synchronised = True
        self._take_message(side, length)
        return True

    def _take_message(self, side: Side, length: int) -> None:
        head = bytes(side.data[:length])
        request = None if side.from_client else self._answered(head)
        body = _Body.after(head, request)
        here = body.read(side.data[length : side.piece_end(length)]) if body is not None else 0
        self._name(side, length + here, body.headers if body is not None else ())
        if body is None:
            side.synchronised = False
            return
        fields = dict(body.headers)
        if protocol := body_protocol(fields):
            line = side.found[-1].start_line if request is None else request.line
            body.inside = Body(protocol(line.rpartition(" ")[0]), Side(side.from_client))
            self._name_inside(side, body)
        if body.open:
            self._reading[side.from_client] = body
        if side.from_client:
            asked = _Request(body.method, side.found[-1].start_line, fields.get("upgrade", ""))
            self._unanswered.append(asked)
            if asked.switches:
                self._switching = asked
        elif body.status >= 200 or body.status == 101:
            self._switch(body, request)

    def _name_inside(self, side: Side, body: _Body) -> None:
        """Name what the body consists of, if that is known: in place of the bytes that carried it and nothing else."""
        if body.inside is None or not side.found:
            return
        named = body.inside.receive(side.found[-1], body.decoded)
        if named and side.found[-1].role == "data" and not body.inside.rest:
            side.found.pop()
        side.found += named

    def _answered(self, head: bytes) -> _Request | None:
        """The request that a response belongs to. Those with 1xx come before the response, 101 instead of it."""
        status = head.split(None, 2)[1]
        if not self._unanswered or (status.startswith(b"1") and status != b"101"):
            return self._unanswered[0] if self._unanswered else None
        return self._unanswered.popleft()

    def _switch(self, body: _Body, request: _Request | None) -> None:
        """After the response: another protocol, or HTTP goes on where the client waited."""
        tunnel = request is not None and request.method == "CONNECT" and body.status < 300
        if tunnel or body.status == 101:
            fields = dict(body.headers)
            token = "" if tunnel else fields.get("upgrade", "").partition("/")[0].strip()
            self.successor = HandOver(token, fields)
        elif request is not None and request is self._switching:
            self._switching = None
            self.receive(self.client)

    def _name(self, side: Side, length: int, headers: Headers) -> None:
        line = bytes(side.data[: side.data.find(b"\n")]).rstrip()
        status = None if side.from_client else int(line.split(None, 2)[1])
        side.take(
            length,
            "HTTP",
            printable(line),
            role="request" if side.from_client else "response",
            start_line=printable(line, _MAX_HEAD),
            status=status,
            headers=headers,
        )


class _Request:
    """What a response has to be read by."""

    def __init__(self, method: str, line: str, upgrade: str) -> None:
        self.method = method
        self.line = line
        self.switches = method == "CONNECT" or bool(upgrade)


def _begins(data: bytes | bytearray, from_client: bool) -> bool:
    return (_REQUEST_LINE if from_client else _STATUS_LINE).match(data) is not None


def _may_begin(data: bytes | bytearray, from_client: bool) -> bool:
    """Whether a start line may begin here, of which more has to come."""
    if not from_client and b"HTTP/1.1 ".startswith(data[:9]):
        return True
    return (_REQUEST_SO_FAR if from_client else _STATUS_SO_FAR).match(data) is not None


class _Body:
    """What follows a head, as h11 frames it.

    Attributes:
        headers: the fields of the head.
        method: of a request; "" of a response.
        status: of a response, 0 of a request.
        open: whether more of the body has to come.
        decoded: what was read last, without the framing of chunks.
        inside: names what the body consists of, where that is known.
    """

    def __init__(
        self, connection: h11.Connection, event: h11.Request | h11.InformationalResponse | h11.Response
    ) -> None:
        import h11

        self._connection = connection
        self.headers = readable(event.headers)
        self.method = event.method.decode("latin-1") if isinstance(event, h11.Request) else ""
        self.status = 0 if isinstance(event, h11.Request) else event.status_code
        self.open = not isinstance(event, h11.InformationalResponse)
        self.decoded = b""
        self.inside: Body | None = None
        self._left = 0  # bytes to come without any framing between them
        self.read(b"")
        fields = dict(self.headers)
        if self.open and "transfer-encoding" not in fields:  # h11 has checked the length; without one it has no end
            self._left = int(fields.get("content-length", 2**62))

    @classmethod
    def after(cls, head: bytes, request: _Request | None) -> _Body | None:
        """Read a head; None where not even its framing can be told."""
        import h11

        line, _, lines = head.partition(b"\n")
        plain = [line.rstrip(), b"Host: x", *(b"%s: %s" % field for field in _FRAMING.findall(lines))]
        for text in (head, b"\r\n".join(plain) + b"\r\n\r\n"):
            from_client = _begins(head, from_client=True)
            connection = h11.Connection(h11.SERVER if from_client else h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
            try:
                if not from_client:
                    asked = request.method if request is not None else "GET"
                    # Whether it asked for another protocol only its sender knows for sure: then 101 is a response, too.
                    fields = [("Host", "x"), ("Connection", "upgrade"), ("Upgrade", "x")]
                    connection.send(h11.Request(method=asked, target="/", headers=fields))
                    connection.send(h11.EndOfMessage())
                connection.receive_data(text)
                event = connection.next_event()
                if isinstance(event, (h11.Request, h11.InformationalResponse, h11.Response)):
                    return cls(connection, event)
            except h11.ProtocolError:
                continue
        return None

    def read(self, data: bytes | bytearray) -> int:
        """Read on, and tell how many of these bytes belong to the body."""
        import h11

        self.decoded = b""
        if not self.open:
            return 0
        if self._left:
            self.decoded = bytes(data[: self._left])
            self._left -= len(self.decoded)
            self.open = self._left > 0
            return len(self.decoded)
        done = 0
        try:
            self._connection.receive_data(bytes(data)) if data else None
            done = len(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    self.decoded += event.data
                elif event is h11.NEED_DATA:
                    return done
                elif event is h11.PAUSED or isinstance(event, h11.EndOfMessage):
                    self.open = False
                    return done - len(self._connection.trailing_data[0])
        except h11.ProtocolError:  # such as a chunk without a length
            self.open = False
            return done


STREAM = Http1
