"""A time–sequence diagram as data: who sent what to whom, when it left and when it arrived.

``build_ladder`` chooses the rows and ``str()`` of the ladder draws them in text; pictures are made from the
same rows elsewhere. ``table`` lists packets a line each. Everything here is pure: packets in, text out.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from labkit.capture.messages import Dissected, Flow
from labkit.capture.narrowing import EVERYTHING, Choice, narrow

_WIDTH = 110
MOST_LINES = 500  # rows of a ladder in text
# When a wait is long: by the clock, and by the usual flight of a packet.
LONG_MS, LONG_FLIGHTS = 60.0, 5
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
        role: "request", "response" or "data" where it carries one, whatever the protocol; else "".
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
    role: str = ""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rows of a time–sequence diagram.

    Attributes:
        hosts: the columns, from left to right.
        rows: the packets that are shown, in the order of sending.
        hidden: how many acknowledgments are left out.
        tier: tier of the lab that the packets crossed, "" where unknown.
        missing: frames that the kernel dropped from the capture.
        left_out: how many packets were not chosen.
    """

    hosts: tuple[str, ...]
    rows: tuple[Row, ...]
    hidden: int
    tier: str = ""
    missing: int = 0
    left_out: int = 0

    @property
    def waits(self) -> dict[float, float]:
        """Where nothing was sent and nothing arrived for long: when that ended, and how long it was, milliseconds."""
        flights = [row.received_ms - row.sent_ms for row in self.rows if row.received_ms is not None]
        long_ms = max(LONG_MS, _usual(flights))
        moments = sorted({ms for row in self.rows for ms in (row.sent_ms, row.received_ms) if ms is not None})
        return {end: end - begin for begin, end in pairwise(moments) if end - begin > long_ms}

    def __str__(self) -> str:
        return _draw(self)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        # The one door from here to the plots, so that a ladder on a cell's last line is a picture.
        from labkit.plots.ladder import plot_ladder

        return plot_ladder(self)._repr_mimebundle_(**options)


def _usual(flights: list[float]) -> float:
    """A wait is long by the packets' usual flight: one that was held back makes none of them short."""
    return LONG_FLIGHTS * sorted(flights)[len(flights) // 2] if flights else 0.0


def in_words(milliseconds: float) -> str:
    """How long a wait was: "1.03 seconds pass"."""
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} milliseconds pass"
    return f"{milliseconds / 1000:.3g} seconds pass"


def build_ladder(
    packets: Sequence[Dissected], hosts: Sequence[str], acks: bool = False, choice: Choice = EVERYTHING
) -> Ladder:
    """Choose what a ladder shows.

    Args:
        packets: from ``dissect``.
        hosts: the columns from left to right; hosts that only the packets know are added, hosts without a
            packet are left out.
        acks: show packets that only acknowledge. The one that answers the SYN-ACK is always there: it is the
            third step of TCP's handshake.
        choice: which packets. Times count from the first of all.

    Raises:
        InvalidValue: a connection, stream, span or host that is not there.
    """
    names = _host_names(packets)
    chosen = narrow(packets, choice, partial(_ends, names))
    start_ns = min((packet.transit.time_ns for packet in packets), default=0)
    rows: list[Row] = []
    shown: set[int | None] = set()
    opening: set[Flow] = set()  # connections whose client has not answered the SYN-ACK yet
    for packet in chosen:
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
    return Ladder(tuple(columns), tuple(rows), len(chosen) - len(rows), left_out=len(packets) - len(chosen))


def table(packets: Sequence[Dissected], choice: Choice = EVERYTHING) -> str:
    """List the packets, a line each: number, time, from → to, protocol, payload bytes, what it carries.

    Args:
        packets: from ``dissect``.
        choice, and what is raised: as in ``build_ladder``.
    """
    names = _host_names(packets)
    chosen = narrow(packets, choice, partial(_ends, names))
    start_ns = min((packet.transit.time_ns for packet in packets), default=0)
    lines = [("no.", "ms", "from → to", "protocol", "payload", "what")]
    for packet in chosen:
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
    ends = _ends(names, packet)
    roles = {message.role for message in packet.messages}
    received_ms = None if transit.received_ns is None else (transit.received_ns - start_ns) / 1e6
    levels = [message.level for message in packet.messages]
    label = tuple(packet.parts)
    if packet.retransmission:
        label = (f"again: {label[0]}", *label[1:])
    return Row(
        number=packet.index + 1,
        sent_ms=(transit.time_ns - start_ns) / 1e6,
        received_ms=received_ms,
        source=ends[0],
        destination=ends[1],
        label=label,
        kind=_kind(packet),
        level=max(levels, key=_LEVELS.index, default=""),
        lost=packet.lost,
        retransmission=packet.retransmission,
        role=next((role for role in ("request", "response", "data") if role in roles), ""),
    )


