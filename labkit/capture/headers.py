"""The headers of one frame: Ethernet, IPv4 and IPv6, TCP and UDP.

``decode`` is a pure function and never raises: what cannot be read is labelled "malformed ...".

Sources: RFC 791 and 8200 (IP), RFC 9293 (TCP), RFC 7413 (TCP Fast Open), RFC 768 (UDP). ``icmp`` reads ICMP.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from functools import lru_cache

from labkit.capture.icmp import Icmp, read_icmp

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_FLAG_NAMES = {FIN: "FIN", SYN: "SYN", RST: "RST", PSH: "PSH", ACK: "ACK", 0x20: "URG", 0x40: "ECE", 0x80: "CWR"}

# Hop-by-hop, routing, destination options: all "next header, length in 8 bytes".
_IPV6_OPTION_HEADERS = (0, 43, 60)
_IPV6_FRAGMENT = 44


@dataclass(frozen=True, slots=True)
class TcpHeader:
    """The part of a TCP header that matters here.

    Attributes:
        seq: sequence number of the first payload byte (of the SYN where there is one).
        ack: the acknowledgment number; 0 without the ACK flag.
        flags: bits, see the constants ``FIN`` ... ``ACK``.
        window: receive window as it stands in the header (not scaled).
        cookie: TCP Fast Open option: None = absent, b"" = the client asks for a cookie.
    """

    seq: int
    ack: int
    flags: int
    window: int
    cookie: bytes | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the headers of one frame say.

    Attributes:
        protocol: "TCP", "UDP", else the name of what it is: "ARP", "ICMP", "IPv4" ...
        source: IP address of the sender, "" where there is none.
        destination: IP address of the receiver, "" where there is none.
        source_port: port, 0 where there is none.
        destination_port: port, 0 where there is none.
        payload: the transport's payload, as far as it was captured.
        length: bytes of payload that the packet had on the wire.
        label: a name for frames that are neither TCP nor UDP, such as "ICMP echo request"; else "".
        tcp: the TCP header, None for all else.
        icmp: the ICMP or ICMPv6 message, None for all else.
    """

    protocol: str
    source: str = ""
    destination: str = ""
    source_port: int = 0
    destination_port: int = 0
    payload: bytes = b""
    length: int = 0
    label: str = ""
    tcp: TcpHeader | None = None
    icmp: Icmp | None = None


def decode(frame: bytes) -> Decoded:
    """Read the headers of one Ethernet frame.

    Args:
        frame: the bytes from the Ethernet header on. May be cut or hostile.

    Returns:
        what is known. Nothing is raised: the protocol of an unreadable packet is the last header that could
        be read, its label "malformed ...".
    """
    if len(frame) < 14:
        return Decoded("Ethernet", label="malformed Ethernet frame")
    ether_type, start = struct.unpack_from("!H", frame, 12)[0], 14
    while ether_type in (0x8100, 0x88A8) and len(frame) >= start + 4:  # VLAN tags
        ether_type, start = struct.unpack_from("!H", frame, start + 2)[0], start + 4
    packet = frame[start:]
    if ether_type == 0x0800:
        return _decode_ipv4(packet)
    if ether_type == 0x86DD:
        return _decode_ipv6(packet)
    if ether_type == 0x0806:
        operation = struct.unpack_from("!H", packet, 6)[0] if len(packet) >= 8 else 0
        return Decoded("ARP", label={1: "ARP request", 2: "ARP reply"}.get(operation, "ARP"))
    return Decoded("Ethernet", label=f"Ethernet type 0x{ether_type:04x}")


@lru_cache(maxsize=256)
def flag_names(flags: int) -> frozenset[str]:
    """The bits of ``TcpHeader.flags`` by name."""
    return frozenset(name for bit, name in _FLAG_NAMES.items() if flags & bit)


