"""A time–sequence diagram as data: who sent what to whom, when it left and when it arrived.

``build_ladder`` chooses the rows and ``str()`` of the ladder draws them in text; pictures are made from the
same rows elsewhere. ``table`` lists packets a line each. Everything here is pure: packets in, text out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.capture.messages import Dissected, Flow

_WIDTH = 110
# In the order that they come into use.
_LEVELS = ("", "initial", "unknown", "early", "handshake", "application")
_ENCRYPTED = _LEVELS[2:]  # everybody can compute the keys of "initial": it hides nothing


@dataclass(frozen=True, slots=True)
class Row:
    """One packet of a ladder.

    Attributes:
        number: number of the packet in the capture, from 1 on, as in Wireshark.
        sent_ms: when it left, milliseconds after the first packet of the capture.
        received_ms: when it arrived; None where it was lost, or its arrival was not seen.
        source: host, or the address where the host is unknown.
        destination: host, or the address.
        label: what it carries, one line for each message.
        kind: "tcp", "tls", "quic", "http" or "data".
        level: the last keys in use in it, as in ``Message.level``; "" = all in the clear.
        lost: whether the wire dropped it.
        retransmission: whether it repeats something.
    """

    number: int
    sent_ms: float
    received_ms: float | None
    source: str
    destination: str
    label: tuple[str, ...]
    kind: str
    level: str
    lost: bool
    retransmission: bool


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rows of a time–sequence diagram.

    Attributes:
        hosts: the columns, from left to right.
        rows: the packets that are shown, in the order of sending.
        hidden: how many acknowledgments are left out.
        tier: tier of the lab that the packets crossed, "" where unknown.
        missing: frames that the kernel dropped from the capture.
    """

    hosts: tuple[str, ...]
    rows: tuple[Row, ...]
    hidden: int
    tier: str = ""
    missing: int = 0

    def __str__(self) -> str:
        return _draw(self)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        # The one door from here to the plots, so that a ladder on a cell's last line is a picture.
        from labkit.plots.ladder import plot_ladder

        return plot_ladder(self)._repr_mimebundle_(**options)


def build_ladder(packets: Sequence[Dissected], hosts: Sequence[str], acks: bool = False) -> Ladder:
    """Choose what a ladder shows.

    Args:
        packets: from ``dissect``.
        hosts: the columns from left to right; hosts that only the packets know are added, hosts without a
            packet are left out.
        acks: show packets that only acknowledge. The one that answers the SYN-ACK is always there: it is the
            third step of TCP's handshake.
    """
    names = _host_names(packets)
    start_ns = min((packet.transit.time_ns for packet in packets), default=0)
    rows: list[Row] = []
    shown: set[int | None] = set()
    opening: set[Flow] = set()  # connections whose client has not answered the SYN-ACK yet
    for packet in packets:
        if acks or packet.flow in opening or not packet.bare_ack or packet.before in shown:
            rows.append(_row(packet, names, start_ns))
            shown.add(packet.index)
        if {"SYN", "ACK"} <= packet.flags:
            opening.add(packet.flow)
        elif packet.from_client:
            opening.discard(packet.flow)
    seen = [name for row in rows for name in (row.source, row.destination)]
    columns = [host for host in hosts if host in seen]
    columns += sorted(set(seen) - set(columns))
    return Ladder(tuple(columns), tuple(rows), len(packets) - len(rows))


def table(packets: Sequence[Dissected]) -> str:
    """List the packets, a line each: number, time, from → to, protocol, payload bytes, what it carries."""
    names = _host_names(packets)
    start_ns = min((packet.transit.time_ns for packet in packets), default=0)
    lines = [("no.", "ms", "from → to", "protocol", "payload", "what")]
    for packet in packets:
        row = _row(packet, names, start_ns)
        protocol = _protocol(packet)
        what = ("again: " if row.retransmission else "") + packet.what + (" (lost)" if row.lost else "")
        if packet.forwarded_by:
            what += f" (forwarded by {', '.join(packet.forwarded_by)})"
        direction = f"{row.source} → {row.destination}"
        lines.append((str(row.number), f"{row.sent_ms:.2f}", direction, protocol, str(packet.payload), what))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        f"{number:>{widths[0]}}  {ms:>{widths[1]}}  {direction:<{widths[2]}}  {protocol:<{widths[3]}}"
        f"  {payload:>{widths[4]}}  {what}"
        for number, ms, direction, protocol, payload, what in lines
    )


def _protocol(packet: Dissected) -> str:
    """What the packet is known as: the protocol inside its encryption, if there is one."""
    named = [message.protocol for message in packet.messages if message.protocol not in ("TCP", "UDP", "DATA")]
    if packet.flow.protocol == "UDP" and {"QUIC", "TLS", "HTTP/3"} & set(named):
        return "QUIC"
    inside = [protocol for protocol in named if protocol not in ("TLS", "DTLS")]
    return (inside or named or [packet.flow.protocol])[0]


_Endpoint = tuple[str, int]


