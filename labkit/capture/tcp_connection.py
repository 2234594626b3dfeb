"""One TCP connection: what its sequence numbers make of the segments, a stream for each direction.

Sources: RFC 9293 (TCP), RFC 7413 (TCP Fast Open).
"""

from __future__ import annotations

from labkit.capture.headers import ACK, FIN, RST, SYN, Decoded, TcpHeader
from labkit.capture.streams import Segment, Stream


class Connection:
    """One TCP connection: takes its segments in capture order, sorts out what is a repetition.

    Offset 0 of a stream is the first byte after the SYN; without a captured SYN it is the first byte seen.
    """

    def __init__(self) -> None:
        self.streams = {True: Stream(), False: Stream()}  # the key: from the client
        self._syn_seq: dict[bool, int] = {}
        self._base: dict[bool, int] = {}
        self._highest = {True: 0, False: 0}
        self._fins: set[bool] = set()
        self._syn_data_accepted: int | None = None
        self._syn_data: list[Segment] = []

    def is_new(self, header: TcpHeader) -> bool:
        """Tell whether a SYN from the client opens another connection with the same addresses and ports."""
        opens = header.flags & (SYN | ACK) == SYN
        return opens and self._syn_seq.get(True) != header.seq and bool(self._base)

    def add(self, decoded: Decoded, from_client: bool, index: int, delivered: bool) -> bool:
        """Add one segment.

        Args:
            decoded: its headers, with ``decoded.tcp``.
            from_client: its direction.
            index: number of the packet.
            delivered: False where the wire lost it.

        Returns:
            True where it repeats a SYN, a FIN or bytes that were sent before.
        """
        header = decoded.tcp
        assert header is not None
        repeats = False
        start = header.seq
        if header.flags & SYN:
            repeats = self._syn_seq.get(from_client) == header.seq
            self._syn_seq[from_client] = header.seq
            self._base[from_client] = start = (header.seq + 1) % 2**32
            if not from_client and self._syn_data_accepted is None:
                # How much of the SYN's data the server took shows in what its SYN-ACK acknowledges.
                client_base = self._base.get(True, header.ack)
                self._syn_data_accepted = (header.ack - client_base) % 2**32
        elif header.flags & RST and from_client not in self._base:
            return False  # a refusal: its sequence number belongs to no stream
        base = self._base.setdefault(from_client, start)
        # Sequence numbers wrap at 2^32: of all offsets that one can mean, take the nearest to the last.
        near = self._highest[from_client]
        offset = near + (start - base - near + 2**31) % 2**32 - 2**31
        self._highest[from_client] = max(near, offset + len(decoded.payload))
        if header.flags & FIN:
            repeats = repeats or from_client in self._fins
            self._fins.add(from_client)
        if decoded.payload:
            segment = Segment(offset, decoded.payload, index, delivered)
            repeats = self.streams[from_client].add(segment) or repeats
            if header.flags & SYN and from_client:
                self._syn_data.append(segment)
        return repeats

    def begins(self, from_client: bool) -> bool:
        """Whether a stream's beginning is known: its SYN was captured."""
        return from_client in self._syn_seq

    def settle(self) -> None:
        """Take back the SYN data that the server did not accept: call it once, after the last segment."""
        accepted = self._syn_data_accepted
        segments = self.streams[True].segments
        for segment in self._syn_data:
            if accepted is not None and accepted < len(segment.data):
                position = segments.index(segment)
                segments[position] = Segment(segment.start, segment.data, segment.index, delivered=False)
