"""DTLS, opened with the session's secrets, and what goes with it: SRTP beside it, SCTP inside it.

Handshake messages may come in fragments, in any order and repeatedly: each is put together by its number. Records say
their own sequence numbers, so each opens by itself. DTLS 1.3 is named and not opened: no library here speaks it.

Sources: RFC 6347 (DTLS 1.2), RFC 9147 (DTLS 1.3), RFC 5764 (use_srtp), RFC 7983 (which protocol a datagram is of),
RFC 8261 (SCTP over DTLS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labkit.capture.fields import Cursor, Truncated
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found, Role, data_detail
from labkit.capture.protocol import Certainty, Datagram, DatagramProtocol
from labkit.capture.protocols._rtp import is_rtp, read_rtp
from labkit.capture.protocols._sctp import read_sctp
from labkit.capture.streams import Segment, Stream
from labkit.capture.tls_handshake import describe_handshake, handshake_name
from labkit.capture.tls_keys import TLS12_SUITES, Tls12Keys
from labkit.capture.tls_records import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, alert
from labkit.capture.tls_session import CLIENT_HELLO, SERVER_HELLO, Session

_HEADER, _HANDSHAKE_HEADER = 13, 12
_VERSIONS = (b"\xfe\xff", b"\xfe\xfd", b"\xfe\xfc")  # 1.0, also of a first ClientHello; 1.2; 1.3
_TYPES = {CHANGE_CIPHER_SPEC: "ChangeCipherSpec", ALERT: "Alert", HANDSHAKE: "Handshake message",
          APPLICATION_DATA: "Application data", 24: "Heartbeat", 25: "CID record", 26: "ACK"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Record:
    """A record: ``sequence`` holds its epoch, too, as ciphers count (RFC 6347 section 4.1)."""

    kind: int
    version: bytes
    epoch: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Fragment:
    """A piece of a handshake message (RFC 6347 section 4.2.2)."""

    kind: int
    length: int
    number: int
    offset: int
    data: bytes


class Dtls(DatagramProtocol):
    """The records between two endpoints, and the SRTP that they made keys for."""

    @classmethod
    def recognise(cls, datagram: Datagram) -> Certainty:
        if _is_record(datagram.data):
            return Certainty.SURE
        return Certainty.MAYBE if is_rtp(datagram.data) or _is_unified(datagram.data) else Certainty.NO

    def read(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> list[list[Found] | None]:
        if not any(_is_record(datagram.data) for datagram in datagrams):
            return [None] * len(datagrams)
        association = _Association(datagrams, secrets)
        return [association.name(number) for number in range(len(datagrams))]


def _is_record(data: bytes, position: int = 0) -> bool:
    begin = data[position : position + _HEADER]
    known = len(begin) == _HEADER and begin[0] in _TYPES and begin[1:3] in _VERSIONS
    return known and position + _HEADER + int.from_bytes(begin[11:], "big") <= len(data)


def _is_unified(data: bytes) -> bool:
    """Whether it begins like an encrypted record of DTLS 1.3 (RFC 9147 section 4)."""
    return len(data) > 20 and data[0] >> 5 == 1


def _records(data: bytes) -> Iterator[_Record]:
    """Take the records of a datagram apart; stops at bytes that make none."""
    position = 0
    while _is_record(data, position):
        end = position + _HEADER + int.from_bytes(data[position + 11 : position + 13], "big")
        header = data[position : position + _HEADER]
        epoch, sequence = int.from_bytes(header[3:5], "big"), int.from_bytes(header[3:11], "big")
        yield _Record(header[0], header[1:3], epoch, sequence, data[position + _HEADER : end])
        position = end


def _fragments(data: bytes) -> list[_Fragment]:
    """Take the handshake fragments of a record apart. Raises ``Truncated``."""
    cursor, fragments = Cursor(data), []
    while cursor.left:
        kind, length, number, offset = (cursor.number(size) for size in (1, 3, 2, 3))
        fragments.append(_Fragment(kind, length, number, offset, cursor.vector(3)))
    return fragments


def _without_cookie(body: bytes) -> bytes:
    """A ClientHello as TLS has it: DTLS has a cookie behind the session ID (RFC 6347 section 4.2.1)."""
    cursor = Cursor(body)
    try:
        cursor.take(34)
        cursor.vector(1)
        before = cursor.position
        cursor.vector(1)
    except Truncated:
        return body
    return body[:before] + body[cursor.position :]


class _Association:
    """What two endpoints say by DTLS: the keys that they agreed on, the handshake messages, put together."""

    def __init__(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> None:
        self._datagrams = datagrams
        self._session = Session(datagrams=True)
        self._keys: dict[bool, Tls12Keys] = {}
        self._opened: dict[int, list[tuple[_Record, bytes | None]]] = {}
        self._messages: dict[tuple[bool, int, int], Stream] = {}
        self._lengths: dict[tuple[bool, int, int], tuple[int, int]] = {}  # type and length
        self._made: dict[tuple[bool, int, int], Found] = {}
        self._client_begins = True  # which of the endpoints is DTLS's client
        self._collect(encrypted=False)
        self._learn_hellos(secrets)
        self._collect(encrypted=True)

    def _collect(self, *, encrypted: bool) -> None:
        """Put together the handshake messages of the records that are in the clear, or of the others."""
        for number, datagram in enumerate(self._datagrams):
            opened = self._opened.setdefault(number, [])
            if not encrypted:
                opened += [(record, None if record.epoch else record.body) for record in _records(datagram.data)]
            for place, (record, body) in enumerate(opened):
                if (record.epoch > 0) is not encrypted:
                    continue
                if encrypted:
                    body = self._open(record, datagram.from_client)
                    opened[place] = record, body
                if record.kind == HANDSHAKE and body is not None:
                    self._put_together(number, datagram, record.epoch, body)

    def _put_together(self, number: int, datagram: Datagram, epoch: int, body: bytes) -> None:
        try:
            fragments = _fragments(body)
        except Truncated:
            return
        for fragment in fragments:
            key = datagram.from_client, epoch, fragment.number
            self._lengths.setdefault(key, (fragment.kind, fragment.length))
            stream = self._messages.setdefault(key, Stream())
            # An empty message has a place, too: its header counts.
            stream.add(Segment(fragment.offset, fragment.data, number, datagram.delivered))

    def _whole(self, key: tuple[bool, int, int]) -> bytes | None:
        """Return the body of a handshake message, if all of it is there."""
        _, length = self._lengths[key]
        chunks = self._messages[key].assemble()
        if length == 0:
            return b""
        return chunks[0].data[:length] if chunks and chunks[0].start == 0 and chunks[0].end >= length else None

    def _learn_hellos(self, secrets: KeyLog) -> None:
        for key in sorted(self._lengths, key=lambda key: key[1:]):
            kind, _ = self._lengths[key]
            body = self._whole(key) if kind in (CLIENT_HELLO, SERVER_HELLO) else None
            if body is not None:
                self._session.learn(kind, _without_cookie(body) if kind == CLIENT_HELLO else body)
                self._client_begins = key[0] if kind == CLIENT_HELLO else not key[0]
        client, server = self._session.client, self._session.server
        master = self._session.secret("CLIENT_RANDOM", secrets)
        if client and server and master and server.suite in TLS12_SUITES:
            for side in (True, False):
                by_client = side is self._client_begins
                self._keys[side] = Tls12Keys(server.suite, master, client.random, server.random, by_client)

    def _open(self, record: _Record, from_client: bool) -> bytes | None:
        keys = self._keys.get(from_client)
        header = bytes([record.kind]) + record.version
        return keys.open(header, record.body, record.sequence) if keys is not None else None

    def name(self, number: int) -> list[Found]:
        """Name what a datagram carries."""
        datagram = self._datagrams[number]
        records = self._opened[number]
        if not records:
            if is_rtp(datagram.data):
                return [read_rtp(datagram.data, number, secure=True)]
            size = len(datagram.data)
            return [Found("DTLS", "record of DTLS 1.3 (encrypted)", f"{size} bytes", "unknown", number, number, size)]
        found: list[Found] = []
        for record, body in records:
            found += self._name_record(number, datagram.from_client, record, body)
        return list(dict.fromkeys(found))

    def _name_record(self, number: int, from_client: bool, record: _Record, body: bytes | None) -> list[Found]:
        name, place = _TYPES[record.kind], (number, number)
        if body is None:
            size = len(record.body)
            return [Found("DTLS", f"{name} (encrypted)", f"{size} bytes", "unknown", *place, size)]
        level = "application" if record.epoch else ""
        if record.kind == HANDSHAKE:
            try:
                keys = [(from_client, record.epoch, fragment.number) for fragment in _fragments(body)]
            except Truncated:
                return [
                    Found("DTLS", "malformed Handshake message", f"{len(body)} bytes", level, *place, len(body), body)
                ]
            return [self._message(key, level, number) for key in keys]
        if record.kind == ALERT:
            name, detail = alert(body)
            return [Found("DTLS", name, detail, level, *place, len(body), body)]
        chunks = read_sctp(body) if record.kind == APPLICATION_DATA else None
        if chunks is not None:
            return [
                Found("SCTP", chunk.name, chunk.detail, level, *place, len(chunk.data), chunk.data, chunk.stream,
                      role=chunk.role, label=chunk.label)
                for chunk in chunks
            ]  # fmt: skip
        role: Role = "data" if record.kind == APPLICATION_DATA else ""
        return [Found("DTLS", name, data_detail(len(body)), level, *place, len(body), body, role=role)]

    def _message(self, key: tuple[bool, int, int], level: str, number: int) -> Found:
        """Name a handshake message: one object, in all datagrams that carried a fragment of it."""
        if key not in self._made:
            kind, length = self._lengths[key]
            body, chunks = self._whole(key), self._messages[key].assemble()
            first, last = chunks[0].packets(0, chunks[-1].end) if chunks else (number, number)
            if body is None:
                name, detail, data = f"{handshake_name(kind)} (incomplete)", f"{length} bytes", b""
            else:
                tls_body = _without_cookie(body) if kind == CLIENT_HELLO else body
                self._session.learn(kind, tls_body)
                name, detail = describe_handshake(kind, tls_body, self._session)
                data = bytes([kind]) + length.to_bytes(3, "big") + tls_body
            self._made[key] = Found("DTLS", name, detail, level, first, last, length, data)
        return self._made[key]


DATAGRAM = Dtls
