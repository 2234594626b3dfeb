"""One HTTP/1.1 response as it comes from a socket: where it ends, and whether its connection can be used again."""

from __future__ import annotations

import re

END_OF_HEAD = b"\r\n\r\n"
MOST_HEAD = 65536

_START = re.compile(rb"HTTP/1\.([01]) (\d{3})[ \r]")
_FIELD = re.compile(rb"\r\n(content-length|transfer-encoding|connection):[ \t]*([^\r]*)", re.IGNORECASE)


class Malformed(ValueError):
    """What came is no HTTP/1.1 response."""


class Response:
    """A response that is fed the bytes of its connection. The end of its body is found, its content thrown away.

    Args:
        bodiless: it answers a HEAD request, which a body never follows.

    Attributes:
        head: start line and fields with the empty line, b"" as long as they are not complete.
        status: the status code, 0 as long as the head is not complete.
        sized: its length stood in its head: every response with this head has as many bytes.
        reusable: the connection can carry the next request.

    Source: RFC 9112, section 6.3.
    """

    def __init__(self, bodiless: bool = False) -> None:
        self.head, self.status = b"", 0
        self.sized, self.reusable = False, True
        self._bodiless = bodiless
        self._chunked = False
        self._missing: int | None = None  # bytes of the body; None where the close of the connection ends it
        self._received = b""

    def feed(self, data: bytes) -> bool:
        """Take what was received. Returns whether the response is complete. Raises Malformed."""
        while not self.status:
            self._received += data
            end = self._received.find(END_OF_HEAD) + len(END_OF_HEAD)
            if end < len(END_OF_HEAD):
                if len(self._received) > MOST_HEAD:
                    raise Malformed(f"a head of more than {MOST_HEAD} bytes")
                return False
            self.head, data, self._received = self._received[:end], self._received[end:], b""
            self._read_head()
        if self._chunked:
            return self._feed_chunks(data)
        if self._missing is None:
            return False
        self._missing -= len(data)
        if self._missing < 0:
            self.reusable = False  # nobody asked for what follows
        return self._missing <= 0

    def closed(self) -> bool:
        """The server has closed the connection. Returns whether that completes the response."""
        self.reusable = False
        return self.status > 0 and self._missing is None and not self._chunked

    def _read_head(self) -> None:
        start = _START.match(self.head)
        if start is None:
            raise Malformed(f"{self.head[:40]!r} is no start of a response")
        status = int(start[2])
        if 100 <= status < 200:
            return  # an interim response; the one that counts follows
        self.status = status
        fields = {name.lower(): value.strip().lower() for name, value in _FIELD.findall(self.head)}
        connection = fields.get(b"connection", b"")
        self.reusable = connection == b"keep-alive" or (start[1] == b"1" and connection != b"close")
        if self._bodiless or status in (204, 304):
            self._missing = 0
        elif b"transfer-encoding" in fields:
            self._chunked = True
        elif b"content-length" in fields:
            if not fields[b"content-length"].isdigit():
                raise Malformed(f"Content-Length {fields[b'content-length']!r}")
            self._missing, self.sized = int(fields[b"content-length"]), True

    def _feed_chunks(self, data: bytes) -> bool:
        self._received += data
        while (end := self._received.find(b"\r\n")) >= 0:
            try:
                size = int(self._received[:end].split(b";")[0], 16)
            except ValueError:
                raise Malformed(f"{self._received[:20]!r} is no size of a chunk") from None
            if size == 0:
                return END_OF_HEAD in self._received
            after = end + 2 + size + 2
            if len(self._received) < after:
                return False
            self._received = self._received[after:]
        return False
