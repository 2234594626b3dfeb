"""Shows the bytes of a connection to the protocol that is spoken on it: both sides, in the order of their arrival.

Which protocol that is, the bytes tell: those in front of both sides are shown to every protocol of
``labkit.capture.protocols``. Where none knows them they are "data", and the next segment or record is asked about anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from labkit.capture.messages import Found
from labkit.capture.protocol import Certainty, HandOver, Opening, Side, StreamProtocol
from labkit.capture.protocols import stream_protocols, upgraded

_OPENING_BYTES = 1024
_OPENING_PIECES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """The data of a segment or of a TLS record.

    Attributes:
        arrival: the number of the packet with which all of it was there, and all that stands before it.
        found: its bytes and their place; None = a gap is here.
    """

    arrival: int
    found: Found | None


def read_dialogue(
    client: Sequence[Piece], server: Sequence[Piece], begins: tuple[bool, bool], port: int
) -> tuple[list[Found], list[Found]]:
    """Name what two sides say to each other.

    Args:
        client: what the client sent, in the order of the stream.
        server: what the server sent.
        begins: whether the first piece of the client and of the server is the beginning of its stream.
        port: the server's.

    Returns:
        the messages of the client and of the server. Nothing is raised.
    """
    dialogue = _Dialogue({True: deque(client), False: deque(server)}, begins, port)
    for from_client, piece in merge(
        ((True, piece) for piece in client), ((False, piece) for piece in server), key=lambda item: item[1].arrival
    ):
        dialogue.add(from_client, piece)
    dialogue.end()
    return dialogue.sides[True].found, dialogue.sides[False].found


class _Dialogue:
    """The two sides, and the protocol that reads them at the moment."""

    def __init__(self, coming: dict[bool, deque[Piece]], begins: tuple[bool, bool], port: int) -> None:
        self._coming = coming
        self._port = port
        self.sides = {True: Side(from_client=True), False: Side(from_client=False)}
        self.sides[True].synchronised, self.sides[False].synchronised = begins
        self._reader: StreamProtocol | None = None

    def add(self, from_client: bool, piece: Piece) -> None:
        """Take in the next piece, or the next gap."""
        self._coming[from_client].popleft()
        side = self.sides[from_client]
        if piece.found is None:
            self._interrupt(side)
        elif not piece.found.data:
            side.found.append(piece.found)  # an empty TLS record says nothing of any protocol
        else:
            side.add(piece.found)
            self._read(side)

    def end(self) -> None:
        for side in self.sides.values():
            self._interrupt(side)

    def _interrupt(self, side: Side) -> None:
        if self._reader is not None:
            self._reader.ended(side)
        side.leave(len(side.data))
        side.synchronised = False

    def _read(self, side: Side) -> None:
        """Show the bytes of a side to the protocol; where it hands over, both sides' to the one that follows."""
        waiting, left = [side], -1
        came_by = HandOver()
        while waiting:
            if self._reader is None:
                # A protocol that gives up without a byte taken would be asked about the same bytes again.
                before, left = left, sum(len(each.data) for each in self.sides.values())
                self._reader = self._begin(came_by) if left != before else None
            reader = self._reader
            if reader is None:
                for each in waiting:
                    each.synchronised = each.synchronised and not each.data
                    each.leave(len(each.data))
                return
            for each in waiting:
                if each.data and reader.successor is None:
                    reader.receive(each)
            waiting = []
            if reader.successor is not None:
                waiting = list(self.sides.values()) if any(each.data for each in self.sides.values()) else []
                came_by, self._reader = reader.successor, None
                if came_by.token and not waiting:
                    self._reader = self._begin(came_by)

    def _begin(self, came_by: HandOver) -> StreamProtocol | None:
        protocol = upgraded(came_by.token) if came_by.token else self._recognise()
        return protocol(self.sides[True], self.sides[False], came_by) if protocol is not None else None

    def _recognise(self) -> type[StreamProtocol] | None:
        """Ask all protocols. The surest one reads; the port decides between those that are equally sure."""
        client, server = self.sides[True], self.sides[False]
        begins = client.synchronised, server.synchronised
        opening = Opening(self._preview(client), self._preview(server), *begins, self._port)
        best, best_rank = None, (Certainty.NO, True)
        for protocol in stream_protocols():
            rank = protocol.recognise(opening), self._port in protocol.ports
            if rank[0] is not Certainty.NO and (best is None or rank > best_rank):
                best, best_rank = protocol, rank
        return best

    def _preview(self, side: Side) -> bytes:
        """The bytes in front, those that are still to come included, up to a gap."""
        data = bytes(side.data[:_OPENING_BYTES])
        for piece in islice(self._coming[side.from_client], _OPENING_PIECES):
            if len(data) >= _OPENING_BYTES or piece.found is None:
                break
            data += piece.found.data[: _OPENING_BYTES - len(data)]
        return data
