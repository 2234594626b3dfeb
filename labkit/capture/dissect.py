"""What each captured packet carries, by name: "SYN", "ClientHello", "GET / HTTP/1.1", "STREAM".

``dissect`` is a pure function: transits and secrets in, one ``Dissected`` for each transit out. Packets are
sorted into conversations. ``tcp_connection`` puts streams together, ``tls_records`` and the protocols that ``dialogue``
asks name what is in them, and here each message is given back to the packets that carried it. ``udp`` does that for
datagrams.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from labkit.capture.dialogue import Piece, read_dialogue
from labkit.capture.forwarding import find_forwarded
from labkit.capture.frames import Transit
from labkit.capture.headers import ACK, FIN, RST, SYN, Decoded, TcpHeader, decode
from labkit.capture.icmp import Icmp
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Dissected, Flow, Found, Message
from labkit.capture.streams import Chunk
from labkit.capture.tcp_connection import Connection
from labkit.capture.tls_records import looks_like_tls, read_tls
from labkit.capture.udp import read_datagrams

_SYSTEM_PORTS = 1024  # servers have ports below (RFC 6335 section 6)


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
    conversations: list[_TcpConversation] = []
    current: dict[Flow, _TcpConversation | None] = {}  # None: a protocol of which only the packets are named
    sendings: set[tuple[int, bytes]] = set()
    brought_by = find_forwarded(transits)  # what a router sends on is no packet of its own
    lost_later = _lost_later(transits, brought_by) if on_wire else set()
    aliases: dict[Flow, Flow] = {}  # what a router that translates addresses made of a flow
    for index, transit in enumerate(transits):
        decoded = decode(transit.data)
        lost = on_wire and transit.received_ns is None
        if (before := brought_by.get(index)) is not None:
            same = packets[before]
            flow, _ = _find_flow(decoded, ())
            if same.flow not in (flow, _turned(flow)):
                alias = flow if same.from_client else _turned(flow)
                aliases[alias] = same.flow
                current[alias] = None
            # A file may name its ends by their IP addresses, which do not tell who sent it on.
            unnamed = transit.source == same.transit.source
            by = (*same.forwarded_by, transit.data[6:12].hex(":") if unnamed else transit.source)
            packets.append(
                replace(same, index=index, transit=transit, headers=decoded, lost=lost, before=before, forwarded_by=by)
            )
            continue
        flow, from_client = _find_flow(decoded, current)
        flow = aliases.get(flow, flow)
        conversation = current.get(flow)
        if conversation is None or conversation.ends_before(decoded):
            readable = decoded.tcp is not None and not decoded.label
            conversation = current[flow] = _TcpConversation() if readable else None
            if conversation is not None:
                conversations.append(conversation)
        label = "datagram" if decoded.protocol == "UDP" and not decoded.label else decoded.label
        repeats, control = False, tuple[Message, ...]()
        if conversation is not None and not decoded.label:
            delivered = not lost and index not in lost_later
            label, repeats, control = conversation.add(decoded, from_client, index, delivered)
        if transit.sent_ns is not None:
            sending = transit.sent_ns, transit.data
            repeats = repeats and sending not in sendings  # sent once: it was the wire that doubled it
            sendings.add(sending)
        packet = Dissected(
            index=index,
            transit=transit,
            flow=flow,
            headers=decoded,
            from_client=from_client,
            label=label,
            payload=decoded.length,
            retransmission=repeats,
            lost=lost,
            messages=control,
        )
        packets.append(packet if decoded.icmp is None else _read_icmp(packet, decoded.icmp, current))
    datagrams = [each for each in packets if each.headers.protocol == "UDP" and not each.headers.label]
    if lost_later:
        datagrams = [replace(each, lost=each.lost or each.index in lost_later) for each in datagrams]
    for packet in read_datagrams([each for each in datagrams if each.before is None], secrets):
        packets[packet.index] = replace(packet, lost=packets[packet.index].lost) if lost_later else packet
    for conversation in conversations:
        for index, messages in conversation.messages(secrets).items():
            if messages:
                packets[index] = replace(packets[index], messages=(*packets[index].messages, *messages))
    for index, before in brought_by.items():
        here = packets[index]
        packets[index] = replace(
            packets[before], index=index, transit=here.transit, headers=here.headers, lost=here.lost, before=before,
            forwarded_by=here.forwarded_by,
        )  # fmt: skip
    return packets


def _lost_later(transits: Sequence[Transit], brought_by: Mapping[int, int]) -> set[int]:
    """The packets that got lost on a later part of their way: to their receiver they are lost, too."""
    lost = set()
    for index in sorted(brought_by, reverse=True):
        if transits[index].received_ns is None or index in lost:
            lost.add(brought_by[index])
    return lost


def _turned(flow: Flow) -> Flow:
    return Flow(flow.server, flow.server_port, flow.client, flow.client_port, flow.protocol)


def _seen_on_wire(transits: Sequence[Transit]) -> bool:
    """Whether a packet without an arrival was lost.

    In a capture on one host that proves nothing: it sees only the sending of what the host sends, and only the
    arrival of what comes in. Both ends it sees only of what the host sends to itself.
    """
    complete = [t for t in transits if t.sent_ns is not None and t.received_ns is not None]
    if complete:
        return not any(transit.source == transit.destination != "" for transit in complete)
    return all(transit.sent_ns is not None for transit in transits)


def _find_flow(decoded: Decoded, known: Container[Flow]) -> tuple[Flow, bool]:
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
    elif decoded.source_port:  # who speaks first is the client, but for an answer whose question was not captured
        server_speaks = decoded.source_port < _SYSTEM_PORTS <= decoded.destination_port
    return (backward, False) if server_speaks else (forward, True)


def _read_icmp(packet: Dissected, icmp: Icmp, known: Container[Flow]) -> Dissected:
    """Name an ICMP message, and find the conversation that an error is about."""
    quoted: Flow | None = None
    if (about := icmp.quoted) is not None:
        ends = about.source, about.destination, about.source_port, about.destination_port
        quoted, _ = _find_flow(Decoded(about.protocol, *ends), known)
    protocol, place = packet.headers.protocol, (packet.index, packet.index)
    label = f"{protocol} {icmp.label}"
    message = Message(protocol, icmp.name, icmp.detail, "", *place, packet.payload, packet.headers.payload, label=label)
    return replace(packet, messages=(message,), quoted=quoted)


class _TcpConversation:
    """One TCP connection: its streams may be of a known protocol, TLS, a protocol inside TLS, or unknown data."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.port = 0

    def ends_before(self, decoded: Decoded) -> bool:
        """Whether this packet begins another connection with the same addresses and ports."""
        return decoded.tcp is not None and self.connection.is_new(decoded.tcp)

    def add(
        self, decoded: Decoded, from_client: bool, index: int, delivered: bool
    ) -> tuple[str, bool, tuple[Message, ...]]:
        """Take in a packet, and tell its label, whether it repeats something, and what its own headers say."""
        assert decoded.tcp is not None
        self.port = decoded.destination_port if from_client else decoded.source_port
        repeats = self.connection.add(decoded, from_client, index, delivered)
        name, extra = _tcp_name(decoded.tcp, decoded)
        if not decoded.tcp.flags & (SYN | FIN | RST):
            return name, repeats, ()
        control = (Message("TCP", name, extra, "", index, index, 0, b""),)
        size = f"{decoded.length} bytes" if decoded.tcp.flags & SYN and decoded.length else ""
        # A SYN with data always carries a cookie: then the data is what there is to say.
        cookie = "" if size and extra == "cookie" else extra
        return " + ".join(part for part in (name, cookie, size) if part), repeats, control

    def messages(self, secrets: KeyLog) -> dict[int, list[Message]]:
        """Name what was said: index of the packet → the messages that it carries. Call it once, at the end."""
        self.connection.settle()
        sides = {side: self.connection.streams[side].assemble() for side in (True, False)}
        starts = {side: _tls_start(chunks[0]) if chunks else None for side, chunks in sides.items()}
        # Only what stands before the first gap can be opened: after it nobody knows the record numbers.
        client, server = (
            chunks[0].data[start:] if (start := starts[side]) is not None else b"" for side, chunks in sides.items()
        )
        tls = dict(zip(sides, read_tls(client, server, secrets), strict=True))
        pieces = {side: _pieces(chunks, starts[side], tls[side]) for side, chunks in sides.items()}
        whole = {side: self.connection.begins(side) and chunks[:1] != [] and chunks[0].start == 0
                 for side, chunks in sides.items()}  # fmt: skip
        messages: dict[int, list[Message]] = {}
        for side, found in self._named(pieces, (whole[True], whole[False])).items():
            self._give_to_packets(found, side, sides[side], messages)
        return messages

    def _named(self, pieces: dict[bool, list[Piece]], begins: tuple[bool, bool]) -> dict[bool, list[Found]]:
        """Name what stands in the data. What is no data has its name already."""
        # Early data that the server did not take is said once more: it is no part of what they say to each other.
        said, rejected, named = dict[bool, list[Piece]](), list[Piece](), dict[bool, list[Found]]()
        for side, all_pieces in pieces.items():
            data = [piece for piece in all_pieces if piece.found is None or piece.found.role == "data"]
            said[side] = [piece for piece in data if piece.found is None or not piece.found.rejected]
            rejected += [piece for piece in data if piece.found is not None and piece.found.rejected]
            named[side] = [
                piece.found for piece in all_pieces if piece.found is not None and piece.found.role != "data"
            ]
        for client, server in (
            read_dialogue(said[True], said[False], begins, self.port),
            read_dialogue(rejected, [], (True, False), self.port),
        ):
            named[True] += client
            named[False] += server
        return {side: sorted(found, key=lambda message: (message.start, message.end)) for side, found in named.items()}

    def _give_to_packets(
        self, found: list[Found], side: bool, chunks: list[Chunk], messages: dict[int, list[Message]]
    ) -> None:
        """Tell for each packet which messages it carried bytes of."""
        made, chunk_starts = [], [chunk.start for chunk in chunks]
        for item in found:
            chunk = chunks[bisect_right(chunk_starts, item.start) - 1]
            made.append(item.message(*chunk.packets(item.start, item.end)))
        begins = [item.start for item in found]
        # Ends may stand in another order than beginnings: a TLS alert between two records of one HTTP message.
        ends = list(accumulate((item.end for item in found), max))
        for segment in self.connection.streams[side].segments:
            inside = range(bisect_right(ends, segment.start), bisect_left(begins, segment.end))
            messages[segment.index] = [made[number] for number in inside if found[number].end > segment.start]


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


def _pieces(chunks: list[Chunk], tls_start: int | None, tls: list[Found]) -> list[Piece]:
    """What a side sends, in order: the data of segments in the clear, and what was found in TLS."""
    pieces: list[Piece] = []
    arrival = 0
    for number, chunk in enumerate(chunks):
        if number > 0:
            pieces.append(Piece(arrival, None))
            tls_start = _tls_start(chunk)
            tls = read_tls(chunk.data[tls_start:], b"", KeyLog())[0] if tls_start is not None else []
        clear_end = chunk.start + (len(chunk.data) if tls_start is None else tls_start)
        found = [
            Found("DATA", "data", f"{len(part.data)} bytes", "", part.start, part.end, len(part.data), part.data,
                  role="data")
            for part in chunk.parts
            if part.start < clear_end
        ]  # fmt: skip
        found += [replace(item, start=item.start + clear_end, end=item.end + clear_end) for item in tls]
        for item in found:
            arrival = max(arrival, chunk.packets(item.start, item.end)[1])
            pieces.append(Piece(arrival, item))
    return pieces
