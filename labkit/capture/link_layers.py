"""Link headers of captures that are not Ethernet, written as Ethernet: what reads frames knows one header only.

A capture on a tunnel has no link header, one on Linux's "any" a cooked one. The addresses that such a header has are
kept, those that it lacks are zero.

Sources: https://www.tcpdump.org/linktypes.html, LINKTYPE_LINUX_SLL.html and LINKTYPE_LINUX_SLL2.html there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

ETHERNET = 1
_NAMES = {
    0: "BSD loopback", 1: "Ethernet", 9: "PPP", 12: "raw IP", 14: "raw IP", 101: "raw IP", 105: "IEEE 802.11",
    108: "OpenBSD loopback", 113: "Linux cooked v1", 127: "IEEE 802.11 with radiotap", 189: "USB (Linux)",
    201: "Bluetooth", 228: "raw IPv4", 229: "raw IPv6", 249: "USBPcap", 252: "Wireshark's exported PDUs",
    253: "netlink", 276: "Linux cooked v2",
}  # fmt: skip
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_OUTGOING = 4  # sll_pkttype of packet(7)


class AsEthernet(NamedTuple):
    """A packet with an Ethernet header.

    Attributes:
        frame: the bytes.
        longer: how many more they are than the packet's.
        sent: whether the header says that the capturing host sent it.
        place: which of several interfaces it was seen on, "" where the header does not say.
    """

    frame: bytes
    longer: int
    sent: bool = False
    place: str = ""


def name_of(link_type: int) -> str:
    """The link type in words: "Linux cooked v1 (113)"."""
    return f"{_NAMES[link_type]} ({link_type})" if link_type in _NAMES else str(link_type)


def reads(link_type: int) -> bool:
    """Whether ``as_ethernet`` knows this link type."""
    return link_type in _READERS


def as_ethernet(link_type: int, packet: bytes) -> AsEthernet:
    """Write a packet with an Ethernet header.

    Args:
        link_type: LINKTYPE_ number, one that ``reads`` knows.
        packet: as captured, possibly cut.

    Returns:
        the frame. A packet that is too short for its header becomes one that is too short for an Ethernet header.
    """
    return _READERS[link_type](packet)


def _frame(
    protocol: bytes, payload: bytes, header: int, source: bytes = b"", sent: bool = False, place: str = ""
) -> AsEthernet:
    return AsEthernet(bytes(6) + (source + bytes(6))[:6] + protocol + payload, 14 - header, sent, place)


_TOO_SHORT = AsEthernet(b"", 0)


def _ethernet(packet: bytes) -> AsEthernet:
    return AsEthernet(packet, 0)


def _raw(packet: bytes) -> AsEthernet:
    version = packet[0] >> 4 if packet else 0
    return _frame(_IPV6 if version == 6 else _IPV4, packet, 0) if packet else _TOO_SHORT


def _loopback(packet: bytes) -> AsEthernet:
    """An address family of the capturing host, in its byte order: AF_INET is 2 on all, AF_INET6 is not."""
    family = min(int.from_bytes(packet[:4], "little"), int.from_bytes(packet[:4], "big"))
    return _frame(_IPV4 if family == 2 else _IPV6, packet[4:], 4) if len(packet) >= 4 else _TOO_SHORT


def _cooked(packet: bytes) -> AsEthernet:
    if len(packet) < 16:
        return _TOO_SHORT
    size, sent = int.from_bytes(packet[4:6], "big"), packet[0:2] == b"\0\4"
    return _frame(packet[14:16], packet[16:], 16, packet[6 : 6 + min(size, 6)], sent, "out" if sent else "in")


def _cooked_v2(packet: bytes) -> AsEthernet:
    if len(packet) < 20:
        return _TOO_SHORT
    link, source, sent = packet[4:8].hex(), packet[12 : 12 + min(packet[11], 6)], packet[10] == _OUTGOING
    return _frame(packet[0:2], packet[20:], 20, source, sent, link)


_READERS: dict[int, Callable[[bytes], AsEthernet]] = {
    ETHERNET: _ethernet,
    0: _loopback, 108: _loopback,
    12: _raw, 14: _raw, 101: _raw, 228: _raw, 229: _raw,
    113: _cooked, 276: _cooked_v2,
}  # fmt: skip
