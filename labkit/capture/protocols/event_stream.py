"""Server-sent events in the bodies of HTTP.

Source: HTML, section 9.2.5 (parsing an event stream).
"""

from __future__ import annotations

import re

from labkit.capture.fields import printable
from labkit.capture.protocol import BodyProtocol, Side

_LINE_END = rb"(?>\r\n|\n|\r)"
_END_OF_EVENT = re.compile(_LINE_END + _LINE_END)
_LINES = re.compile(_LINE_END)


class EventStream(BodyProtocol):
    """Events, which a blank line ends."""

    content_types = frozenset({"text/event-stream"})

    def __init__(self, start_line: str) -> None:
        super().__init__(start_line)
        self._looked = 0  # bytes in front that hold no end of an event

    def receive(self, side: Side) -> None:
        while (end := _END_OF_EVENT.search(side.data, max(self._looked - 3, 0))) is not None:
            self._looked = 0
            _take(side, end.end())
        self._looked = len(side.data)


def _take(side: Side, length: int) -> None:
    fields: dict[bytes, bytes] = {}
    data = []
    for line in _LINES.split(bytes(side.data[:length]).removeprefix(b"\xef\xbb\xbf")):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name:
            fields[name] = value
    payload = b"\n".join(data)
    if not fields and not data:
        side.take(length, "SSE", "comment", role="data")
        return
    label = f"event {printable(fields.get(b'event', b'message'))}"
    if b"id" in fields:
        label += f", id {printable(fields[b'id'])}"
    retry = f", retry after {printable(fields[b'retry'])} ms" if b"retry" in fields else ""
    detail = f"{label}{retry}, {len(payload)} bytes of data"
    side.take(length, "SSE", "event", detail, role="data", data=payload, label=label)


BODY = EventStream
