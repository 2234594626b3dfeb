"""What a protocol is: bytes of both sides in, named messages out, nothing raised, whatever the bytes are.

A protocol over TCP is a class derived from ``StreamProtocol`` in a module of its own in ``labkit/capture/protocols/``,
which calls it ``STREAM``; no other file knows it. It is shown the bytes of both sides in the order in which they
arrived, in the clear or out of TLS, and takes them message by message:

    class Echo(StreamProtocol):
        ports = frozenset({7})

        @classmethod
        def recognise(cls, opening: Opening) -> Certainty:
            return Certainty.MAYBE if opening.port == 7 and opening.client_begins else Certainty.NO

        def receive(self, side: Side) -> None:
            while (end := side.data.find(b"\\n")) >= 0:
                side.take(end + 1, "Echo", "line", role="request" if side.from_client else "response")

    STREAM = Echo

What nobody takes is "data". ``labkit.capture.dialogue`` shows the bytes. What stands in the bodies of HTTP, in any of
its versions, is read by a ``BodyProtocol``, which its module calls ``BODY``. Over UDP a protocol has the same shape:
``DatagramProtocol``, which its module calls ``DATAGRAM``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, ClassVar

from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found, data_detail


class Certainty(IntEnum):
    """How sure a protocol is that bytes are its own. A port decides only between those that are equally sure."""

    NO = 0
    MAYBE = 1
    SURE = 2


@dataclass(frozen=True, slots=True)
class Opening:
    """What both sides say first, as far as it was captured.

    Attributes:
        client: up to 1024 bytes, or 64 segments, of what the client sends from here on; b"" where it says nothing.
        server: the same of the server.
        client_begins: whether a message begins with the first byte: it is the first of the connection, or what stood
            before it was complete. Not so in the middle of a connection and after a gap.
        server_begins: the same of the server.
        port: the server's: a hint, since any protocol may run on any port.
    """

    client: bytes
    server: bytes
    client_begins: bool
    server_begins: bool
    port: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Where a protocol ends and another goes on, in both directions, with the bytes that were not taken.

    Attributes:
        token: what the protocol is called in HTTP's field Upgrade; "" = find out by the bytes.
        fields: what the next protocol may need, such as the fields of the response that switched.
    """

    token: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


class Side:
    """The bytes of one direction that no message has taken yet.

    Attributes:
        from_client: the direction.
        data: the bytes. Look at them here, and remove them by ``take`` or ``leave`` only.
        synchronised: whether a message begins at the first of them. False in a capture from the middle of a connection
            on, and after a gap: a protocol that finds a message's beginning sets it.
        found: the messages that were taken.
    """

    def __init__(self, from_client: bool) -> None:
        self.from_client = from_client
        self.data = bytearray()
        self.synchronised = False
        self.found: list[Found] = []
        self._pieces: deque[Found] = deque()  # the segments or records that brought ``data``
        self._taken = 0  # bytes of the first of them that are no longer in ``data``

    def add(self, piece: Found) -> None:
        """Take in the data of a segment, or of an opened TLS record."""
        self._pieces.append(piece)
        self.data += piece.data

    def piece_end(self, offset: int) -> int:
        """Offset behind the segment or record that brought the byte before ``offset``."""
        end = -self._taken
        for piece in self._pieces:
            end += len(piece.data)
            if end >= offset:
                break
        return end

    def take(self, size: int, protocol: str, name: str, detail: str | None = None, **fields: Any) -> None:
        """Take a message from the front.

        Args:
            size: its bytes, header included. Nothing is made of none.
            protocol: as in ``Message``.
            name: as in ``Message``.
            detail: as in ``Message``; its size where nothing is said.
            fields: more fields of ``Found``: role, stream, fin, start_line, status, headers, label; data and
                length where they are not all of its bytes.
        """
        data = bytes(self.data[:size])
        parts = self._cut(size)
        if not parts:
            return
        (first, begin, _), (last, _, end) = parts[0], parts[-1]
        if detail is None:
            detail = data_detail(len(data), last.level, last.rejected)
        place = (last.level, _start(first, begin), _end(last, end))
        fields = {"length": len(data), "data": data, "rejected": last.rejected, **fields}
        self.found.append(Found(protocol, name, detail, *place, **fields))

    def leave(self, length: int) -> None:
        """Take bytes that no message is named for: "data", one for each segment or record."""
        for piece, begin, end in self._cut(length):
            whole = end - begin == len(piece.data)
            self.found.append(
                piece
                if whole
                else replace(
                    piece,
                    detail=data_detail(end - begin, piece.level, piece.rejected),
                    start=_start(piece, begin),
                    end=_end(piece, end),
                    length=end - begin,
                    data=piece.data[begin:end],
                )
            )

    def _cut(self, length: int) -> list[tuple[Found, int, int]]:
        """Remove bytes from the front; tell of which pieces they were, from where to where."""
        length = min(length, len(self.data))
        del self.data[:length]
        parts = []
        while length > 0:
            piece, begin = self._pieces[0], self._taken
            end = self._taken = min(begin + length, len(piece.data))
            parts.append((piece, begin, end))
            length -= end - begin
            if end == len(piece.data):
                self._pieces.popleft()
                self._taken = 0
        return parts


