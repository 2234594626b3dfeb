"""The frames of an opened QUIC packet.

Sources: RFC 9000 section 19, RFC 9221 (DATAGRAM frames).
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.capture.fields import Cursor, Truncated, printable

# Frames whose fields are only numbers: type → (name, what the numbers are) (RFC 9000 section 19).
_NUMBER_FRAMES = {
    0x04: ("RESET_STREAM", ("stream", "error", "size")), 0x05: ("STOP_SENDING", ("stream", "error")),
    0x10: ("MAX_DATA", ("limit",)), 0x11: ("MAX_STREAM_DATA", ("stream", "limit")),
    0x12: ("MAX_STREAMS", ("limit",)), 0x13: ("MAX_STREAMS", ("unidirectional limit",)),
    0x14: ("DATA_BLOCKED", ("limit",)), 0x15: ("STREAM_DATA_BLOCKED", ("stream", "limit")),
    0x16: ("STREAMS_BLOCKED", ("limit",)), 0x17: ("STREAMS_BLOCKED", ("unidirectional limit",)),
    0x19: ("RETIRE_CONNECTION_ID", ("number",)),
}  # fmt: skip
_PLAIN_FRAMES = {0x01: "PING", 0x1E: "HANDSHAKE_DONE"}


@dataclass(frozen=True, slots=True)
class QuicFrame:
    """One frame of a packet.

    Attributes:
        name: such as "STREAM".
        detail: its fields, for people.
        length: bytes of the frame, or of the data in it.
        data: the data in it.
        stream: stream ID of a STREAM frame, else None.
        offset: where the data of a STREAM or CRYPTO frame belong.
        fin: whether a STREAM frame ends its stream.
        new_id: the connection ID that a NEW_CONNECTION_ID frame brings.
        reset_token: what a Stateless Reset for that ID ends with.
    """

    name: str
    detail: str
    length: int
    data: bytes = b""
    stream: int | None = None
    offset: int = 0
    fin: bool = False
    new_id: bytes = b""
    reset_token: bytes = b""


def parse_frames(payload: bytes) -> list[QuicFrame]:
    """Read the frames of an opened packet (RFC 9000 section 19).

    A run of padding is one frame. Bytes that make no frame end the list as "malformed frame", an extension's frame
    ends it as "frame type 0x...".
    """
    cursor, frames = Cursor(payload), []
    while cursor.left:
        start = cursor.position
        try:
            frames.append(_parse_frame(cursor))
        except Truncated:
            frames.append(QuicFrame("malformed frame", f"{len(payload) - start} bytes", len(payload) - start))
            break
    return frames


def _parse_frame(cursor: Cursor) -> QuicFrame:
    start = cursor.position
    kind = cursor.varint()
    if kind == 0x00:
        rest = cursor.data[cursor.position :]
        cursor.take(len(rest) - len(rest.lstrip(b"\0")))
        size = cursor.position - start
        return QuicFrame("PADDING", f"{size} bytes", size)
    name, detail = "", ""
    if kind in _PLAIN_FRAMES:
        name = _PLAIN_FRAMES[kind]
    elif kind in _NUMBER_FRAMES:
        name, fields = _NUMBER_FRAMES[kind]
        detail = ", ".join(f"{what} {cursor.varint()}" for what in fields)
    elif kind in (0x02, 0x03):
        name, detail = "ACK", _ack_detail(cursor, with_ecn=kind == 0x03)
    elif kind == 0x06:
        offset = cursor.varint()
        data = cursor.take(cursor.varint())
        return QuicFrame("CRYPTO", f"{len(data)} bytes at {offset}", len(data), data, offset=offset)
    elif kind == 0x07:
        name, detail = "NEW_TOKEN", f"{len(cursor.take(cursor.varint()))} bytes"
    elif 0x08 <= kind <= 0x0F:
        stream, offset = cursor.varint(), cursor.varint() if kind & 0x04 else 0
        data = cursor.take(cursor.varint() if kind & 0x02 else cursor.left)
        return QuicFrame("STREAM", "", len(data), data, stream, offset, bool(kind & 0x01))
    elif kind == 0x18:
        number, retire = cursor.varint(), cursor.varint()
        connection_id = cursor.vector(1)
        token = cursor.take(16)  # the last bytes of a Stateless Reset
        detail = f"number {number}: {connection_id.hex()}" + (f", retire before {retire}" if retire else "")
        size = cursor.position - start
        return QuicFrame("NEW_CONNECTION_ID", detail, size, new_id=connection_id, reset_token=token)
    elif kind in (0x1A, 0x1B):
        name, detail = ("PATH_CHALLENGE" if kind == 0x1A else "PATH_RESPONSE"), cursor.take(8).hex()
    elif kind in (0x1C, 0x1D):
        error = cursor.varint()
        if kind == 0x1C:
            cursor.varint()  # type of the frame that caused it
        reason = printable(cursor.take(cursor.varint()))
        source = "transport" if kind == 0x1C else "application"
        name = "CONNECTION_CLOSE"
        detail = f"{source} error 0x{error:x}" + (f", {reason}" if reason else "")
    elif kind in (0x30, 0x31):
        data = cursor.take(cursor.varint() if kind == 0x31 else cursor.left)
        return QuicFrame("DATAGRAM", f"{len(data)} bytes", len(data), data)
    else:  # its length is unknown, so nothing after it can be read (RFC 9000 section 19.21)
        size = len(cursor.data) - start
        cursor.take(cursor.left)
        return QuicFrame(f"frame type 0x{kind:x}", f"{size} bytes from here on, not read", size)
    return QuicFrame(name, detail, cursor.position - start)


def _ack_detail(cursor: Cursor, with_ecn: bool) -> str:
    """Packet numbers as "0–3, 5" (RFC 9000 section 19.3.1: ranges go downwards, gaps count one less)."""
    largest = cursor.varint()
    cursor.varint()  # delay
    count, smallest = cursor.varint(), largest - cursor.varint()
    ranges = [(smallest, largest)]
    for _ in range(count):
        largest = smallest - cursor.varint() - 2
        smallest = largest - cursor.varint()
        ranges.append((smallest, largest))
    for _ in range(3 if with_ecn else 0):
        cursor.varint()
    shown = [str(low) if low == high else f"{low}–{high}" for low, high in reversed(ranges[:4])]
    return ("…, " if len(ranges) > 4 else "") + ", ".join(shown)
