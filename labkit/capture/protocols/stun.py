"""STUN and TURN: who asks under which address it is seen, and what a relay is told.

Sources: RFC 8489 (STUN), RFC 8656 (TURN, channel data in section 12), RFC 8445 (ICE's attributes).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from labkit.capture.fields import Cursor, Truncated, printable
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found, Role
from labkit.capture.protocol import Certainty, Datagram, DatagramProtocol

_MAGIC_COOKIE = 0x2112A442
_HEADER = 20
_METHODS = {
    1: "Binding", 3: "Allocate", 4: "Refresh", 6: "Send", 7: "Data", 8: "CreatePermission", 9: "ChannelBind",
    10: "Connect", 11: "ConnectionBind", 12: "ConnectionAttempt",
}  # fmt: skip
_CLASSES: tuple[tuple[str, Role], ...] = (
    ("request", "request"), ("indication", "data"), ("success response", "response"), ("error response", "response"),
)  # fmt: skip
_ADDRESSES = {0x0001: "MAPPED-ADDRESS", 0x8023: "ALTERNATE-SERVER", 0x802B: "RESPONSE-ORIGIN", 0x802C: "OTHER-ADDRESS"}
_XOR_ADDRESSES = {0x0012: "XOR-PEER-ADDRESS", 0x0016: "XOR-RELAYED-ADDRESS", 0x0020: "XOR-MAPPED-ADDRESS"}
_TEXTS = {0x0006: "USERNAME", 0x0014: "REALM", 0x8022: "SOFTWARE"}
_NUMBERS = {0x000D: "LIFETIME", 0x0024: "PRIORITY"}
_FLAGS = {0x0025: "USE-CANDIDATE", 0x8029: "ICE-CONTROLLED", 0x802A: "ICE-CONTROLLING"}
_ERROR_CODE, _CHANNEL_NUMBER, _DATA, _TRANSPORT = 0x0009, 0x000C, 0x0013, 0x0019


class Stun(DatagramProtocol):
    """STUN messages, and the channel data of TURN between them."""

    ports = frozenset({3478})

    @classmethod
    def recognise(cls, datagram: Datagram) -> Certainty:
        data = datagram.data
        if _is_message(data):
            return Certainty.SURE
        return Certainty.MAYBE if _channel(data) is not None else Certainty.NO

    def read(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> list[list[Found] | None]:
        # Channel data has hardly a header: it is known by the messages around it, or by TURN's port.
        relayed = any(_is_message(datagram.data) or datagram.port in self.ports for datagram in datagrams)
        return [_read(number, datagram.data, relayed) for number, datagram in enumerate(datagrams)]


def _is_message(data: bytes) -> bool:
    """RFC 8489 section 5: two bits 0, a length of whole words, the magic cookie."""
    whole = len(data) >= _HEADER and data[0] < 0x40 and int.from_bytes(data[4:8], "big") == _MAGIC_COOKIE
    return whole and int.from_bytes(data[2:4], "big") == len(data) - _HEADER and len(data) % 4 == 0


def _channel(data: bytes) -> int | None:
    """The channel that data goes through (RFC 8656 section 12.4); over UDP padding is possible."""
    if len(data) < 4 or not 0x40 <= data[0] < 0x50:
        return None
    length = int.from_bytes(data[2:4], "big")
    return int.from_bytes(data[:2], "big") if length <= len(data) - 4 <= length + 3 else None


def _read(number: int, data: bytes, relayed: bool) -> list[Found] | None:
    place = ("", number, number, len(data), data)
    if not _is_message(data):
        if not relayed:
            return None
        channel = f"0x{_channel(data):04x}"
        detail = f"channel {channel}, {int.from_bytes(data[2:4], 'big')} bytes"
        return [Found("STUN", "ChannelData", detail, *place, role="data", label=f"TURN ChannelData {channel}")]
    bits = int.from_bytes(data[:2], "big")
    # The two bits of the class stand between those of the method (RFC 8489 section 5).
    method = bits & 0x000F | (bits & 0x00E0) >> 1 | (bits & 0x3E00) >> 2
    kind, role = _CLASSES[(bits >> 7 & 2) | (bits >> 4 & 1)]
    name = f"{_METHODS.get(method, f'method {method}')} {kind}"
    attributes, shown = _attributes(data)
    family = "TURN" if method not in (0, 1) else "STUN"
    label = f"{family} {name}" + (f" {shown}" if shown else "")
    return [Found("STUN", name, ", ".join(attributes), *place, role=role, label=label)]


def _attributes(data: bytes) -> tuple[list[str], str]:
    """Read the attributes that say something; and the one that a ladder shows."""
    cursor, said, shown = Cursor(data[_HEADER:]), [], ""
    try:
        while cursor.left:
            kind, value = cursor.number(2), cursor.vector(2)
            cursor.take(min(-len(value) % 4, cursor.left))
            text = _attribute(kind, value, data)
            if text:
                said.append(text)
            if kind in (_ERROR_CODE, 0x0016) or (kind == 0x0020 and not shown):
                shown = text.split(" ", 1)[-1]
    except Truncated:
        said.append("malformed attribute")
    return said[:12], shown


def _attribute(kind: int, value: bytes, data: bytes) -> str:
    cursor = Cursor(value)
    if kind in _XOR_ADDRESSES:
        return f"{_XOR_ADDRESSES[kind]} {_address(cursor, data[4:_HEADER])}"
    if kind in _ADDRESSES:
        return f"{_ADDRESSES[kind]} {_address(cursor, bytes(16))}"
    if kind in _TEXTS:
        return f"{_TEXTS[kind]} {printable(value)}"
    if kind in _NUMBERS:
        return f"{_NUMBERS[kind]} {cursor.number(4)}"
    if kind in _FLAGS:
        return _FLAGS[kind]
    if kind == _ERROR_CODE:
        bits = cursor.number(4)
        return f"ERROR-CODE {(bits >> 8 & 7) * 100 + (bits & 255)} {printable(cursor.take(cursor.left))}".rstrip()
    if kind == _CHANNEL_NUMBER:
        return f"CHANNEL-NUMBER 0x{cursor.number(2):04x}"
    if kind == _DATA:
        return f"DATA {len(value)} bytes"
    return f"REQUESTED-TRANSPORT {'UDP' if value[:1] == bytes([17]) else 'TCP'}" if kind == _TRANSPORT else ""


def _address(cursor: Cursor, mask: bytes) -> str:
    """Read an address; ``mask`` is the cookie and the transaction ID, with which NATs cannot find it to rewrite it."""
    cursor.take(1)
    family, port = cursor.number(1), cursor.number(2) ^ int.from_bytes(mask[:2], "big")
    packed = bytes(byte ^ bit for byte, bit in zip(cursor.take(16 if family == 2 else 4), mask, strict=False))
    address = socket.inet_ntop(socket.AF_INET6 if family == 2 else socket.AF_INET, packed)
    return f"[{address}]:{port}" if family == 2 else f"{address}:{port}"


DATAGRAM = Stun