def _start(piece: Found, offset: int) -> int:
    """Where a byte of a piece is in the TCP stream. An encrypted record is one place, since it opens as a whole."""
    return piece.start + (offset if piece.end - piece.start == len(piece.data) else 0)


def _end(piece: Found, offset: int) -> int:
    return piece.start + offset if piece.end - piece.start == len(piece.data) else piece.end


class StreamProtocol:
    """A protocol over TCP, reading one connection.

    Attributes:
        ports: where its servers usually listen.
        tokens: what it is called in HTTP's field Upgrade.
        successor: set by ``receive`` where another protocol goes on with the bytes that were not taken.
    """

    ports: ClassVar[frozenset[int]] = frozenset()
    tokens: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, client: Side, server: Side, came_by: HandOver) -> None:
        self.client = client
        self.server = server
        self.came_by = came_by
        self.successor: HandOver | None = None

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        """Tell whether this protocol is spoken from here on."""
        raise NotImplementedError

    def receive(self, side: Side) -> None:
        """Take the messages that are complete from the front of a side: called when bytes have come.

        The rest may stay for the next time. The cost must not depend on how much stays.
        """
        raise NotImplementedError

    def ended(self, side: Side) -> None:
        """Name what stayed: no byte of this side follows, or bytes are missing here (``side.synchronised`` is False
        when the next come). What is not taken now is "data".
        """


class BodyProtocol:
    """A format of HTTP's bodies that consists of messages, reading one body.

    Attributes:
        content_types: in lower case, without parameters; "application/grpc" stands for "application/grpc+proto", too.
        start_line: what was asked for: "POST /path" or "" where that is not known.
    """

    content_types: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, start_line: str) -> None:
        self.start_line = start_line

    @classmethod
    def tell(cls, headers: Mapping[str, str]) -> str:
        """Tell what the fields of a head or of trailers say of this protocol alone, for the label; "" = nothing."""
        return ""

    def receive(self, side: Side) -> None:
        """Take the messages that are complete from the front of the body, as ``StreamProtocol.receive`` does."""
        raise NotImplementedError


Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram between two endpoints.

    Attributes:
        data: its payload.
        from_client: whether the side that spoke first sent it.
        delivered: False where the wire lost it.
        source: address and port of its sender.
        destination: address and port of its receiver.
    """

    data: bytes
    from_client: bool
    delivered: bool
    source: Endpoint
    destination: Endpoint

    @property
    def port(self) -> int:
        """The server's port."""
        return self.destination[1] if self.from_client else self.source[1]


class DatagramProtocol:
    """A protocol over UDP, reading the datagrams between two endpoints. Several may share them (RFC 7983)."""

    ports: ClassVar[frozenset[int]] = frozenset()

    @classmethod
    def recognise(cls, datagram: Datagram) -> Certainty:
        """Tell whether this protocol can have sent a datagram."""
        raise NotImplementedError

    def read(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> list[list[Found] | None]:
        """Name what the datagrams carry, with their numbers as places; None for those that are not its own."""
        raise NotImplementedError
