"""Headers, on bytes made by hand."""

from __future__ import annotations

import socket
import struct

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.headers import decode
from labkit.capture.keylog import KeyLog

MAC = bytes(12)


def ethernet(ether_type: int, packet: bytes) -> bytes:
    return MAC + struct.pack("!H", ether_type) + packet


def ipv4(protocol: int, body: bytes, *, total: int | None = None, fragment: int = 0) -> bytes:
    length = 20 + len(body) if total is None else total
    addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    return ethernet(0x0800, struct.pack("!BBHHHBBH", 0x45, 0, length, 0, fragment, 64, protocol, 0) + addresses + body)


def ipv6(next_header: int, body: bytes) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
    return ethernet(0x86DD, struct.pack("!IHBB", 6 << 28, len(body), next_header, 64) + addresses + body)


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 1000, 53, 8 + len(payload), 0) + payload


def tcp(payload: bytes, options: bytes = b"", flags: int = 0x18) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack("!HHIIBBHHH", 1000, 80, 5, 6, offset, flags, 500, 0, 0) + options + payload


def test_udp_over_both_ip_versions():
    for frame, client in ((ipv4(17, udp(b"hi")), "10.0.0.1"), (ipv6(17, udp(b"hi")), "fd00::1")):
        decoded = decode(frame)
        assert (decoded.protocol, decoded.source, decoded.source_port) == ("UDP", client, 1000)
        assert (decoded.destination_port, decoded.payload, decoded.length) == (53, b"hi", 2)


def test_ipv6_extension_headers():
    hop_by_hop = bytes([60, 0]) + bytes(6)
    destination_options = bytes([17, 1]) + bytes(14)
    assert decode(ipv6(0, hop_by_hop + destination_options + udp(b"hi"))).payload == b"hi"
    assert decode(ipv6(0, hop_by_hop[:4])).label == "malformed IPv6 packet"


def test_vlan_tag():
    frame = ipv4(17, udp(b"hi"))
    tagged = frame[:12] + struct.pack("!HH", 0x8100, 7) + frame[12:]
    assert decode(tagged).payload == b"hi"


def test_padding_of_short_frames_is_no_payload():
    assert decode(ipv4(17, udp(b"hi")) + bytes(20)).payload == b"hi"
    assert decode(ipv4(6, tcp(b"")) + bytes(20)).length == 0


def test_tcp_header():
    decoded = decode(ipv4(6, tcp(b"data", options=b"\1\1\1\1")))
    assert decoded.payload == b"data"
    assert decoded.tcp is not None
    assert (decoded.tcp.seq, decoded.tcp.ack, decoded.tcp.window, decoded.tcp.cookie) == (5, 6, 500, None)


@pytest.mark.parametrize(
    ("options", "cookie"),
    [
        (b"\x22\x02\1\1", b""),
        (b"\1\1\x22\x0aABCDEFGH", b"ABCDEFGH"),
        (b"\2\4\5\xb4\x22\x06ABCD\1\1", b"ABCD"),
        (b"\0\0\x22\2", None),  # after the end of the options
        (b"\2\0\x22\2", None),  # an option of length 0
        (b"\1\1\1\x22", None),
    ],
)
def test_fast_open_cookie(options, cookie):
    decoded = decode(ipv4(6, tcp(b"", options, flags=0x02)))
    assert decoded.tcp is not None
    assert decoded.tcp.cookie == cookie


def test_a_frame_cut_by_the_capture_keeps_its_length():
    decoded = decode(ipv4(17, udp(bytes(100)))[:70])
    assert (decoded.length, len(decoded.payload)) == (100, 28)


def test_a_length_of_zero_is_the_rest():
    """Segmentation offload leaves 0 in the length fields of packets longer than 64 KiB."""
    decoded = decode(ipv4(6, tcp(bytes(70_000)), total=0))
    assert decoded.length == 70_000


@pytest.mark.parametrize(
    ("frame", "label"),
    [
        (b"", "malformed Ethernet frame"),
        (bytes(13), "malformed Ethernet frame"),
        (ethernet(0x0806, bytes(6) + b"\0\1"), "ARP request"),
        (ethernet(0x0806, bytes(6) + b"\0\2"), "ARP reply"),
        (ethernet(0x0806, b""), "ARP"),
        (ethernet(0x88CC, b"hello"), "Ethernet type 0x88cc"),
        (ethernet(0x0800, b"\x45"), "malformed IPv4 packet"),
        (ipv4(17, b"", total=10), "malformed IPv4 packet"),
        (ethernet(0x86DD, bytes(40)), "malformed IPv6 packet"),
        (ipv4(17, b"\0\0\0"), "malformed UDP header"),
        (ipv4(17, struct.pack("!HHHH", 1, 2, 500, 0)), "malformed UDP header"),
        (ipv4(17, struct.pack("!HHHH", 1, 2, 7, 0)), "malformed UDP header"),
        (ipv4(6, bytes(19)), "malformed TCP header"),
        (ipv4(6, bytes(20)), "malformed TCP header"),
        (ipv4(6, tcp(b"")[:12] + b"\xf0" + tcp(b"")[13:]), "malformed TCP header"),
        (ipv4(1, b"\x08\0\0\0"), "ICMP echo request"),
        (ipv4(1, b"\x03\x03\0\0"), "ICMP port unreachable"),
        (ipv4(1, b"\x03\x04\0\0"), "ICMP fragmentation needed"),
        (ipv4(1, b"\x7b\0\0\0"), "ICMP type 123"),
        (ipv4(1, b"\x08"), "malformed ICMP message"),
        (ipv6(58, b"\x87\0\0\0"), "ICMPv6 neighbour solicitation"),
        (ipv6(44, bytes(16)), "IPv6 fragment"),
        (ipv4(17, udp(b"hi"), fragment=0x2000), "IPv4 fragment at byte 0"),
        (ipv4(17, b"rest", fragment=185), "IPv4 fragment at byte 1480"),
        (ipv4(47, b"gre"), "IP protocol 47"),
    ],
)
def test_labels_of_other_and_malformed_frames(frame, label):
    assert decode(frame).label == label


def test_the_answer_to_an_echo_request_comes_from_the_server():
    request, reply = ipv4(1, b"\x08\0\0\0\0\3\0\7ping"), bytearray(ipv4(1, b"\0\0\0\0\0\3\0\7ping"))
    reply[26:30], reply[30:34] = reply[30:34], reply[26:30]
    transits = [Transit(1, 2, "a", "b", request), Transit(3, 4, "b", "a", bytes(reply))]
    first, second = dissect(transits, KeyLog())
    assert [first.what, second.what] == ["ICMP echo request seq 7", "ICMP echo reply seq 7"]
    assert (first.label, first.messages[0].detail) == ("ICMP echo request", "id 3, seq 7")
    assert (first.from_client, second.from_client) == (True, False)
    assert first.flow == second.flow