@lru_cache(maxsize=1024)
def _address(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _decode_ipv4(packet: bytes) -> Decoded:
    if len(packet) < 20:
        return Decoded("IPv4", label="malformed IPv4 packet")
    header_length = (packet[0] & 0x0F) * 4
    total_length, fragment, protocol = struct.unpack_from("!2xHxxHxB", packet)
    source, destination = _address(packet[12:16]), _address(packet[16:20])
    # Segmentation offload can leave 0 in the length field: then the packet is as long as the frame.
    total_length = total_length or len(packet)
    if packet[0] >> 4 != 4 or header_length < 20 or total_length < header_length:
        return Decoded("IPv4", source, destination, label="malformed IPv4 packet")
    if fragment & 0x3FFF:  # "more fragments", or not the first one
        return Decoded("IPv4", source, destination, label=f"IPv4 fragment at byte {(fragment & 0x1FFF) * 8}")
    # The length field, not the frame, says where the packet ends: short frames are padded to 60 bytes.
    return _decode_transport(
        protocol, source, destination, packet[header_length:total_length], total_length - header_length
    )


def _decode_ipv6(packet: bytes) -> Decoded:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return Decoded("IPv6", label="malformed IPv6 packet")
    length, protocol = struct.unpack_from("!4xHB", packet)
    source, destination = _address(packet[8:24]), _address(packet[24:40])
    length = length or len(packet) - 40
    body = packet[40 : 40 + length]
    while protocol in _IPV6_OPTION_HEADERS:
        if len(body) < 8:
            return Decoded("IPv6", source, destination, label="malformed IPv6 packet")
        protocol, skip = body[0], 8 + body[1] * 8
        body, length = body[skip:], length - skip
    if protocol == _IPV6_FRAGMENT:
        return Decoded("IPv6", source, destination, label="IPv6 fragment")
    return _decode_transport(protocol, source, destination, body, length)


def _decode_transport(protocol: int, source: str, destination: str, body: bytes, length: int) -> Decoded:
    """Read what IP carries; ``length`` is what the packet had, ``body`` what was captured of it."""
    if protocol == socket.IPPROTO_TCP:
        return _decode_tcp(source, destination, body, length)
    if protocol == socket.IPPROTO_UDP:
        if len(body) < 8:
            return Decoded("UDP", source, destination, label="malformed UDP header")
        source_port, destination_port, udp_length = struct.unpack_from("!HHH", body)
        udp_length = udp_length or length  # 0: a jumbogram; the IP header knows
        if not 8 <= udp_length <= length:
            return Decoded("UDP", source, destination, source_port, destination_port, label="malformed UDP header")
        return Decoded("UDP", source, destination, source_port, destination_port, body[8:udp_length], udp_length - 8)
    if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        name = "ICMP" if protocol == socket.IPPROTO_ICMP else "ICMPv6"
        icmp = read_icmp(body, v6=name == "ICMPv6")
        label = f"{name} {icmp.name}" if icmp is not None else f"malformed {name} message"
        return Decoded(name, source, destination, payload=body, length=length, label=label, icmp=icmp)
    return Decoded("IP", source, destination, length=length, label=f"IP protocol {protocol}")


def _decode_tcp(source: str, destination: str, body: bytes, length: int) -> Decoded:
    if len(body) < 20:
        return Decoded("TCP", source, destination, label="malformed TCP header")
    source_port, destination_port, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", body)
    header_length = (offset >> 4) * 4
    if header_length < 20 or header_length > min(length, len(body)):
        return Decoded("TCP", source, destination, source_port, destination_port, label="malformed TCP header")
    cookie = _fast_open_cookie(body[20:header_length]) if flags & SYN else None
    header = TcpHeader(seq, ack if flags & ACK else 0, flags, window, cookie)
    payload, size = body[header_length:], length - header_length
    return Decoded("TCP", source, destination, source_port, destination_port, payload, size, tcp=header)


def _fast_open_cookie(options: bytes) -> bytes | None:
    """Find the Fast Open option (kind 34, RFC 7413 section 4.1.1) among TCP options."""
    position = 0
    while position < len(options) and options[position] != 0:
        if options[position] == 1:  # padding
            position += 1
            continue
        if position + 1 >= len(options) or options[position + 1] < 2:
            return None
        kind, length = options[position], options[position + 1]
        if kind == 34:
            return options[position + 2 : position + length]
        position += length
    return None
