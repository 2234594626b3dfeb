"""The HTTP/3 messages inside QUIC's STREAM frames, by name: "GET /", "200", "DATA", "SETTINGS".

Bytes of a stream are read in the order in which they belong, as soon as all before them are there. Header fields are
compressed with a table that grows on the QPACK streams, so streams are read side by side, in the order of sending.

Sources: RFC 9114 (HTTP/3), RFC 9218 (priorities), RFC 9220 and 9297 (settings). ``qpack`` decodes header fields.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from labkit.capture.fields import Cursor, Truncated, shortened
from labkit.capture.http_fields import Headers, readable, start_of
from labkit.capture.in_order import InOrder
from labkit.capture.messages import Found, Role
from labkit.capture.qpack import FieldDecoder, Fields
from labkit.capture.quic_frames import QuicFrame
from labkit.capture.streams import Chunk, Placed, Segment, Stream

_DATA, _HEADERS, _SETTINGS, _PUSH_PROMISE = 0, 1, 4, 5
_FRAMES = {
    _DATA: "DATA", _HEADERS: "HEADERS", 3: "CANCEL_PUSH", _SETTINGS: "SETTINGS", _PUSH_PROMISE: "PUSH_PROMISE",
    7: "GOAWAY", 13: "MAX_PUSH_ID", 0xF0700: "PRIORITY_UPDATE", 0xF0701: "PRIORITY_UPDATE",
}  # fmt: skip
_CONTROL, _PUSH, _ENCODER, _DECODER = range(4)
_STREAMS = {_CONTROL: "control", _PUSH: "push", _ENCODER: "QPACK encoder", _DECODER: "QPACK decoder"}
_TABLE_CAPACITY = 1
_SETTING_NAMES = {
    _TABLE_CAPACITY: "QPACK_MAX_TABLE_CAPACITY", 6: "MAX_FIELD_SECTION_SIZE", 7: "QPACK_BLOCKED_STREAMS",
    8: "ENABLE_CONNECT_PROTOCOL", 0x33: "H3_DATAGRAM",
}  # fmt: skip
_LONGEST_HEADERS = 2**18  # of which we decode the fields


@dataclass(eq=False, slots=True)
class _Item:
    """Something on a stream: a frame of HTTP/3, a stream's type, instructions of QPACK."""

    start: int
    end: int
    name: str
    payload: int  # bytes after its own header
    detail: str = ""
    start_line: str = ""
    status: int | None = None
    headers: Headers = ()
    role: Role = ""

    def use(self, fields: Fields) -> None:
        """Take in the header fields that it stands for."""
        self.headers = readable(fields)
        self.role, self.start_line, self.status = start_of(dict(self.headers))


@dataclass(eq=False, slots=True)
class _Stream:
    """One direction of one stream, as far as it was read."""

    number: int
    from_client: bool
    kind: int | None = None  # of a unidirectional stream
    order: InOrder = field(default_factory=InOrder)
    unread: bytearray = field(default_factory=bytearray)
    position: int = 0  # offset of the first byte of ``unread``
    skip: int = 0  # bytes of a frame whose content does not matter
    items: list[_Item] = field(default_factory=list)
    segments: dict[bool, list[Segment]] = field(default_factory=lambda: {True: [], False: []})  # early ones, others
    ends: set[tuple[int, bool]] = field(default_factory=set)  # where a fin stood, and whether in early data

    @property
    def unidirectional(self) -> bool:
        return bool(self.number & 0x02)

    def took(self, size: int) -> None:
        self.position += size
        del self.unread[:size]


