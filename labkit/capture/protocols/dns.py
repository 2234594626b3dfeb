"""DNS: what is asked and what is answered, over UDP and over TCP.

Read here and not by scapy, whose layer takes a second to import and writes warnings about hostile messages.

Sources: RFC 1035 (messages; section 4.2.2: two bytes of length in front over TCP), RFC 3596 (AAAA), RFC 2782 (SRV),
RFC 6891 (OPT), RFC 6895 (codes).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from labkit.capture.fields import Cursor, Truncated, printable
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found, Role
from labkit.capture.protocol import (
    Certainty,
    Datagram,
    DatagramProtocol,
    Opening,
    Side,
    StreamProtocol,
)

_PORTS = frozenset({53, 5353})
_OPCODES = {0: "query", 2: "status", 4: "notify", 5: "update"}
_RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN",
    7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
}  # fmt: skip
_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
    35: "NAPTR", 39: "DNAME", 41: "OPT", 43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA",
    64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}  # fmt: skip
_CLASSES = (1, 3, 4, 254, 255)
_OPT = 41
_LONGEST_NAME = 255
_SHOWN = 4  # answers in a label or a detail


@dataclass(frozen=True, slots=True)
class DnsMessage:
    """What one message says.

    Attributes:
        id: the number that a response repeats.
        response: whether it is one.
        operation: "query", "notify" ...
        rcode: how it went, by name; of responses.
        flags: "AA" (from the zone's own server), "TC" (cut: ask again over TCP), "RD", "RA".
        question: type and name: "A server.lab"; "" where nothing is asked.
        answers: each as "server.lab 60 A 192.0.2.2".
        exact: whether nothing stands behind it.
    """

    id: int
    response: bool
    operation: str
    rcode: str
    flags: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    exact: bool

    @classmethod
    def parse(cls, data: bytes) -> DnsMessage:
        """Read a message. Raises ``Truncated`` where it is none."""
        cursor = Cursor(data)
        number, bits = cursor.number(2), cursor.number(2)
        counts = [cursor.number(2) for _ in range(4)]
        operation = _OPCODES.get(bits >> 11 & 15)
        if operation is None:
            raise Truncated(f"opcode {bits >> 11 & 15}")
        questions = []
        for _ in range(counts[0]):
            name, kind, family = _read_name(cursor), cursor.number(2), cursor.number(2) & 0x7FFF
            if family not in _CLASSES:
                raise Truncated(f"class {family}")
            questions.append(f"{_type(kind)} {name}")
        records = [[_record(cursor) for _ in range(count)] for count in counts[1:]]
        flags = [name for bit, name in ((0x400, "AA"), (0x200, "TC"), (0x100, "RD"), (0x80, "RA")) if bits & bit]
        return cls(
            id=number,
            response=bool(bits & 0x8000),
            operation=operation,
            rcode=_RCODES.get(bits & 15, f"RCODE {bits & 15}"),
            flags=tuple(flags),
            question=", ".join(questions[:_SHOWN]),
            answers=tuple(record for record in records[0] if record),
            exact=cursor.left == 0,
        )

    @property
    def name(self) -> str:
        if not self.response:
            return self.operation
        return "response" if self.operation == "query" else f"{self.operation} response"

    @property
    def role(self) -> Role:
        return "response" if self.response else "request"

    @property
    def label(self) -> str:
        """For a ladder: "DNS query A server.lab", "DNS response 192.0.2.2", "DNS response NXDOMAIN"."""
        if not self.response:
            return f"DNS {self.name} {self.question}".rstrip()
        values = [record.split(" ", 2)[2].split(" ", 1)[-1] for record in self.answers[:_SHOWN]]
        result = ", ".join(values) if self.rcode == "NOERROR" and values else self.rcode
        return f"DNS {self.name} {result}" + (", TC" if "TC" in self.flags else "")

    @property
    def detail(self) -> str:
        parts = [f"id 0x{self.id:04x}", self.question or "no question"]
        if self.response:
            parts += [self.rcode, *self.answers[:_SHOWN]]
            parts += [f"{len(self.answers) - _SHOWN} more"] if len(self.answers) > _SHOWN else []
        return "; ".join([*parts, *([" ".join(self.flags)] if self.flags else [])])


def _read_name(cursor: Cursor) -> str:
    """Read the name at a cursor, to behind it: it may go on at an earlier place (RFC 1035 section 4.1.4)."""
    labels: list[str] = []
    size, here = 0, cursor
    while length := here.number(1):
        if length < 0x40:
            labels.append(printable(here.take(length)))
        elif length >= 0xC0:
            target = (length & 0x3F) << 8 | here.number(1)
            if target >= here.position - 2:
                raise Truncated("a name that points forward")
            here = Cursor(cursor.data)
            here.position = target
        else:
            raise Truncated("a label of an unknown kind")
        size += length + 1 if length < 0x40 else 1  # a pointer counts, so that there are no long chains of them
        if size > _LONGEST_NAME:
            raise Truncated("a name of more than 255 bytes")
    return ".".join(labels) or "."


def _type(kind: int) -> str:
    return _TYPES.get(kind, f"TYPE{kind}")


def _record(cursor: Cursor) -> str:
    """Read a resource record; "" for OPT, which is no record of a name."""
    name, kind = _read_name(cursor), cursor.number(2)
    cursor.take(2)  # class
    ttl_s, length = cursor.number(4), cursor.number(2)
    begin = cursor.position
    data = cursor.take(length)
    if kind == _OPT:
        return ""
    cursor.position = begin
    try:
        value = _value(kind, cursor, data)
    except Truncated:
        value = f"{length} bytes"
    cursor.position = begin + length
    return f"{name} {ttl_s} {_type(kind)} {value}"


def _value(kind: int, cursor: Cursor, data: bytes) -> str:
    if kind == 1 and len(data) == 4:
        return socket.inet_ntop(socket.AF_INET, data)
    if kind == 28 and len(data) == 16:
        return socket.inet_ntop(socket.AF_INET6, data)
    if kind in (2, 5, 6, 12, 39):
        return _read_name(cursor)
    if kind == 15:
        return f"{cursor.number(2)} {_read_name(cursor)}"
    if kind == 33:
        priority, weight, port = cursor.number(2), cursor.number(2), cursor.number(2)
        return f"{priority} {weight} {port} {_read_name(cursor)}"
    if kind == 16:
        return f'"{printable(Cursor(data).vector(1))}"'
    return f"{len(data)} bytes"


@lru_cache(maxsize=64)  # the same bytes are looked at to recognise them, and to name them
def _parse(data: bytes) -> DnsMessage | None:
    try:
        return DnsMessage.parse(data)
    except Truncated:
        return None


def _certainty(data: bytes, port: int) -> Certainty:
    if port not in _PORTS and (len(data) < 17 or data[2] & 0x70 or data[4:6] != b"\0\1"):
        return Certainty.NO  # most bytes are no DNS: found out without reading them all
    message = _parse(data)
    if message is not None and message.exact and message.question:
        return Certainty.SURE if port in _PORTS else Certainty.MAYBE
    return Certainty.MAYBE if port in _PORTS else Certainty.NO


class DnsDatagrams(DatagramProtocol):
    """A message in each datagram."""

    ports = _PORTS

    @classmethod
    def recognise(cls, datagram: Datagram) -> Certainty:
        return _certainty(datagram.data, datagram.port)

    def read(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> list[list[Found] | None]:
        return [[self._found(number, datagram.data)] for number, datagram in enumerate(datagrams)]

    def _found(self, number: int, data: bytes) -> Found:
        message = _parse(data)
        place = ("", number, number, len(data), data)
        if message is None:
            return Found("DNS", "malformed DNS message", f"{len(data)} bytes", *place)
        question = "" if message.response else message.question
        return Found(
            "DNS", message.name, message.detail, *place, role=message.role, start_line=question, label=message.label
        )


class DnsStream(StreamProtocol):
    """Messages with two bytes of length in front; on port 853 inside TLS (RFC 7858)."""

    ports = _PORTS | {853}

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        for data, begins in ((opening.client, opening.client_begins), (opening.server, opening.server_begins)):
            if begins and data:
                length = int.from_bytes(data[:2], "big")
                whole = len(data) >= 2 + length
                port = 53 if opening.port == 853 else opening.port
                return _certainty(data[2 : 2 + length], port) if whole and length else Certainty.NO
        return Certainty.NO

    def receive(self, side: Side) -> None:
        while len(side.data) >= 2 and len(side.data) >= (size := 2 + int.from_bytes(side.data[:2], "big")):
            message = _parse(bytes(side.data[2:size]))
            if message is None:
                side.take(size, "DNS", "malformed DNS message")
                continue
            question = "" if message.response else message.question
            fields = {"role": message.role, "start_line": question, "label": message.label}
            side.take(size, "DNS", message.name, message.detail, **fields)


DATAGRAM = DnsDatagrams
STREAM = DnsStream
