"""The relay's notation: what it carries written as Ethernet frames, so that the wire and captures need no other kind.

Sources: RFC 791 and 1071 (IPv4 and its checksum), RFC 9293 (TCP), RFC 768 (UDP).
"""

from __future__ import annotations

import array
import socket
import struct
import sys
from typing import NamedTuple

from labkit.network import addresses

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
TCP, UDP = 6, 17
MAX_PAYLOAD = 1448  # of a TCP segment, as on a kernel's link of 1500 bytes
TCP_START, UDP_START = 54, 42  # where the payload begins

_NETWORK = socket.inet_aton(addresses.ipv4(0))[:3]
_IP = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")


class Endpoint(NamedTuple):
    """A host's number and a port of it."""

    number: int
    port: int

    @property
    def ip(self) -> bytes:
        return _NETWORK + bytes([self.number])


def tcp_frame(
    source: Endpoint, destination: Endpoint, flags: int, seq: int, ack: int, window: int, payload: bytes = b""
) -> bytes:
    """A segment. `seq` and `ack` are taken modulo 2**32, `window` is cut to 16 bits."""
    head = _TCP.pack(source.port, destination.port, seq % 2**32, ack % 2**32, 5 << 4, flags, min(window, 65535), 0, 0)
    checksum = _checksum(_pseudo_header(source, destination, TCP, 20 + len(payload)) + head + payload)
    head = head[:16] + checksum.to_bytes(2, "big") + head[18:]
    return _ethernet_and_ip(source, destination, TCP, 20 + len(payload)) + head + payload


def udp_frame(source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
    """A datagram, in one frame however large it is."""
    length = 8 + len(payload)
    head = struct.pack("!HHHH", source.port, destination.port, length, 0)
    checksum = _checksum(_pseudo_header(source, destination, UDP, length) + head + payload) or 0xFFFF
    return _ethernet_and_ip(source, destination, UDP, length) + head[:6] + checksum.to_bytes(2, "big") + payload


def endpoints(frame: bytes) -> tuple[Endpoint, Endpoint]:
    """Source and destination of a frame that was made here."""
    source_port, destination_port = struct.unpack_from("!HH", frame, 34)
    return Endpoint(frame[29], source_port), Endpoint(frame[33], destination_port)


def _ethernet_and_ip(source: Endpoint, destination: Endpoint, protocol: int, length: int) -> bytes:
    # The same addresses as those of the hosts that have a kernel: labkit.network.helper.mac.
    ethernet = bytes([2, 0, 0, 0, 0, destination.number, 2, 0, 0, 0, 0, source.number, 8, 0])
    total = min(20 + length, 65535)
    dont_fragment, ttl = 0x4000, 64
    header = _IP.pack(0x45, 0, total, 0, dont_fragment, ttl, protocol, 0, source.ip, destination.ip)
    return ethernet + header[:10] + _checksum(header).to_bytes(2, "big") + header[12:]


def _pseudo_header(source: Endpoint, destination: Endpoint, protocol: int, length: int) -> bytes:
    return source.ip + destination.ip + struct.pack("!HH", protocol, length)


def _checksum(data: bytes) -> int:
    words = array.array("H", data + bytes(len(data) % 2))
    if sys.byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
