"""Who sent a frame to whom, as the frame itself says it: by IP address, of an ARP packet too, else by MAC address."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping

from labkit.capture.frames import Frame, Transit
from labkit.capture.headers import decode


def ends_of(data: bytes) -> tuple[str, str]:
    """The addresses of sender and receiver of an Ethernet frame, "" where it is too short to have them."""
    decoded = decode(data)
    if decoded.source:
        return decoded.source, decoded.destination
    if decoded.protocol == "ARP" and len(data) >= 42:  # RFC 826, of IPv4 on Ethernet without a VLAN tag
        return socket.inet_ntoa(data[28:32]), socket.inet_ntoa(data[38:42])
    return (data[6:12].hex(":"), data[:6].hex(":")) if len(data) >= 14 else ("", "")


def name_ends(frames: Iterable[Frame], names: Mapping[str, str]) -> Iterator[Transit]:
    """Take each frame for a transit of its own, seen once, between the hosts that its addresses name.

    Args:
        frames: in time order.
        names: host names by address. Those of both MAC addresses come first: they name the ends of each link of a way.
    """
    for frame in frames:
        source, destination = frame.data[6:12].hex(":"), frame.data[:6].hex(":")
        if source not in names or destination not in names:
            source, destination = ends_of(frame.data)
        yield Transit(None, frame.time_ns, names.get(source, source), names.get(destination, destination), frame.data)