def _host_names(packets: Sequence[Dissected]) -> dict[_Endpoint, str]:
    """Learn which host has which address and port, for packets whose receiver was not seen."""
    names: dict[_Endpoint, str] = {}
    for packet in packets:
        source, destination = _endpoints(packet)
        for endpoint, host in ((source, packet.transit.source), (destination, packet.transit.destination)):
            if host:
                names.setdefault(endpoint, host)
    return names


def _endpoints(packet: Dissected) -> tuple[_Endpoint, _Endpoint]:
    headers = packet.headers  # not the flow: a QUIC connection keeps it when an address changes
    return (headers.source, headers.source_port), (headers.destination, headers.destination_port)


def _row(packet: Dissected, names: dict[_Endpoint, str], start_ns: int) -> Row:
    transit = packet.transit
    source, destination = _endpoints(packet)
    received_ms = None if transit.received_ns is None else (transit.received_ns - start_ns) / 1e6
    levels = [message.level for message in packet.messages]
    label = tuple(packet.parts)
    if packet.retransmission:
        label = (f"again: {label[0]}", *label[1:])
    return Row(
        number=packet.index + 1,
        sent_ms=(transit.time_ns - start_ns) / 1e6,
        received_ms=received_ms,
        source=transit.source or names.get(source, source[0]) or "?",
        destination=transit.destination or names.get(destination, destination[0]) or "?",
        label=label,
        kind=_kind(packet),
        level=max(levels, key=_LEVELS.index, default=""),
        lost=packet.lost,
        retransmission=packet.retransmission,
    )


def _kind(packet: Dissected) -> str:
    protocols = {message.protocol for message in packet.messages}
    if packet.flow.protocol == "UDP" and protocols & {"TLS", "QUIC", "HTTP/3"}:
        return "quic"
    if protocols - {"TCP", "UDP", "TLS", "QUIC", "DATA", "ICMP", "ICMPv6"}:
        return "http"
    if "TLS" in protocols:
        return "tls"
    return "data" if protocols & {"DATA", "UDP"} or packet.flow.protocol != "TCP" else "tcp"


def _draw(ladder: Ladder) -> str:
    """Draw the ladder in text: a column for each host, sending times at the left, arrivals at the right."""
    if not ladder.rows:
        return "no packets"
    left, right = 12, 98
    gap = (right - left) // max(len(ladder.hosts) - 1, 1)
    places = {host: left + number * gap for number, host in enumerate(ladder.hosts)}
    heading = [" "] * _WIDTH
    for host, place in places.items():
        # Names are centred on their columns, the outer ones as far as the margins let them.
        name = host[: gap - 2]
        begin = min(max(place - len(name) // 2, left - 1), right + 2 - len(name))
        heading[begin : begin + len(name)] = name
    heading[0:9], heading[-9:] = "  sent ms", "  arrival"
    lines = ["".join(heading).rstrip()]
    for row in ladder.rows:
        lines += _draw_row(row, places)
    styles = {"=" if row.level in _ENCRYPTED else "-" for row in ladder.rows}
    legend = [text for sign, text in (("-", "--- in the clear"), ("=", "=== encrypted")) if sign in styles]
    if any(row.lost for row in ladder.rows):
        legend.append("X lost on the wire")
    if ladder.hidden:
        legend.append(f"{ladder.hidden} acknowledgment{'' if ladder.hidden == 1 else 's'} not shown")
    if ladder.missing:
        legend.append(f"{ladder.missing} frames MISSING: the kernel had no room for them")
    return "\n".join([*lines, " " * 10 + "   ".join(legend)])


def _draw_row(row: Row, places: dict[str, int]) -> list[str]:
    begin, end = sorted((places[row.source], places[row.destination]))
    rightwards = places[row.source] < places[row.destination]
    if begin == end:  # a host that talks to itself
        end = begin + 20
    span = end - begin - 1
    words = (" + " if row.kind == "quic" else ", ").join(row.label)
    # Break lines between messages only: "STREAM 0" and "GET / HTTP/1.1" stay together.
    words = words.replace(" ", "\xa0").replace(",\xa0", ", ").replace("\xa0+\xa0", " + ")
    lines_of_text = textwrap.wrap(words, max(span - 8, 12), break_on_hyphens=False) or [""]
    shown = [line.replace("\xa0", " ") for line in lines_of_text]
    lines = []
    for number, text in enumerate(shown):
        canvas = [" "] * _WIDTH
        for place in places.values():
            canvas[place] = "|"
        if number < len(shown) - 1:
            inside = f"{text:^{span}}"
        else:
            sign = "=" if row.level in _ENCRYPTED else "-"
            inside = f"{f' {text} ':{sign}^{span}}"
            reach = min((span + len(text)) // 2 + 3, span - 1) if row.lost else span - 1
            end_sign, rest = ("X", " " * (span - reach - 1)) if row.lost else (">" if rightwards else "<", "")
            inside = inside[:reach] + end_sign + rest if rightwards else rest + end_sign + inside[-reach:]
            canvas[0:9] = f"{row.sent_ms:9.2f}"
            if row.received_ms is not None:
                canvas[-9:] = f"{row.received_ms:9.2f}"
        canvas[begin + 1 : end] = inside[:span]
        lines.append("".join(canvas).rstrip())
    return lines
