"""Network address translation, packet by packet: what a home router does. Pure: no socket, no clock.

A mapping joins an inside address and port to a port of the public address. Kinds differ in who shares a mapping and in
who may send to it: RFC 3489 section 5 has their names, RFC 4787 sections 4.1 and 5 what they do, RFC 5508 ICMP.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

ICMP, TCP, UDP = 1, 6, 17
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
ERRORS = (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2}
# How much of the other end's address and port decides which mapping is used, and whether its packets are let in.
NOTHING, ADDRESS, ADDRESS_AND_PORT = 0, 1, 2
KINDS = {
    "full cone": (NOTHING, NOTHING),
    "restricted cone": (NOTHING, ADDRESS),
    "port restricted cone": (NOTHING, ADDRESS_AND_PORT),
    "symmetric": (ADDRESS_AND_PORT, ADDRESS_AND_PORT),
}
TCP_TIMEOUT_S = 7440.0  # RFC 5382 REQ-5

End = tuple[bytes, int]  # address and port; of an echo its identifier stands for the port


@dataclass
class Mapping:
    """What an inside address and port are called outside."""

    protocol: int
    inside: End
    port: int
    used_s: float
    peers: set[tuple[object, ...]] = field(default_factory=set)


class Head(NamedTuple):
    """Where things stand in a packet, and between whom it goes."""

    start: int  # of what IP carries
    protocol: int
    source: End
    destination: End


class Translator:
    """The mappings of one public address.

    Args:
        public: the public IPv4 address, packed.
        kind: one of KINDS.
        timeout_s: how long an unused mapping of UDP and ICMP lasts, seconds.
        seed: for the ports that a symmetric one gives out.

    Attributes:
        fresh: mappings that were made since somebody emptied this list.
    """

    def __init__(self, public: bytes, kind: str, timeout_s: float, seed: int) -> None:
        self.public, self.timeout_s = public, timeout_s
        self.depends, self.filters = KINDS[kind]
        self.random = random.Random(seed)
        self.fresh: list[Mapping] = []
        self._mappings: dict[tuple[object, ...], Mapping] = {}
        self._by_port: dict[tuple[int, int], Mapping] = {}
        self._fragments: dict[bytes, bytes] = {}  # of a packet whose first fragment was let through: its new address

    def outbound(self, packet: bytes, now_s: float) -> bytes | None:
        """A packet from inside as it goes out; None for one that cannot."""
        if _later_fragment(packet):
            return self._fragment(packet, 12)
        head = _read(packet)
        if head is None:
            return None
        if head.protocol == ICMP and packet[head.start] in ERRORS:
            return self._error(packet, head, now_s, inside=True)
        mapping = self._mapping(head.protocol, head.source, head.destination, now_s)
        mapping.peers.add(_part(head.protocol, head.destination, self.filters))
        self._remember(packet, self.public, 12)
        return rewrite(packet, head, 12, (self.public, mapping.port))

    def inbound(self, packet: bytes, now_s: float) -> bytes | None:
        """A packet for the public address as it goes in; None for one that nobody inside has asked for."""
        if _later_fragment(packet):
            return self._fragment(packet, 16)
        head = _read(packet)
        if head is None or head.destination[0] != self.public:
            return None
        if head.protocol == ICMP and packet[head.start] in ERRORS:
            return self._error(packet, head, now_s, inside=False)
        mapping = self._alive(self._by_port.get((head.protocol, head.destination[1])), now_s)
        if mapping is None or _part(head.protocol, head.source, self.filters) not in mapping.peers:
            return None
        mapping.used_s = now_s
        self._remember(packet, mapping.inside[0], 16)
        return rewrite(packet, head, 16, mapping.inside)

    def _mapping(self, protocol: int, inside: End, peer: End, now_s: float) -> Mapping:
        key = protocol, inside, _part(protocol, peer, self.depends)
        mapping = self._alive(self._mappings.get(key), now_s)
        if mapping is None:
            port = inside[1] if self.depends == NOTHING else self.random.randint(1024, 65535)
            while self._alive(self._by_port.get((protocol, port)), now_s) is not None:
                port = self.random.randint(1024, 65535)
            mapping = self._mappings[key] = self._by_port[protocol, port] = Mapping(protocol, inside, port, now_s)
            self.fresh.append(mapping)
        mapping.used_s = now_s
        return mapping

    def _alive(self, mapping: Mapping | None, now_s: float) -> Mapping | None:
        if mapping is None:
            return None
        lasts_s = TCP_TIMEOUT_S if mapping.protocol == TCP else self.timeout_s
        return mapping if now_s - mapping.used_s <= lasts_s else None

    def _error(self, packet: bytes, head: Head, now_s: float, *, inside: bool) -> bytes | None:
        """An ICMP error carries the packet that it is about, whose addresses are translated, too."""
        at = head.start + 8
        about = packet[at:]
        told = _read(about)
        if told is None:
            return None
        if inside:  # about one that came in
            key = told.protocol, told.destination, _part(told.protocol, told.source, self.depends)
            mapping = self._alive(self._mappings.get(key), now_s)
            new, there = (self.public, 0 if mapping is None else mapping.port), 16
        else:  # about one that went out
            mapping = self._alive(self._by_port.get((told.protocol, told.source[1])), now_s)
            new, there = (b"", 0) if mapping is None else mapping.inside, 12
        if mapping is None:
            return None
        whole = bytearray(packet[:at] + rewrite(about, told, there, new))
        outer = (12, self.public) if inside else (16, new[0])
        whole[outer[0] : outer[0] + 4] = outer[1]
        whole[10:12] = b"\0\0"
        whole[10:12] = checksum(bytes(whole[: head.start]))
        whole[head.start + 2 : head.start + 4] = b"\0\0"
        whole[head.start + 2 : head.start + 4] = checksum(bytes(whole[head.start :]))
        return bytes(whole)

    def _remember(self, packet: bytes, address: bytes, at: int) -> None:
        if packet[6] & 0x20:  # more fragments
            self._fragments[_fragment_key(packet)] = address

    def _fragment(self, packet: bytes, at: int) -> bytes | None:
        address = self._fragments.get(_fragment_key(packet))
        if address is None:
            return None
        new = bytearray(packet)
        new[10:12] = adjusted(packet[10:12], packet[at : at + 4], address)
        new[at : at + 4] = address
        return bytes(new)


def _part(protocol: int, peer: End, depends: int) -> tuple[object, ...]:
    """What of the other end counts. Who answers an echo has no port."""
    return peer[: min(depends, ADDRESS)] if protocol == ICMP else peer[:depends]


def _later_fragment(packet: bytes) -> bool:
    return len(packet) >= 20 and bool(int.from_bytes(packet[6:8], "big") & 0x1FFF)


def _fragment_key(packet: bytes) -> bytes:
    return packet[4:6] + packet[9:10] + packet[12:20]


def _read(packet: bytes) -> Head | None:
    """Where an IPv4 packet's ports stand. None for one that has none, or is cut before they end."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    start, protocol = 4 * (packet[0] & 15), packet[9]
    body = packet[start : start + 8]
    if start < 20 or len(body) < 8 or protocol not in CHECKSUM_AT:
        return None
    if protocol == ICMP:
        identifier = int.from_bytes(body[4:6], "big")
        if body[0] not in (ECHO_REQUEST, ECHO_REPLY, *ERRORS):
            return None
        ports = identifier, identifier
    else:
        ports = struct.unpack_from("!HH", body)
    return Head(start, protocol, (packet[12:16], ports[0]), (packet[16:20], ports[1]))


