"""What packets carry, as values: messages, the flows they belong to, and the packets with their names.

``labkit.capture.dissect`` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from labkit.capture.frames import Transit
from labkit.capture.headers import Decoded, flag_names
from labkit.capture.tls_session import Hello
from labkit.errors import InvalidValue

# The QUIC packets that each level's keys protect.
PACKET_NAMES = {"initial": "Initial", "early": "0-RTT", "handshake": "Handshake", "application": "1-RTT"}
_FRAMED = {"TLS": "CRYPTO", "HTTP/3": "STREAM"}  # the frames in which QUIC carries other protocols
_INSIDE_QUIC = ("QUIC", *_FRAMED)

Role = Literal["", "request", "response", "control", "data"]


@dataclass(frozen=True, slots=True)
class Message:
    """Something that one side says to the other, of any protocol.

    Attributes:
        protocol: "TCP", "UDP", "TLS", "QUIC", "HTTP", "HTTP/2" …, or "DATA" for bytes of a protocol not known here.
        name: such as "SYN", "ClientHello", "STREAM", "HEADERS", "GET / HTTP/1.1"; "data" for "DATA".
        detail: short: "42 bytes", "early data, 18 bytes", "stream 0, request, 120 bytes, fin".
        level: the keys that protected it: "initial", "early", "handshake" or "application"; "" = in the
            clear; "unknown" = encrypted with keys that are not in the log.
        first: index of the first transit that brought bytes of it.
        last: index of the last transit that brought bytes of it (``first`` if it fits one packet). A lost
            transit counts only where no other brought its bytes.
        length: payload bytes of it: plaintext, or ciphertext where it could not be opened.
        data: the plaintext; b"" where it could not be opened.
        stream: ID of the stream that it belongs to, in protocols that have streams; else None.
        fin: whether it ends its stream.
        role: the same in every protocol: "request", "response", "control" (it manages the connection), "data" (bytes of
            an application, or of a message that began before), or "" where nothing is known.
        start_line: what a request asks for, or a response's status: "GET / HTTP/1.1"; "GET /", "200" in HTTP/2.
        status: a response's, as a number; None where there is none.
        headers: HTTP's fields in their order, names in lower case; those of HTTP/2 that begin with ":" included.
        label: what a ladder shows, where that is more than the name: "HEADERS 1: GET /".
    """

    protocol: str
    name: str
    detail: str
    level: str
    first: int
    last: int
    length: int
    data: bytes
    stream: int | None = None
    fin: bool = False
    role: Role = ""
    start_line: str = ""
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    label: str = ""

    @property
    def hello(self) -> Hello:
        """What stands in a hello. Raises InvalidValue for other messages."""
        if self.protocol not in ("TLS", "DTLS") or self.name not in ("ClientHello", "ServerHello", "HelloRetryRequest"):
            raise InvalidValue(f"{self.name!r} is no hello: choose by name, 'ClientHello' or 'ServerHello'")
        return Hello.parse(self.data[4:], from_client=self.name == "ClientHello")


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """A message at its place.

    Attributes:
        protocol, name, detail, level, data, stream, fin, role, start_line, status, headers, label: as in ``Message``.
        start: offset of its first byte in the stream, record header included (QUIC: first datagram).
        end: offset after its last byte (QUIC: last datagram).
        length: bytes of plaintext; of ciphertext where it could not be opened.
        rejected: whether it is early data that the server did not take.
    """

    protocol: str
    name: str
    detail: str
    level: str
    start: int
    end: int
    length: int
    data: bytes = b""
    stream: int | None = None
    fin: bool = False
    rejected: bool = False
    role: Role = ""
    start_line: str = ""
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    label: str = ""

    def message(self, first: int, last: int) -> Message:
        """The same as a message, with the packets that brought it."""
        return Message(
            self.protocol, self.name, self.detail, self.level, first, last, self.length, self.data, self.stream,
            self.fin, self.role, self.start_line, self.status, self.headers, self.label,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flow:
    """The two ends of a conversation.

    A QUIC connection keeps the flow that it began with, also when its client's address changes:
    ``Dissected.headers`` says where a packet came from and went to.

    Attributes:
        client: address of the side that began, "" where the protocol has no addresses.
        client_port: its port, 0 where there is none.
        server: address of the other side.
        server_port: its port.
        protocol: "TCP", "UDP", or what the packet is otherwise: "ICMP", "ARP" ...
    """

    client: str
    client_port: int
    server: str
    server_port: int
    protocol: str

    def __str__(self) -> str:
        if not self.client:
            return self.protocol
        return f"{self.client}:{self.client_port} → {self.server}:{self.server_port} {self.protocol}"


@dataclass(frozen=True, slots=True)
class Dissected:
    """One transit and what it carries.

    Attributes:
        index: its number in the sequence given to ``dissect``.
        transit: the frame and its times.
        flow: whose conversation it belongs to.
        headers: what its headers say: addresses, ports, the TCP header.
        from_client: whether the client sent it.
        label: the packet itself: "SYN", "SYN + 312 bytes", "SYN-ACK + cookie", "ACK", "data", "FIN", "RST",
            "datagram", "ARP request", "malformed TCP header".
        payload: bytes of transport payload.
        retransmission: whether it repeats a SYN, a FIN or bytes that its sender had sent before.
        lost: whether the wire dropped it.
        messages: those that begin or go on here, in order. A retransmitted packet and its lost original list
            the same message; ``message.first`` tells which one brought it.
        before: index of the same packet on the link before this one, None on its first.
        forwarded_by: the routers that have sent it on so far, ("r1", "r2"). On each link of its way a packet is seen
            anew, and what it carries is that of its first link, as are ``flow`` and ``retransmission``; ``headers``
            are what they are here, which may be other addresses.
        quoted: of an ICMP error: the flow of the packet that it is about. Else None.
    """

    index: int
    transit: Transit
    flow: Flow
    headers: Decoded
    from_client: bool
    label: str
    payload: int
    retransmission: bool
    lost: bool
    messages: tuple[Message, ...]
    before: int | None = None
    forwarded_by: tuple[str, ...] = ()
    quoted: Flow | None = None

    @property
    def flags(self) -> frozenset[str]:
        """TCP's flags by name: {"SYN", "ACK"}. None in other protocols."""
        return flag_names(self.headers.tcp.flags if self.headers.tcp else 0)

    @property
    def bare_ack(self) -> bool:
        """Whether it acknowledges, and says nothing else. Of QUIC, too, where padding says nothing."""
        if self.messages:
            return all(message.name in ("ACK", "PADDING", "datagram padding") for message in self.messages)
        return "ACK" in self.flags and not self.payload

    @property
    def what(self) -> str:
        """The packet in words: "ClientHello", "Initial: CRYPTO[ServerHello] + Handshake: ...", "ACK"."""
        return (" + " if self._is_quic else ", ").join(self.parts)

    @property
    def parts(self) -> list[str]:
        """The words of ``what``, one for each message or QUIC packet; "…" after a message that goes on.

        Messages that follow each other and are shown alike are counted: "DataRow ×3".
        """
        if self._is_quic:
            return self._quic_parts()
        named = self.label in ("data", "datagram") or self.headers.icmp is not None
        parts = [] if named and self.messages else [self.label]
        texts = (self._early(message) for message in self.messages if message.protocol != "TCP")
        for text, same in groupby(texts):
            count = len(list(same))
            parts.append(f"{text} ×{count}" if count > 1 else text)
        return parts

    def _early(self, message: Message) -> str:
        early = message.level == "early" and message.name != "EndOfEarlyData"
        return ("early data: " if early else "") + self._shown(message)

    def _shown(self, message: Message) -> str:
        goes_on = message.first < self.index <= message.last
        return (message.label or message.name) + (" …" if goes_on else "")

    @property
    def _is_quic(self) -> bool:
        return self.flow.protocol == "UDP" and any(message.protocol in _INSIDE_QUIC for message in self.messages)

    def _quic_parts(self) -> list[str]:
        parts = []
        for level, messages in groupby(self.messages, lambda message: message.level):
            texts = []
            for protocol, group in groupby(messages, lambda message: message.protocol):
                if protocol in _FRAMED:
                    for stream, inside in groupby(group, lambda message: message.stream):
                        names = [self._shown(message) for message in inside]
                        frame = _FRAMED[protocol] if stream is None else f"{_FRAMED[protocol]} {stream}"
                        texts.append(f"{frame}[{', '.join(names)}]")
                else:
                    for text, same in groupby(map(_frame_text, group)):
                        count = len(list(same))
                        texts.append(f"{text} ×{count}" if count > 1 else text)
            prefix = f"{PACKET_NAMES[level]}: " if level else ""
            parts.append(prefix + ", ".join(texts))
        return parts

    @property
    def summary(self) -> str:
        """One line about the packet."""
        marks = ("lost", self.lost), ("retransmission", self.retransmission)
        notes = [name for name, present in marks if present]
        if self.forwarded_by:
            notes.append(f"forwarded by {', '.join(self.forwarded_by)}")
        source, destination = self.transit.source or "?", self.transit.destination or "?"
        suffix = f" ({', '.join(notes)})" if notes else ""
        return f"{self.index + 1}  {source} → {destination}  {self.what}{suffix}"


def _frame_text(message: Message) -> str:
    """Name a QUIC frame; STREAM frames with their stream: "STREAM 0"."""
    return message.name if message.stream is None else f"{message.name} {message.stream}"


def data_detail(length: int, level: str = "", rejected: bool = False) -> str:
    """What there is to say of data in a stream: "early data, 18 bytes, rejected"."""
    return ("early data, " if level == "early" else "") + f"{length} bytes" + (", rejected" if rejected else "")
