"""What each captured packet carries, by name: "SYN", "ClientHello", "GET / HTTP/1.1", "STREAM".

``dissect`` is a pure function: transits and secrets in, one ``Dissected`` for each transit out. Packets are
sorted into conversations. ``tcp_connection`` puts streams together, ``tls_records``, ``quic_packets`` and
``http1`` name what is in them, and here each message is given back to the packets that carried it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from labkit.capture.frames import Transit
from labkit.capture.headers import ACK, FIN, RST, SYN, Decoded, TcpHeader, decode
from labkit.capture.http1 import name_http
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Dissected, Flow, Found, Message
from labkit.capture.quic_packets import read_quic
from labkit.capture.streams import Chunk
from labkit.capture.tcp_connection import Connection
from labkit.capture.tls_records import looks_like_tls, read_tls


def dissect(transits: Sequence[Transit], secrets: KeyLog) -> list[Dissected]:
    """Name what each packet carries.

    Args:
        transits: packets in the order of their times, of any number of conversations.
        secrets: the sessions' key log; without it encrypted messages are named "... (encrypted)".

    Returns:
        one entry for each transit, in the same order. Nothing is raised, whatever the bytes are.
    """
    on_wire = _seen_on_wire(transits)
    packets: list[Dissected] = []
    conversations: list[_Conversation] = []
    current: dict[Flow, _Conversation | None] = {}  # None: a protocol of which only the packets are named
    sendings: set[tuple[int, bytes]] = set()
    for index, transit in enumerate(transits):
        decoded = decode(transit.data)
        flow, from_client = _find_flow(decoded, current)
        conversation = current.get(flow)
        if conversation is None or conversation.ends_before(decoded):
            conversation = current[flow] = _begin_conversation(decoded)
            if conversation is not None:
                conversations.append(conversation)
        packet = Dissected(
            index=index,
            transit=transit,
            flow=flow,
            headers=decoded,
            from_client=from_client,
            label=decoded.label,
            payload=decoded.length,
            retransmission=False,
            lost=on_wire and transit.received_ns is None,
            messages=(),
        )
        if conversation is not None and not decoded.label:
            packet = conversation.add(packet)
        if transit.sent_ns is not None:
            if (transit.sent_ns, transit.data) in sendings:  # sent once: it was the wire that doubled it
                packet = replace(packet, retransmission=False)
            sendings.add((transit.sent_ns, transit.data))
        packets.append(packet)
    for conversation in conversations:
        for index, messages in conversation.messages(secrets).items():
            packets[index] = replace(packets[index], messages=(*packets[index].messages, *messages))
    return packets


def _seen_on_wire(transits: Sequence[Transit]) -> bool:
    """Whether a packet without an arrival was lost.

    In a capture on one host that proves nothing: it sees only the sending of what the host sends, and only the
    arrival of what comes in. Both ends it sees only of what the host sends to itself.
    """
    complete = [t for t in transits if t.sent_ns is not None and t.received_ns is not None]
    if complete:
        return not any(transit.source == transit.destination != "" for transit in complete)
    return all(transit.sent_ns is not None for transit in transits)


def _find_flow(decoded: Decoded, known: Iterable[Flow]) -> tuple[Flow, bool]:
    """Tell who the client is, and whether it sent this: who sent the SYN, else who spoke first."""
    source = (decoded.source, decoded.source_port)
    destination = (decoded.destination, decoded.destination_port)
    forward = Flow(*source, *destination, decoded.protocol)
    backward = Flow(*destination, *source, decoded.protocol)
    if forward in known or backward in known:
        return (forward, True) if forward in known else (backward, False)
    server_speaks = False
    if decoded.tcp is not None and decoded.tcp.flags & SYN:
        server_speaks = bool(decoded.tcp.flags & ACK)
    elif decoded.tcp is not None:  # captured from the middle on: servers have the lower ports
        server_speaks = decoded.source_port < decoded.destination_port
    return (backward, False) if server_speaks else (forward, True)


class _Conversation(Protocol):
    """The packets of one flow, taken in one by one; then it tells what they say."""

    def ends_before(self, decoded: Decoded) -> bool:
        """Whether this packet begins another conversation with the same addresses and ports."""

    def add(self, packet: Dissected) -> Dissected:
        """Take in a packet, and return it with what its own headers tell."""

    def messages(self, secrets: KeyLog) -> dict[int, list[Message]]:
        """Name what was said: index of the packet → the messages that it carries."""


def _begin_conversation(decoded: Decoded) -> _Conversation | None:
    if decoded.label:
        return None
    return _TcpConversation() if decoded.tcp is not None else _UdpConversation()


class _TcpConversation:
    """One TCP connection: its streams may be HTTP, TLS, HTTP inside TLS, or unknown data."""

    def __init__(self) -> None:
        self.connection = Connection()

    def ends_before(self, decoded: Decoded) -> bool:
        return decoded.tcp is not None and self.connection.is_new(decoded.tcp)

    def add(self, packet: Dissected) -> Dissected:
        decoded = packet.headers
        assert decoded.tcp is not None
        repeats = self.connection.add(decoded, packet.from_client, packet.index, not packet.lost)
        name, extra = _tcp_name(decoded.tcp, decoded)
        control: tuple[Message, ...] = ()
        if decoded.tcp.flags & (SYN | FIN | RST):
            control = (Message("TCP", name, extra, "", packet.index, packet.index, 0, b""),)
        size = f"{decoded.length} bytes" if decoded.tcp.flags & SYN and decoded.length else ""
        # A SYN with data always carries a cookie: then the data is what there is to say.
        cookie = "" if size and extra == "cookie" else extra
        label = " + ".join(part for part in (name, cookie, size) if part)
        return replace(packet, label=label, retransmission=repeats, messages=control)

    def messages(self, secrets: KeyLog) -> dict[int, list[Message]]:
        self.connection.settle()
        client, server = (self.connection.streams[side].assemble() for side in (True, False))
        starts = [_tls_start(chunks[0]) if chunks else None for chunks in (client, server)]
        # Only what stands before the first gap can be opened: after it nobody knows the record numbers.
        streams = [
            chunks[0].data[start:] if start is not None else b""
            for chunks, start in zip((client, server), starts, strict=True)
        ]
        records = read_tls(streams[0], streams[1], secrets)
        messages: dict[int, list[Message]] = {}
        for chunks, start, tls, from_client in zip((client, server), starts, records, (True, False), strict=True):
            found: list[tuple[int, int, Message]] = []
            for number, chunk in enumerate(chunks):
                if number > 0:
                    start = _tls_start(chunk)
                    tls = read_tls(chunk.data[start:], b"", KeyLog())[0] if start is not None else []
                found += _place(chunk, start, tls)
            begins, ends = [begin for begin, _, _ in found], [end for _, end, _ in found]
            for segment in self.connection.streams[from_client].segments:
                inside = found[bisect_right(ends, segment.start) : bisect_left(begins, segment.end)]
                messages[segment.index] = [message for _, _, message in inside]
        return messages


def _tcp_name(header: TcpHeader, decoded: Decoded) -> tuple[str, str]:
    """Return a segment's name, and what it says about Fast Open."""
    if header.flags & RST:
        return "RST", ""
    if header.flags & SYN:
        cookie = {None: "", b"": "cookie request"}.get(header.cookie, "cookie")
        return ("SYN-ACK" if header.flags & ACK else "SYN"), cookie
    if header.flags & FIN:
        return "FIN", ""
    if decoded.length:
        return "data", ""
    return ("ACK", "") if header.flags & ACK else ("TCP without flags", "")


