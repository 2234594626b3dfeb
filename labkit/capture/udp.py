"""What datagrams carry: QUIC, which is known by its connection IDs, then what is known between two addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Dissected, Flow, Found, Message
from labkit.capture.protocol import Certainty, Datagram, DatagramProtocol
from labkit.capture.protocols import datagram_protocols
from labkit.capture.quic_packets import read_quic


def read_datagrams(packets: Sequence[Dissected], secrets: KeyLog) -> list[Dissected]:
    """Name what UDP packets carry.

    Args:
        packets: all of a capture, in its order.
        secrets: the key log; may be empty.

    Returns:
        the same packets with their messages, and with the flow of the QUIC connection that they belong to.
    """
    datagrams = [_datagram(packet) for packet in packets]
    quic = read_quic(datagrams, secrets)
    flows: dict[Flow, list[int]] = {}
    for number, packet in enumerate(packets):
        if quic[number] is None:
            flows.setdefault(packet.flow, []).append(number)
    found: dict[int, list[Found]] = {}
    for numbers in flows.values():
        found.update(_read_flow(datagrams, numbers, secrets))
    indexes = [packet.index for packet in packets]
    made: dict[Found, Message] = {}  # a message that spans datagrams stays one object
    named: list[Dissected] = []
    for number, packet in enumerate(packets):
        flow, from_client = packet.flow, packet.from_client
        if (reading := quic[number]) is not None:
            found[number] = reading.found
            flow, from_client = Flow(*reading.client, *reading.server, "UDP"), reading.from_client
        for item in found[number]:
            if item not in made:
                made[item] = item.message(indexes[item.start], indexes[item.end])
        messages = tuple(made[item] for item in found[number])
        named.append(replace(packet, flow=flow, from_client=from_client, messages=messages))
    return named


def _datagram(packet: Dissected) -> Datagram:
    headers = packet.headers
    ends = (headers.source, headers.source_port), (headers.destination, headers.destination_port)
    return Datagram(headers.payload, packet.from_client, not packet.lost, *ends)


def _read_flow(datagrams: Sequence[Datagram], numbers: Sequence[int], secrets: KeyLog) -> dict[int, list[Found]]:
    """Ask the protocols about the datagrams between two endpoints, for each datagram the surest one first."""
    found: dict[int, list[Found]] = {}
    waiting = {number: _candidates(datagrams[number]) for number in numbers}
    while waiting:
        groups: dict[type[DatagramProtocol] | None, list[int]] = {}
        for number, candidates in waiting.items():
            groups.setdefault(candidates.pop(0) if candidates else None, []).append(number)
        for protocol, mine in groups.items():
            if protocol is None:
                found.update((number, [_unknown(datagrams[number].data, number)]) for number in mine)
                continue
            readings = protocol().read([datagrams[number] for number in mine], secrets)
            for number, reading in zip(mine, readings, strict=True):
                if reading is not None:
                    found[number] = [replace(item, start=mine[item.start], end=mine[item.end]) for item in reading]
        waiting = {number: candidates for number, candidates in waiting.items() if number not in found}
    return found


def _unknown(data: bytes, number: int) -> Found:
    return Found("UDP", "datagram", f"{len(data)} bytes", "", number, number, len(data), data)


def _candidates(datagram: Datagram) -> list[type[DatagramProtocol]]:
    ranked = [
        (protocol.recognise(datagram), datagram.port in protocol.ports, protocol) for protocol in datagram_protocols()
    ]
    ranked.sort(key=lambda rank: rank[:2], reverse=True)
    return [protocol for certainty, _, protocol in ranked if certainty is not Certainty.NO]
