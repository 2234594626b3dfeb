"""Capture files made by hand, block by block, in either byte order."""

from __future__ import annotations

import socket
import struct

SECTION_TYPE, INTERFACE, OBSOLETE, SIMPLE, NAMES, STATISTICS, PACKET, SECRETS = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6, 10
TIME_NS = 1_700_000_000_123_456_789


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(order: str, kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + padded(value)


def section(order: str = "<", options: bytes = b"") -> bytes:
    return block(order, SECTION_TYPE, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


def interface(order: str = "<", link_type: int = 1, options: bytes = b"", snap_length: int = 0) -> bytes:
    return block(order, INTERFACE, struct.pack(order + "HHI", link_type, 0, snap_length) + options)


def packet(order: str, ticks: int, data: bytes, number: int = 0, length: int | None = None) -> bytes:
    length = len(data) if length is None else length
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), length)
    return block(order, PACKET, head + padded(data))


def pcap(order: str, magic: int, packets: list[tuple[int, int, bytes]], link_type: int = 1) -> bytes:
    header = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    return header + b"".join(struct.pack(order + "IIII", s, f, len(data), len(data)) + data for s, f, data in packets)


def udp(payload: bytes, source: str = "192.0.2.1", destination: str = "198.51.100.2") -> bytes:
    """An IPv4 packet without a link header."""
    body = struct.pack("!HHHH", 40000, 9999, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, 17, 0) + addresses + body


def ethernet(packet: bytes, kind: int = 0x0800) -> bytes:
    return bytes.fromhex("020000000002 020000000001") + struct.pack("!H", kind) + packet