def _ends(names: dict[_Endpoint, str], packet: Dissected) -> tuple[str, str]:
    """The hosts that sent and got it, or their addresses."""
    source, destination = _endpoints(packet)
    return (
        packet.transit.source or names.get(source, source[0]) or "?",
        packet.transit.destination or names.get(destination, destination[0]) or "?",
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
    rows, waits = ladder.rows[:MOST_LINES], deque(ladder.waits.items())
    for row in rows:
        while waits and waits[0][0] <= row.sent_ms:
            lines.append(_draw_wait(waits.popleft()[1], places))
        lines += _draw_row(row, places)
    styles = {"=" if row.level in _ENCRYPTED else "-" for row in rows}
    legend = [text for sign, text in (("-", "--- in the clear"), ("=", "=== encrypted")) if sign in styles]
    if any(row.lost for row in ladder.rows):
        legend.append("X lost on the wire")
    if ladder.hidden:
        legend.append(f"{ladder.hidden} acknowledgment{'' if ladder.hidden == 1 else 's'} not shown")
    if ladder.left_out:
        legend.append(f"{ladder.left_out} packets not chosen")
    if ladder.missing:
        legend.append(f"{ladder.missing} frames MISSING: the kernel had no room for them")
    if len(rows) < len(ladder.rows):
        legend.append(f"the first {len(rows)} of {len(ladder.rows)} packets: choose by connection, stream, between")
    return "\n".join([*lines, " " * 10 + "   ".join(legend)])


def _draw_wait(milliseconds: float, places: dict[str, int]) -> str:
    canvas = [" "] * _WIDTH
    for place in places.values():
        canvas[place] = ":"
    text = f" {in_words(milliseconds)} "
    first, *others = sorted(places.values())
    begin = first + 2 if not others else (first + others[0] - len(text)) // 2
    canvas[begin : begin + len(text)] = text
    return "".join(canvas).rstrip()


def _draw_row(row: Row, places: dict[str, int]) -> list[str]:
    begin, end = sorted((places[row.source], places[row.destination]))
    rightwards = places[row.source] < places[row.destination]
    if begin == end:  # a host that talks to itself
        end = begin + 20
    passed = [place for place in places.values() if begin < place < end]
    span = end - begin - 1
    # A label stands in one gap, the sender's, so that it hides no host that the packet passes by.
    room = min((abs(place - places[row.source]) for place in passed), default=end - begin) - 1
    words = (" + " if row.kind == "quic" else ", ").join(row.label)
    # Break lines between messages only: "STREAM 0" and "GET / HTTP/1.1" stay together.
    words = words.replace(" ", "\xa0").replace(",\xa0", ", ").replace("\xa0+\xa0", " + ")
    lines_of_text = textwrap.wrap(words, max(room - 8, 12), break_on_hyphens=False) or [""]
    shown = [line.replace("\xa0", " ") for line in lines_of_text]
    lines = []
    for number, text in enumerate(shown):
        canvas = [" "] * _WIDTH
        for place in places.values():
            canvas[place] = "|"
        here = max(room, len(text) + 2)
        if number < len(shown) - 1:
            inside = f"{text:^{here}}"
            inside = f"{inside:<{span}}" if rightwards else f"{inside:>{span}}"
        else:
            sign = "=" if row.level in _ENCRYPTED else "-"
            inside = f"{f' {text} ':{sign}^{here}}"
            inside = f"{inside:{sign}<{span}}" if rightwards else f"{inside:{sign}>{span}}"
            reach = min((span + len(text)) // 2 + 3, span - 1) if row.lost else span - 1
            end_sign, rest = ("X", " " * (span - reach - 1)) if row.lost else (">" if rightwards else "<", "")
            inside = inside[:reach] + end_sign + rest if rightwards else rest + end_sign + inside[-reach:]
            canvas[0:9] = f"{row.sent_ms:9.2f}"
            if row.received_ms is not None:
                canvas[-9:] = f"{row.received_ms:9.2f}"
        canvas[begin + 1 : end] = inside[:span]
        for place in passed:
            if canvas[place] in "-= ":
                canvas[place] = "|"
        lines.append("".join(canvas).rstrip())
    return lines