class Http3Streams:
    """The HTTP/3 streams of one QUIC connection."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, bool], _Stream] = {}
        self._fields = {True: FieldDecoder(), False: FieldDecoder()}  # by who sends them: the client, the server

    def add(self, frame: QuicFrame, from_client: bool, early: bool, datagram: int, delivered: bool) -> None:
        """Take in a STREAM frame; frames come in the order of sending."""
        assert frame.stream is not None
        if frame.stream % 4 == 1:
            return  # a bidirectional one that the server opens: HTTP/3 has none (RFC 9114 section 6.1)
        stream = self._streams.setdefault((frame.stream, from_client), _Stream(frame.stream, from_client))
        stream.segments[early].append(Segment(frame.offset, frame.data, datagram, delivered))
        if frame.fin:
            stream.ends.add((frame.offset + len(frame.data), early))
        stream.unread += stream.order.add(frame.offset, frame.data)
        if stream.unread:
            self._read(stream)

    def _read(self, stream: _Stream) -> None:
        """Read what is complete now."""
        while stream.unread:
            skipped = min(stream.skip, len(stream.unread))
            stream.skip -= skipped
            stream.took(skipped)
            if stream.unidirectional and stream.kind not in (_CONTROL, _PUSH):
                if not self._read_type_or_rest(stream):
                    return
            elif not stream.unread or not self._read_frame(stream):
                return

    def _read_type_or_rest(self, stream: _Stream) -> bool:
        if stream.kind is None:
            cursor = Cursor(bytes(stream.unread[:16]))
            try:
                stream.kind = cursor.varint()
                push = f"push {cursor.varint()}" if stream.kind == _PUSH else ""
            except Truncated:
                stream.kind = None
                return False
            name, begin = _STREAMS.get(stream.kind, f"stream type 0x{stream.kind:x}"), cursor.position
            size = begin if stream.kind in (_CONTROL, _PUSH) else len(stream.unread)
            stream.items.append(_Item(0, size, name, size, push))
        else:
            begin, size = 0, len(stream.unread)
            stream.items.append(_Item(stream.position, stream.position + size, stream.items[0].name, size))
        if stream.kind == _ENCODER:
            self._fields[stream.from_client].instruct(bytes(stream.unread[begin:]))
        stream.took(size)
        return True

    def _read_frame(self, stream: _Stream) -> bool:
        cursor = Cursor(bytes(stream.unread[:16]))
        try:
            kind, length = cursor.varint(), cursor.varint()
        except Truncated:
            return False
        start, size = stream.position, cursor.position
        if stream.items and stream.items[-1].start == start:
            item = stream.items[-1]  # it was not complete before
        else:
            item = _Item(start, start + size + length, _FRAMES.get(kind, f"frame type 0x{kind:x}"), length)
            stream.items.append(item)
        if kind == _DATA or length > _LONGEST_HEADERS or kind not in _FRAMES:
            stream.skip = size + length
            return True
        if len(stream.unread) < size + length:
            return False
        self._describe(kind, bytes(stream.unread[size : size + length]), item, stream)
        stream.took(size + length)
        return True

    def _describe(self, kind: int, payload: bytes, item: _Item, stream: _Stream) -> None:
        cursor = Cursor(payload)
        try:
            if kind == _HEADERS:
                self._fields[stream.from_client].decode(payload, item.use)
            elif kind == _PUSH_PROMISE:
                item.detail = f"push {cursor.varint()}"
                self._fields[stream.from_client].decode(cursor.take(cursor.left), item.use)
            elif kind == _SETTINGS:
                settings = {}
                while cursor.left:
                    number = cursor.varint()
                    settings[number] = cursor.varint()
                named = [f"{_SETTING_NAMES.get(key, f'0x{key:x}')} {value}" for key, value in settings.items()]
                item.detail = ", ".join(named[:8])
                self._fields[not stream.from_client].allow(settings.get(_TABLE_CAPACITY, 0))
            else:  # a number: of a push, of the last request that is answered
                item.detail = str(cursor.varint())
        except Truncated:
            item.name = f"malformed {item.name}"

    def messages(self, *, rejected: bool) -> Http3Messages:
        """Return what was read.

        Args:
            rejected: whether the server did not take the client's early data.
        """
        return Http3Messages(self._streams, rejected)


class Http3Messages:
    """The messages of a connection's streams, found by the STREAM frames that carried them."""

    def __init__(self, streams: dict[tuple[int, bool], _Stream], rejected: bool) -> None:
        self._rejected = rejected
        self._streams = streams
        self._placed = {
            key: Placed([(item.start, item.end, item) for item in stream.items]) for key, stream in streams.items()
        }
        self._chunks: dict[tuple[int, bool, bool], list[Chunk]] = {}
        self._made: dict[tuple[_Item, str], Found] = {}

    def gap(self, frame: QuicFrame, from_client: bool) -> bool:
        """Whether a STREAM frame stands behind bytes of its stream that are missing, so that it cannot be read."""
        stream = self._streams.get((frame.stream or 0, from_client))
        return stream is not None and frame.offset > stream.order.end

    def inside(self, frame: QuicFrame, from_client: bool, level: str) -> list[Found]:
        """Return the messages that have bytes in a STREAM frame; none where they could not be told apart."""
        key = (frame.stream or 0, from_client)
        if key not in self._streams:
            return []
        items = self._placed[key].between(frame.offset, frame.offset + frame.length)
        return [self._message(item, self._streams[key], level) for item in items]

    def _message(self, item: _Item, stream: _Stream, level: str) -> Found:
        if (item, level) in self._made:
            return self._made[item, level]
        early = level == "early"
        chunks = self._assembled(stream, early)
        beyond = bisect_left(chunks, item.end, key=lambda chunk: chunk.start)
        overlapping = chunks[bisect_right(chunks, item.start, key=lambda chunk: chunk.end) : beyond]
        places = [chunk.packets(max(item.start, chunk.start), min(item.end, chunk.end)) for chunk in overlapping]
        first, last = min(first for first, _ in places), max(last for _, last in places)
        begin = item.end - item.payload
        content = b"".join(c.data[max(begin - c.start, 0) : max(item.end - c.start, 0)] for c in overlapping)
        fin = (item.end, early) in stream.ends
        parts = [f"stream {stream.number}"]
        if not stream.unidirectional:
            parts.append("request" if stream.from_client else "response")
        parts += [f"{item.payload} bytes", *(["fin"] if fin else [])]
        parts += ["rejected"] if early and self._rejected else []
        detail = ", ".join(parts) + (f": {item.detail}" if item.detail else "")
        self._made[item, level] = Found(
            "HTTP/3", item.name, detail, level, first, last, item.payload, content, stream.number, fin,
            rejected=early and self._rejected, role=_role(item, stream), start_line=item.start_line,
            status=item.status, headers=item.headers, label=_label(item),
        )  # fmt: skip
        return self._made[item, level]

    def _assembled(self, stream: _Stream, early: bool) -> list[Chunk]:
        key = (stream.number, stream.from_client, early and self._rejected)
        if key not in self._chunks:
            segments = stream.segments[early] if self._rejected else stream.segments[True] + stream.segments[False]
            whole = Stream()
            for segment in segments:
                whole.add(segment)
            self._chunks[key] = whole.assemble()
        return self._chunks[key]


def _role(item: _Item, stream: _Stream) -> Role:
    if item.role or item.name == "DATA":
        return item.role or "data"
    if item.name in ("HEADERS", "PUSH_PROMISE"):
        return "request" if stream.from_client or item.name == "PUSH_PROMISE" else "response"
    return "control"


def _label(item: _Item) -> str:
    """A header block by its start line. The stream's number stands before it, with the STREAM frame."""
    if item.name == "PUSH_PROMISE" and item.start_line:
        return f"PUSH_PROMISE {shortened(item.start_line)}"
    if item.name == "HEADERS" and item.headers:
        return shortened(item.start_line) or "trailers"
    return ""
