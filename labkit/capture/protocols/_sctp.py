"""SCTP packets as WebRTC sends them inside DTLS: chunks by name, data channels opened, data with its stream.

Sources: RFC 9260 (SCTP), RFC 8260 (I-DATA), RFC 6525 (RE-CONFIG), RFC 3758 (FORWARD-TSN), RFC 8831 and 8832 (data
channels).
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.capture.fields import Cursor, Truncated, printable
from labkit.capture.messages import Role

_CHUNKS = {
    0: "DATA", 1: "INIT", 2: "INIT ACK", 3: "SACK", 4: "HEARTBEAT", 5: "HEARTBEAT ACK", 6: "ABORT", 7: "SHUTDOWN",
    8: "SHUTDOWN ACK", 9: "ERROR", 10: "COOKIE ECHO", 11: "COOKIE ACK", 14: "SHUTDOWN COMPLETE", 64: "I-DATA",
    130: "RE-CONFIG", 192: "FORWARD TSN", 194: "I-FORWARD-TSN",
}  # fmt: skip
_COMMON_HEADER, _SACK, _FIRST, _UNORDERED = 12, 3, 2, 4
_DCEP, _OPEN, _ACK = 50, 3, 2  # payload protocol, and its messages (RFC 8832 sections 5 and 8.1)
_PAYLOADS = {51: "text", 53: "binary", 56: "empty text", 57: "empty binary"}
_CHANNEL_UNORDERED = 0x80


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a packet: its fields as those of a ``Message``."""

    name: str
    detail: str
    label: str
    data: bytes
    stream: int | None = None
    role: Role = "control"


def read_sctp(packet: bytes) -> list[Chunk] | None:
    """Read the chunks of a packet; None where these bytes are no SCTP."""
    if len(packet) < _COMMON_HEADER + 4:
        return None
    cursor, chunks = Cursor(packet), []
    cursor.take(_COMMON_HEADER)
    try:
        while cursor.left:
            kind, flags, length = cursor.number(1), cursor.number(1), cursor.number(2)
            if kind not in _CHUNKS or length < 4:
                return None
            value = cursor.take(length - 4)
            cursor.take(min(-length % 4, cursor.left))
            chunks.append(_chunk(kind, flags, value))
    except Truncated:
        return None
    return chunks


def _chunk(kind: int, flags: int, value: bytes) -> Chunk:
    name, cursor = _CHUNKS[kind], Cursor(value)
    if kind == 0:
        tsn, stream, number, payload = cursor.number(4), cursor.number(2), cursor.number(2), cursor.number(4)
    elif kind == 64:
        tsn, stream, _, number, payload = (cursor.number(size) for size in (4, 2, 2, 4, 4))
    else:
        detail = f"cumulative TSN {cursor.number(4)}" if kind == _SACK else f"{len(value)} bytes"
        return Chunk(name, detail, f"SCTP {name}", value)
    data, first = value[cursor.position :], bool(flags & _FIRST)
    unordered = bool(flags & _UNORDERED)
    if payload == _DCEP and first and (opened := _data_channel(data)) is not None:
        what, detail = opened
        label = f"SCTP {what}" + (f" {detail.partition(',')[0]}" if detail else "")
        return Chunk(what, ", ".join(filter(None, (f"stream {stream}", detail))), label, data, stream)
    order = "unordered" if unordered else f"ordered, number {number}"
    parts = [f"stream {stream}", order, f"TSN {tsn}", _PAYLOADS.get(payload, f"payload protocol {payload}")]
    parts += [f"{len(data)} bytes", *([] if first else ["goes on"])]
    label = f"SCTP {name} {stream}" + (" unordered" if unordered else "")
    return Chunk(name, ", ".join(parts), label, data, stream, "data")


def _data_channel(data: bytes) -> tuple[str, str] | None:
    """Read a message that opens a data channel, or says that it is open (RFC 8832 section 5)."""
    cursor = Cursor(data)
    try:
        kind = cursor.number(1)
        if kind == _ACK:
            return "DATA_CHANNEL_ACK", ""
        if kind != _OPEN:
            return None
        channel = cursor.number(1)
        cursor.take(6)  # priority, reliability parameter
        sizes = cursor.number(2), cursor.number(2)
        label = printable(cursor.take(sizes[0]))
    except Truncated:
        return None
    return "DATA_CHANNEL_OPEN", f"{label!r}, " + ("unordered" if channel & _CHANNEL_UNORDERED else "ordered")
