"""The packets of a file: between whom, by the addresses in them, and which looks at several interfaces are of one.

In most files each packet stands once. A file of several interfaces (merged from both ends, or of a machine that
forwards packets, captured on "any") has it once for each place that saw it. Then its first look is taken for the
sending, its last for the arrival, whatever the clocks of two machines make of that. Nothing is known of losses.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from labkit.capture.frames import Frame, Transit
from labkit.capture.headers import decode

_ETHERNET = 14
_LATEST_NS = 3 * 10**9  # two looks that are further apart are two packets


def ends_of(data: bytes) -> tuple[str, str]:
    """The addresses of sender and receiver of an Ethernet frame, "" where it is too short to have them.

    IP addresses, of an ARP packet too, else MAC addresses.
    """
    decoded = decode(data)
    if decoded.source:
        return decoded.source, decoded.destination
    if decoded.protocol == "ARP" and len(data) >= 42:  # RFC 826, of IPv4 on Ethernet without a VLAN tag
        return socket.inet_ntoa(data[28:32]), socket.inet_ntoa(data[38:42])
    return (data[6:12].hex(":"), data[:6].hex(":")) if len(data) >= _ETHERNET else ("", "")


def single_looks(frames: Iterable[Frame], names: Mapping[str, str]) -> Iterator[Transit]:
    """Take each frame for a packet on one link of its way, as a lab's own files have it.

    Args:
        frames: in time order.
        names: host names by address. Those of both MAC addresses come first: they name the ends of each link of a way.
    """
    for frame in frames:
        source, destination = frame.data[6:12].hex(":"), frame.data[:6].hex(":")
        if source not in names or destination not in names:
            source, destination = ends_of(frame.data)
        yield Transit(None, frame.time_ns, names.get(source, source), names.get(destination, destination), frame.data)


def pair_looks(frames: Iterable[Frame], names: Mapping[str, str]) -> list[Transit]:
    """Make a transit of each packet that other programs may have seen at several places.

    Args:
        frames: of a file, in time order; ``host`` is the interface that saw it.
        names: host names by address.

    Returns:
        the packets in the order of their first looks. One that was seen at a single place has no time of sending.
    """
    transits: list[Transit] = []
    same: dict[bytes, list[int]] = defaultdict(list)  # transits of the same bytes
    seen: dict[tuple[bytes, str], int] = defaultdict(int)  # how many of them a place has seen
    for frame in frames:
        what = _what_stays(frame.data)
        alike, number = same[what], seen[what, frame.host]
        if number < len(alike):
            first = transits[alike[number]]
            if frame.time_ns - first.time_ns <= _LATEST_NS:
                transits[alike[number]] = replace(first, sent_ns=first.time_ns, received_ns=frame.time_ns)
                seen[what, frame.host] = number + 1
                continue
        seen[what, frame.host] = len(alike) + 1
        alike.append(len(transits))
        transits += single_looks([frame], names)
    return transits


def _what_stays(data: bytes) -> bytes:
    """The part of a frame that is the same wherever it is seen: no MAC addresses, hops, header checksum and padding."""
    kind, packet = data[12:_ETHERNET], data[_ETHERNET:]
    if kind == b"\x08\x00" and len(packet) >= 20:
        end = int.from_bytes(packet[2:4], "big") or len(packet)
        return packet[:8] + packet[9:10] + packet[12:end]
    if kind == b"\x86\xdd" and len(packet) >= 40:
        end = 40 + int.from_bytes(packet[4:6], "big")
        return packet[:7] + packet[8:end]
    return data