def _tls_start(chunk: Chunk) -> int | None:
    """Find where TLS begins in a stream, as an offset in the chunk; None where it does not.

    It need not begin with the first byte: PostgreSQL and HTTP proxies are asked for TLS first. So every
    packet's first byte is looked at, for a hello or for a whole record with nothing but a record after it.
    """
    for part in chunk.parts:
        start = part.start - chunk.start
        header = chunk.data[start : start + 6]
        if not looks_like_tls(header):
            continue
        end = start + 5 + int.from_bytes(header[3:5], "big")
        if header[0] == 22 and header[5:] in (b"\1", b"\2"):
            return start
        if end == len(chunk.data) or looks_like_tls(chunk.data[end : end + 5]):
            return start
    return None


def _place(chunk: Chunk, tls_start: int | None, tls: list[Found]) -> Iterator[tuple[int, int, Message]]:
    """Make messages of what was found in a chunk: start and end in the stream, and the message."""
    clear_end = chunk.start + (len(chunk.data) if tls_start is None else tls_start)
    found = [
        Found("DATA", "data", f"{len(part.data)} bytes", "", part.start, part.end, len(part.data), part.data)
        for part in chunk.parts
        if part.start < clear_end
    ]
    found += [replace(message, start=message.start + clear_end, end=message.end + clear_end) for message in tls]
    for message in name_http(found):
        yield message.start, message.end, _message(message, *chunk.packets(message.start, message.end))


def _message(found: Found, first: int, last: int) -> Message:
    place = (found.level, first, last, found.length)
    return Message(found.protocol, found.name, found.detail, *place, found.data, found.stream, found.fin)


class _UdpConversation:
    """The datagrams between two addresses: QUIC, or something unknown."""

    def __init__(self) -> None:
        self._packets: list[Dissected] = []

    def ends_before(self, decoded: Decoded) -> bool:
        return False

    def add(self, packet: Dissected) -> Dissected:
        self._packets.append(packet)
        return replace(packet, label="datagram")

    def messages(self, secrets: KeyLog) -> dict[int, list[Message]]:
        payloads = [packet.headers.payload for packet in self._packets]
        datagrams = [
            (payload, packet.from_client, not packet.lost)
            for payload, packet in zip(payloads, self._packets, strict=True)
        ]
        found = read_quic(datagrams, secrets)
        if found is None:
            found = [
                [Found("UDP", "datagram", f"{len(payload)} bytes", "", number, number, len(payload), payload)]
                for number, payload in enumerate(payloads)
            ]
        indexes = [packet.index for packet in self._packets]
        made: dict[Found, Message] = {}  # a message that spans datagrams stays one object
        messages: dict[int, list[Message]] = {}
        for index, here in zip(indexes, found, strict=True):
            for item in here:
                made.setdefault(item, _message(item, indexes[item.start], indexes[item.end]))
            messages[index] = [made[item] for item in here]
        return messages