def rewrite(packet: bytes, head: Head, at: int, end: End) -> bytes:
    """Another source (`at` 12) or destination (16), with the checksums that follow from it."""
    address, port = end[0], end[1].to_bytes(2, "big")
    new = bytearray(packet)
    new[at : at + 4] = address
    new[10:12] = adjusted(packet[10:12], packet[at : at + 4], address)
    port_at = head.start + (4 if head.protocol == ICMP else 0 if at == 12 else 2)
    before, after = packet[port_at : port_at + 2], port
    new[port_at : port_at + 2] = port
    if head.protocol != ICMP:  # whose checksum knows no addresses
        before, after = packet[at : at + 4] + before, address + after
    sum_at = head.start + CHECKSUM_AT[head.protocol]
    there = packet[sum_at : sum_at + 2]
    # A datagram without a checksum stays so; what an ICMP error quotes of a segment may end before its checksum.
    if len(there) == 2 and not (head.protocol == UDP and there == b"\0\0"):
        new[sum_at : sum_at + 2] = adjusted(there, before, after)
    return bytes(new)


def adjusted(before: bytes, old: bytes, new: bytes) -> bytes:
    """A checksum after some bytes have changed (RFC 1624 section 3, equation 3)."""
    total = 0xFFFF - int.from_bytes(before, "big")
    for word in struct.unpack(f"!{len(old) // 2}H", old):
        total += 0xFFFF - word
    total += sum(struct.unpack(f"!{len(new) // 2}H", new))
    return _folded(total)


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    return _folded(sum(struct.unpack(f"!{len(padded) // 2}H", padded)))


def _folded(total: int) -> bytes:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF - total).to_bytes(2, "big")
