"""ICMP and ICMPv6 messages: what they tell, and which packet they quote.

Sources: RFC 792, 1122 section 3.2.2.1 and 1191 section 4 (ICMP), RFC 4443 (ICMPv6), RFC 4861 (neighbours).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_NAMES = {
    0: "echo reply", 3: "destination unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded",
    12: "parameter problem",
}  # fmt: skip
_NAMES_V6 = {
    1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem",
    128: "echo request", 129: "echo reply", 130: "multicast listener query", 133: "router solicitation",
    134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement", 137: "redirect",
    143: "multicast listener report",
}  # fmt: skip
# Type and code, where the code has a name of its own.
_CODES = {
    (3, 0): "network unreachable", (3, 1): "host unreachable", (3, 2): "protocol unreachable",
    (3, 3): "port unreachable", (3, 4): "fragmentation needed", (3, 5): "source route failed",
    (3, 6): "network unknown", (3, 7): "host unknown", (3, 9): "network prohibited", (3, 10): "host prohibited",
    (3, 13): "communication prohibited", (11, 1): "time exceeded (reassembly)",
}  # fmt: skip
_CODES_V6 = {
    (1, 0): "no route", (1, 1): "communication prohibited", (1, 2): "beyond scope", (1, 3): "address unreachable",
    (1, 4): "port unreachable", (1, 5): "source address refused", (1, 6): "route refused",
    (3, 1): "time exceeded (reassembly)",
}  # fmt: skip
_ERRORS, _ERRORS_V6 = (3, 4, 5, 11, 12), range(1, 128)
_TRANSPORTS = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP", socket.IPPROTO_ICMP: "ICMP", 58: "ICMPv6"}


@dataclass(frozen=True, slots=True)
class Quoted:
    """The packet that an error is about, as far as the error quotes it.

    Attributes:
        protocol: "TCP", "UDP", "ICMP", "ICMPv6" or "IP".
        source: address of the sender.
        destination: address of the receiver.
        source_port: port, 0 where there is none.
        destination_port: port, 0 where there is none.
    """

    protocol: str
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0

    def __str__(self) -> str:
        if not self.destination_port:
            return f"{self.source} → {self.destination} {self.protocol}"
        ends = f"{self.source}:{self.source_port} → {self.destination}:{self.destination_port}"
        return f"{ends} {self.protocol}"


@dataclass(frozen=True, slots=True)
class Icmp:
    """One message.

    Attributes:
        name: "echo request", "port unreachable", "fragmentation needed", "packet too big" ...
        type: number of its type.
        code: what distinguishes messages of one type.
        id: of echo messages: whose they are. Else None.
        sequence: of echo messages: which one. Else None.
        mtu: of "fragmentation needed" and "packet too big": bytes that the next link takes. Else None.
        quoted: the packet that an error is about. Else None.
    """

    name: str
    type: int
    code: int
    id: int | None = None
    sequence: int | None = None
    mtu: int | None = None
    quoted: Quoted | None = None

    @property
    def label(self) -> str:
        """Its name with the number that matters."""
        if self.sequence is not None:
            return f"{self.name} seq {self.sequence}"
        return f"{self.name} (MTU {self.mtu})" if self.mtu is not None else self.name

    @property
    def detail(self) -> str:
        echo = f"id {self.id}, seq {self.sequence}" if self.id is not None else ""
        mtu = f"MTU {self.mtu}" if self.mtu is not None else ""
        about = f"about {self.quoted}" if self.quoted is not None else ""
        return ", ".join(part for part in (echo, mtu, about) if part)


def read_icmp(body: bytes, *, v6: bool) -> Icmp | None:
    """Read a message; None where not even its type and code are there.

    Args:
        body: the message, as far as it was captured.
        v6: whether it is ICMPv6.
    """
    if len(body) < 4:
        return None
    kind, code = body[0], body[1]
    name = (_CODES_V6 if v6 else _CODES).get((kind, code)) or (_NAMES_V6 if v6 else _NAMES).get(kind, f"type {kind}")
    if len(body) < 8:
        return Icmp(name, kind, code)
    first, second = struct.unpack_from("!HH", body, 4)
    if kind in ((128, 129) if v6 else (0, 8)):
        return Icmp(name, kind, code, id=first, sequence=second)
    if kind not in (_ERRORS_V6 if v6 else _ERRORS):
        return Icmp(name, kind, code)
    mtu: int | None = None
    if v6 and kind == 2:
        mtu = first << 16 | second
    elif not v6 and (kind, code) == (3, 4):
        mtu = second
    return Icmp(name, kind, code, mtu=mtu, quoted=_quoted(body[8:]))


def _quoted(packet: bytes) -> Quoted | None:
    """Read the beginning of a packet: RFC 792 promises its IP header and 8 bytes more."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        start, protocol, family, ends = (packet[0] & 15) * 4, packet[9], socket.AF_INET, (packet[12:16], packet[16:20])
    elif version == 6 and len(packet) >= 40:
        start, protocol, family, ends = 40, packet[6], socket.AF_INET6, (packet[8:24], packet[24:40])
    else:
        return None
    name = _TRANSPORTS.get(protocol, "IP")
    source, destination = (socket.inet_ntop(family, end) for end in ends)
    ports = packet[start : start + 4] if name in ("TCP", "UDP") else b""
    return Quoted(name, source, destination, *(struct.unpack("!HH", ports) if len(ports) == 4 else ()))
