"""Packets of one connection in, round trips and proof out. No I/O: the same packets give the same answer.

The clock starts when the client sends its first packet and stops when the first byte of the response reaches it.
In between, two moments split the time into phases::

    first packet ── tcp ──▶ first byte of TLS or HTTP ── tls ──▶ request ── request ──▶ response
    first packet ───────────────── quic ───────────────────────▶ request ── request ──▶ response

A phase that another one covers is 0: with TCP Fast Open the ClientHello rides in the SYN, with early data the
request rides with the ClientHello.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.capture.forwarding import whole_ways
from labkit.capture.messages import Dissected, Flow, Message, Role
from labkit.errors import MeasurementFailed


@dataclass(frozen=True)
class Timeline:
    """The moments of one request, in nanoseconds since 1970, and the packets that show them.

    Attributes:
        packets: the connection's packets, in the order in which they were sent.
        start_ns: the client sent its first packet.
        payload_ns: the client sent its first byte of TLS, QUIC or HTTP.
        request_ns: the client sent the first byte of the request.
        response_ns: the first byte of the response reached the client.
        quic: whether it is QUIC.
    """

    packets: tuple[Dissected, ...]
    start_ns: int
    payload_ns: int
    request_ns: int
    response_ns: int
    quic: bool

    def rtts(self, rtt_ms: float) -> float:
        """The whole in round trips of `rtt_ms` milliseconds."""
        return (self.response_ns - self.start_ns) / (rtt_ms * 1e6)

    def phases_rtts(self, rtt_ms: float) -> dict[str, float]:
        """Each phase in round trips of `rtt_ms` milliseconds; they add up to ``rtts``."""
        parts = self._split(self.start_ns, self.payload_ns, self.request_ns, self.response_ns)
        return {name: duration / (rtt_ms * 1e6) for name, duration in parts.items()}

    def whole_rtts(self) -> dict[str, int]:
        """Each phase in whole round trips, counted by cause and effect and not by a clock: the same on every machine.

        See ``steps``. A slow machine adds nothing, except where it waits so long that a further packet arrives
        meanwhile. A packet that is sent again because it was lost waits for time and not for a packet: that adds
        nothing either.
        """
        at_client, answer = [(0, 0)], 0
        for packet, step in zip(self.packets, steps(self.packets), strict=True):
            if not packet.from_client and packet.transit.received_ns is not None:
                at_client.append((packet.transit.received_ns, step))
                if packet.transit.received_ns == self.response_ns:
                    answer = step
        payload, request = (_latest(at_client, moment) for moment in (self.payload_ns, self.request_ns))
        return {name: count // 2 for name, count in self._split(0, payload, request, answer).items()}

    def _split(self, start: int, payload: int, request: int, response: int) -> dict[str, int]:
        """From four moments the phases between them."""
        parts = {"quic": request - start} if self.quic else {"tcp": payload - start, "tls": request - payload}
        return {**parts, "request": response - request}


def connections(packets: Sequence[Dissected]) -> list[list[Dissected]]:
    """The TCP and UDP packets sorted by connection, in the order in which the connections began.

    A packet that crosses routers is one, from its sender to its receiver.
    """
    found: list[list[Dissected]] = []
    latest: dict[Flow, list[Dissected]] = {}  # a client may use a port again
    for packet in whole_ways(packets):
        if packet.flow.protocol in ("TCP", "UDP"):
            known = latest.get(packet.flow)
            if known is None or _begins_anew(packet, known):
                known = latest[packet.flow] = []
                found.append(known)
            known.append(packet)
    return found


def steps(packets: Sequence[Dissected]) -> list[int]:
    """Cause and effect: each packet stands one step behind the latest one that had reached its sender by then.

    The client's first packets are step 1, what answers them step 2. Two steps are a round trip.

    Args:
        packets: those of one connection, captured on the wire.

    Returns:
        a step for each packet.
    """
    at_client, at_server = [(0, 0)], [(0, 0)]  # when a packet arrived, and its step
    found = []
    for packet in packets:
        heard, told = (at_client, at_server) if packet.from_client else (at_server, at_client)
        found.append(1 + _latest(heard, packet.transit.time_ns))
        if packet.transit.received_ns is not None:
            told.append((packet.transit.received_ns, found[-1]))
    return found


def begins(packet: Dissected) -> bool:
    """Whether a client opens a connection with this packet. What a connection of an earlier capture left does not."""
    hello = any(message.name == "ClientHello" for message in packet.messages)
    return packet.from_client and ("SYN" in packet.flags or (packet.flow.protocol == "UDP" and hello))


def timeline(packets: Sequence[Dissected]) -> Timeline:
    """The moments of the one request that a connection carried.

    Args:
        packets: those of one connection (see ``connections``), captured on the wire.

    Raises:
        MeasurementFailed: they hold no request or no response.
    """
    if not packets:
        raise MeasurementFailed("no packets: capture on the wire, from before the client's first packet")
    by_index = {packet.index: packet for packet in packets}
    quic = packets[0].flow.protocol == "UDP"
    first = next((packet for packet in packets if packet.from_client), None)
    payload = next((packet for packet in packets if packet.from_client and packet.payload), None)
    # A lost packet lists the request as well as the one that brought it in the end: the first sending counts.
    asking = next((packet for packet in packets if next(_requests([packet]), None)), None)
    response = next(
        (m for p, m in _messages(packets) if not p.from_client and _says(m, "response")),
        None,
    )
    if first is None or payload is None or asking is None or response is None:
        missing = "request" if asking is None else "response"
        raise MeasurementFailed(
            f"{len(packets)} packets of {packets[0].flow} hold no {missing}: "
            "look at the capture's ladder for a lost packet, a refused connection or a missing key log"
        )
    arrival = by_index[response.last].transit.received_ns
    if arrival is None:
        raise MeasurementFailed(f"the response of {packets[0].flow} never reached the client: the wire dropped it")
    return Timeline(
        tuple(packets),
        first.transit.time_ns,
        payload.transit.time_ns,
        asking.transit.time_ns,
        arrival,
        quic,
    )


def evidence(line: Timeline) -> dict[str, Any]:
    """What the packets say about saved round trips, claim by claim.

    Returns:
        ``syn_payload_bytes``: bytes of data in the client's SYN (TCP Fast Open);
        ``syn_payload_acknowledged``: how much of it the SYN-ACK acknowledged, bytes;
        ``certificate_sent``: whether the server sent a certificate (a resumed session needs none);
        ``request_level``: keys that protected the request: "" for none, "early", "application";
        ``zero_rtt_packets``: QUIC 0-RTT packets;
        ``answered_before_finished``: whether the response left the server before the client's Finished reached it.
    """
    packets = line.packets
    by_index = {packet.index: packet for packet in packets}
    finished = next((m for p, m in _messages(packets) if p.from_client and m.name == "Finished"), None)
    response = next(m for p, m in _messages(packets) if not p.from_client and _says(m, "response"))
    answered_ns = by_index[response.first].transit.time_ns
    finished_ns = by_index[finished.last].transit.received_ns if finished is not None else None
    syn_payload, acknowledged = _syn_data(packets)
    return {
        "syn_payload_bytes": syn_payload,
        "syn_payload_acknowledged": acknowledged,
        "certificate_sent": any(m.name == "Certificate" and not p.from_client for p, m in _messages(packets)),
        "request_level": next(_requests(packets)).level,
        "zero_rtt_packets": sum(
            p.from_client and p.flow.protocol == "UDP" and any(m.level == "early" for m in p.messages) for p in packets
        ),
        "answered_before_finished": finished_ns is not None and answered_ns < finished_ns,
    }


def _latest(arrivals: Sequence[tuple[int, int]], moment_ns: int) -> int:
    """The highest step of what had arrived by then."""
    return max(step for arrived_ns, step in arrivals if arrived_ns <= moment_ns)


def _begins_anew(packet: Dissected, before: Sequence[Dissected]) -> bool:
    """Whether it opens a connection where another one has come far enough not to be opened once more."""
    mine = [earlier for earlier in before if earlier.from_client]
    if packet.flow.protocol == "TCP":
        gone_on = any("SYN" not in earlier.flags for earlier in mine)
        return begins(packet) and gone_on and not packet.retransmission
    return begins(packet) and any(message.name == "Finished" for _, message in _messages(mine))


def _messages(packets: Sequence[Dissected]) -> Iterator[tuple[Dissected, Message]]:
    return ((packet, message) for packet in packets for message in packet.messages)


def _requests(packets: Sequence[Dissected]) -> Iterator[Message]:
    return (m for p, m in _messages(packets) if p.from_client and _says(m, "request"))


def _says(message: Message, role: Role) -> bool:
    """Whether it is the request or the response; over QUIC without HTTP/3, what stands in stream 0 is."""
    return message.role == role or (message.protocol == "QUIC" and message.stream == 0)


def _syn_data(packets: Sequence[Dissected]) -> tuple[int, int]:
    """Bytes of data in the SYN, and how many of them the SYN-ACK acknowledged (RFC 7413, section 4.2)."""
    syn = next((p for p in packets if p.from_client and "SYN" in p.flags), None)
    syn_ack = next((p for p in packets if not p.from_client and {"SYN", "ACK"} <= p.flags), None)
    if syn is None or syn_ack is None:
        return 0, 0
    sent, answered = syn.headers.tcp, syn_ack.headers.tcp
    assert sent is not None
    assert answered is not None
    return syn.payload, (answered.ack - sent.seq - 1) % 2**32
