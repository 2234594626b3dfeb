"""The headers of RTP and RTCP, which SRTP leaves in the clear.

Sources: RFC 3550 (RTP, RTCP), RFC 3711 (SRTP), RFC 4585 (feedback), RFC 5761 section 4 (both on one port).
"""

from __future__ import annotations

import struct

from labkit.capture.messages import Found

_RTCP = {
    192: "full INTRA-frame request", 200: "sender report", 201: "receiver report", 202: "source description",
    203: "goodbye", 204: "application", 205: "transport feedback", 206: "payload feedback", 207: "extended report",
}  # fmt: skip


def is_rtp(data: bytes) -> bool:
    """Whether these bytes can be RTP or RTCP: version 2, and a header."""
    return len(data) >= 8 and data[0] >> 6 == 2 and (is_rtcp(data) or len(data) >= 12)


def is_rtcp(data: bytes) -> bool:
    """RFC 5761: payload types 64 to 95 are not used with a marker bit, so that these numbers are RTCP's."""
    return 192 <= data[1] <= 223


def source(data: bytes) -> int:
    """Whose packet it is (SSRC)."""
    return int.from_bytes(data[4:8] if is_rtcp(data) else data[8:12], "big")


def sequence(data: bytes) -> int:
    """Number of an RTP packet among those of its source, modulo 2^16."""
    return int.from_bytes(data[2:4], "big")


def read_rtp(data: bytes, number: int, *, secure: bool) -> Found:
    """Name a packet.

    Args:
        data: the datagram.
        number: its number, the message's place.
        secure: whether DTLS made keys for it: the payload is encrypted.
    """
    letter = "S" if secure else ""
    place = ("unknown" if secure else "", number, number)
    size, ssrc = len(data), f"SSRC 0x{source(data):08x}"
    if is_rtcp(data):
        name = f"{letter}RTCP {_RTCP.get(data[1], f'type {data[1]}')}"
        return Found(f"{letter}RTCP", name, f"{ssrc}, {size} bytes", *place, size, data, role="control")
    kind, marker = data[1] & 0x7F, data[1] >> 7
    count, (timestamp,) = sequence(data), struct.unpack_from("!I", data, 4)
    parts = [f"payload type {kind}", f"seq {count}", f"time {timestamp}", ssrc, *(["marker"] if marker else [])]
    label = f"{letter}RTP {kind} seq {count}" + (" marker" if marker else "")
    detail = ", ".join([*parts, f"{size} bytes"])
    return Found(f"{letter}RTP", f"{letter}RTP", detail, *place, size, data, role="data", label=label)
