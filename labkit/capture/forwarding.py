"""Packets that routers took on: the same packet seen again on the next link of its way. Pure; nothing raised.

A router sends a packet on with other MAC addresses, a TTL or hop limit that is one less and another header checksum
(RFC 1812 section 5.2.1); one that translates addresses changes one address, one port and a checksum, too (RFC 3022).
All else stays, and by that it is known: a host that received it sends it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace

from labkit.capture.frames import Transit
from labkit.capture.messages import Dissected

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_ETHERNET = 14


def find_forwarded(transits: Sequence[Transit]) -> dict[int, int]:
    """Which transits are further steps of an earlier one.

    Args:
        transits: in the order of their times.

    Returns:
        index of a transit that a router sent on → index of the transit that brought it to that router.
    """
    found: dict[int, int] = {}
    if len({transit.data[22:23] if transit.data[12:14] == _IPV4 else transit.data[21:22] for transit in transits}) < 2:
        return found  # nothing has lost a hop
    # In a file each packet mostly stands once, and not who sent it on: what has lost a hop is known by all
    # the rest.
    in_file = all(transit.sent_ns is None for transit in transits)
    waiting: dict[tuple[str, int, bytes], deque[int]] = defaultdict(deque)  # by the router, and what it would send
    for index, transit in enumerate(transits):
        read = _hops_and_rest(transit.data)
        if read is None:
            continue
        hops, rest = read
        sent_by, sent_ns = ("", transit.received_ns) if in_file else (transit.source, transit.sent_ns)
        brought = waiting.get((sent_by, hops, rest)) if sent_ns is not None else None
        if brought and sent_ns is not None and (transits[brought[0]].received_ns or sent_ns) <= sent_ns:
            found[index] = brought.popleft()
        if transit.received_ns is not None and (in_file or transit.destination):
            waiting["" if in_file else transit.destination, hops - 1, rest].append(index)
    return found


def whole_ways(packets: Sequence[Dissected]) -> Sequence[Dissected]:
    """Each packet once, from who sent it to where it came at last; as if there were no routers.

    Args:
        packets: from ``dissect``, or some of them: each with the earlier steps of its way.

    Returns:
        the packets on the first link of their way, with the arrival, the destination and the loss of the last one.
    """
    if all(packet.before is None for packet in packets):
        return packets
    first: dict[int, int] = {}  # of a packet's index, that of its first step
    last: dict[int, Dissected] = {}
    for packet in packets:
        first[packet.index] = packet.index if packet.before is None else first.get(packet.before, packet.index)
        last[first[packet.index]] = packet
    whole = []
    for packet in (each for each in packets if each.before is None):
        end = last[packet.index]
        way = replace(packet.transit, received_ns=end.transit.received_ns, destination=end.transit.destination)
        whole.append(replace(packet, transit=way, lost=end.lost))
    return whole


def _hops_and_rest(frame: bytes) -> tuple[int, bytes] | None:
    """The TTL or hop limit, and what no router changes. None for what is not IP, or too short."""
    kind = frame[12:14]
    if kind == _IPV4 and len(frame) >= _ETHERNET + 20:
        start = _ETHERNET + 4 * (frame[_ETHERNET] & 15)
        hops, protocol, fixed = frame[22], frame[23], frame[_ETHERNET:22]
        later_fragment = int.from_bytes(frame[20:22], "big") & 0x1FFF
        end = _ETHERNET + int.from_bytes(frame[16:18], "big")
    elif kind == _IPV6 and len(frame) >= _ETHERNET + 40:
        start, hops, protocol, fixed, later_fragment = _ETHERNET + 40, frame[21], frame[20], frame[_ETHERNET:20], 0
        end = start + int.from_bytes(frame[18:20], "big")
    else:
        return None
    body = frame[start:end]
    if later_fragment:
        rest = body
    elif protocol == 6:  # TCP: without ports and checksum
        rest = body[4:16] + body[18:]
    elif protocol == 17:  # UDP: without ports and checksum
        rest = body[4:6] + body[8:]
    elif protocol in (1, 58):  # ICMP: without checksum and identifier
        rest = body[:2] + body[6:]
    else:
        rest = body
    return hops, fixed + bytes([protocol]) + rest
