"""Some of a capture's packets: those of a connection, of a stream, of a span of time, between some hosts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from labkit.capture.messages import Dissected, Flow
from labkit.errors import InvalidValue

NAMED = 8  # of what there is, in an error


@dataclass(frozen=True)
class Choice:
    """Which packets are wanted: those for which all that is given holds.

    Attributes:
        connection: a packet's ``flow``, or a port of either end.
        stream: ID of a stream, in protocols that have them. Two connections may have streams of the same ID.
        between: two moments in milliseconds after the first packet; what was sent or arrived between them.
        hosts: names of hosts; what goes from one of them to another.
        known: names of hosts that the lab has.
    """

    connection: Flow | int | None = None
    stream: int | None = None
    between: tuple[float, float] | None = None
    hosts: Collection[str] | None = None
    known: Collection[str] = ()


EVERYTHING = Choice()


def narrow(
    packets: Sequence[Dissected], choice: Choice, ends: Callable[[Dissected], tuple[str, str]]
) -> list[Dissected]:
    """Choose packets.

    Args:
        packets: of one capture.
        choice: what is wanted.
        ends: the hosts at a packet's two ends.

    Raises:
        InvalidValue: a host, connection or stream that no packet has, or a span in which there is none.
    """
    chosen = list(packets)
    hosts, connection, stream, between = choice.hosts, choice.connection, choice.stream, choice.between
    if hosts is not None:
        there = {*choice.known, *(name for packet in packets for name in ends(packet))}
        for name in hosts:
            if name not in there:
                raise InvalidValue(f"hosts={list(hosts)!r}: no {name!r} here, there is {_some(sorted(there))}")
        chosen = [packet for packet in chosen if set(ends(packet)) <= set(hosts)]
    if connection is not None:
        there_are = list(dict.fromkeys(packet.flow for packet in chosen))
        wanted = {flow for flow in there_are if _is(flow, connection)}
        if not wanted:
            raise InvalidValue(f"connection={connection!r}: give a port or a flow; there is {_some(there_are)}")
        chosen = [packet for packet in chosen if packet.flow in wanted]
    if stream is not None:
        streams = {message.stream for packet in chosen for message in packet.messages if message.stream is not None}
        if isinstance(stream, bool) or not isinstance(stream, int) or stream not in streams:
            raise InvalidValue(f"stream={stream!r}: there is {_some(sorted(streams))}")
        chosen = [packet for packet in chosen if any(message.stream == stream for message in packet.messages)]
    if between is not None:
        chosen = _between(packets, chosen, between)
    return chosen


def _is(flow: Flow, connection: Flow | int) -> bool:
    return flow == connection if isinstance(connection, Flow) else connection in (flow.client_port, flow.server_port)


def _between(all_packets: Sequence[Dissected], packets: list[Dissected], span: tuple[float, float]) -> list[Dissected]:
    try:
        first, last = (float(moment) for moment in span)
    except (TypeError, ValueError):
        raise InvalidValue(f"between={span!r}: give two moments in milliseconds, (0, 100)") from None
    start_ns = min((packet.transit.time_ns for packet in all_packets), default=0)
    chosen = []
    for packet in packets:
        moments = [ns for ns in (packet.transit.sent_ns, packet.transit.received_ns) if ns is not None]
        if any(first <= (ns - start_ns) / 1e6 <= last for ns in moments):
            chosen.append(packet)
    if packets and not chosen:
        end_ms = (max(packet.transit.time_ns for packet in packets) - start_ns) / 1e6
        raise InvalidValue(f"between={span!r}: no packet then; the last was sent after {end_ms:.1f} ms")
    return chosen


def _some(things: Sequence[object]) -> str:
    named = ", ".join(map(str, things[:NAMED])) or "none"
    return f"{named} and {len(things) - NAMED} more" if len(things) > NAMED else named
