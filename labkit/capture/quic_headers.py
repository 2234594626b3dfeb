"""The packets of a QUIC datagram, taken apart by their headers, which nobody encrypts.

Sources: RFC 8999 (what all versions share), RFC 9000 section 17 (version 1), RFC 9369 section 3 (version 2),
RFC 9287 (the fixed bit may be 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.capture.fields import Cursor, Truncated

VERSION_1, VERSION_2 = 0x00000001, 0x6B3343CF
VERSIONS = (VERSION_1, VERSION_2)
FIXED_BIT = 0x40
MIN_SHORT_PACKET = 1 + 4 + 16  # first byte, packet number and sample (RFC 9001 section 5.4.2)
_LONG_HEADER, _MAX_ID, _RETRY_TAG = 0x80, 20, 16
# The two bits that name the packet; version 2 has other numbers (RFC 9369 section 3.2).
_LONG_TYPES = {
    VERSION_1: ("initial", "early", "handshake", "retry"),
    VERSION_2: ("retry", "initial", "early", "handshake"),
}


@dataclass(frozen=True, slots=True)
class LongHeader:
    """The header of a packet that can stand before the handshake's end.

    Attributes:
        level: "initial", "early", "handshake", "retry"; "negotiation" for version 0; "" for a version not known here.
        version: as it stands in the packet.
        fixed: whether the fixed bit is 1.
        destination_id: the receiver's connection ID.
        source_id: the sender's.
        number_at: where the protected packet number begins.
        end: where the packet ends, offset in the datagram's rest.
        rest: the bytes that its kind has instead of a packet number: a Retry's token, the versions on offer.
    """

    level: str
    version: int
    fixed: bool
    destination_id: bytes
    source_id: bytes
    number_at: int
    end: int
    rest: bytes = b""


def is_long(data: bytes) -> bool:
    """Whether these bytes would begin a packet with a long header."""
    return len(data) >= 7 and bool(data[0] & _LONG_HEADER)


def read_long_header(data: bytes) -> LongHeader | None:
    """Read a long header; None where these bytes make none."""
    cursor = Cursor(data)
    try:
        first, version = cursor.number(1), cursor.number(4)
        destination_id, source_id = cursor.vector(1), cursor.vector(1)
        if version in VERSIONS and max(len(destination_id), len(source_id)) > _MAX_ID:
            return None
        fixed = bool(first & FIXED_BIT)
        if version not in VERSIONS:
            rest = data[cursor.position :]
            level = "" if version else "negotiation"
            if not version and (not rest or len(rest) % 4):
                return None
            return LongHeader(level, version, fixed, destination_id, source_id, cursor.position, len(data), rest)
        level = _LONG_TYPES[version][first >> 4 & 3]
        if level == "retry":
            token = cursor.take(max(cursor.left - _RETRY_TAG, 0))
            cursor.take(_RETRY_TAG)
            return LongHeader(level, version, fixed, destination_id, source_id, cursor.position, len(data), token)
        if level == "initial":
            cursor.take(cursor.varint())  # token
        length = cursor.varint()
        start = cursor.position
        cursor.take(length)
    except Truncated:
        return None
    return LongHeader(level, version, fixed, destination_id, source_id, start, cursor.position)
