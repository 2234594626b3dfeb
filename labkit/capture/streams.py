"""Byte streams from segments that come in any order, some of them twice.

A stream is assembled from the bytes *as sent*. A segment that was lost carries the same bytes as its
retransmission, so both can be named from one stream; it remembers which of them delivered each byte.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Ranges:
    """Which byte ranges have been seen: sorted, without overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Add the range ``[start, end)`` and return the parts of it that were new."""
        if start >= end:
            return []
        if self._ends and start == self._ends[-1]:  # the next in order, as nearly always
            self._ends[-1] = end
            return [(start, end)]
        # The ranges i..j-1 touch or overlap the new one, and will be merged with it.
        i, j = bisect_left(self._ends, start), bisect_right(self._starts, end)
        new, position = [], start
        for known_start, known_end in zip(self._starts[i:j], self._ends[i:j], strict=True):
            if position < known_start:
                new.append((position, known_start))
            position = max(position, known_end)
        if position < end:
            new.append((position, end))
        self._starts[i:j] = [min(start, *self._starts[i:j])] if i < j else [start]
        self._ends[i:j] = [max(end, *self._ends[i:j])] if i < j else [end]
        return new


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes at their place in a stream, and the packet that brought them.

    Attributes:
        start: offset of the first byte in the stream.
        data: the bytes.
        index: number of the packet.
        delivered: False where they did not reach the receiver's stream.
    """

    start: int
    data: bytes
    index: int
    delivered: bool = True

    @property
    def end(self) -> int:
        return self.start + len(self.data)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of stream without a gap, with the segments that make it up (no overlaps left)."""

    start: int
    data: bytes
    parts: tuple[Segment, ...]
    starts: tuple[int, ...]  # of the parts

    @classmethod
    def of(cls, parts: Sequence[Segment]) -> Chunk:
        """Make a chunk of segments, each of which begins where the one before ends."""
        starts = tuple(part.start for part in parts)
        return cls(starts[0], b"".join(part.data for part in parts), tuple(parts), starts)

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def packets(self, start: int, end: int) -> tuple[int, int]:
        """Return the first and the last packet that brought bytes of ``[start, end)`` (stream offsets)."""
        first = max(bisect_right(self.starts, start) - 1, 0)
        beyond = max(bisect_left(self.starts, end), first + 1)
        if beyond == first + 1:
            return self.parts[first].index, self.parts[first].index
        indexes = [part.index for part in self.parts[first:beyond]]
        return min(indexes), max(indexes)


@dataclass(slots=True)
class Stream:
    """One direction of a byte stream, filled in any order, possibly with bytes that come twice."""

    segments: list[Segment] = field(default_factory=list)
    _sent: Ranges = field(default_factory=Ranges)

    def add(self, segment: Segment) -> bool:
        """Add a segment; return True where some of its bytes had been sent before."""
        self.segments.append(segment)
        return self._sent.add(segment.start, segment.end) != [(segment.start, segment.end)]

    def assemble(self) -> list[Chunk]:
        """Put the bytes in order. Delivered segments count first, lost ones fill what nobody delivered."""
        placed, parts = Ranges(), []
        for segment in sorted(self.segments, key=lambda segment: not segment.delivered):
            for start, end in placed.add(segment.start, segment.end):
                data = segment.data[start - segment.start : end - segment.start]
                parts.append(Segment(start, data, segment.index, segment.delivered))
        parts.sort(key=lambda part: part.start)
        chunks, run = [], []
        for number, part in enumerate(parts):
            run.append(part)
            if number + 1 == len(parts) or parts[number + 1].start > part.end:
                chunks.append(Chunk.of(run))
                run = []
        return chunks


class Placed:
    """Things at their places in a stream, found by a range of it.

    Args:
        things: start, end and the thing, in the order of their places, without overlap.
    """

    def __init__(self, things: Sequence[tuple[int, int, Any]]) -> None:
        self._things = things
        self._starts = [start for start, _, _ in things]
        self._ends = [end for _, end, _ in things]

    def between(self, start: int, end: int) -> list[Any]:
        """Return what has bytes in ``[start, end)``."""
        first, beyond = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return [thing for _, _, thing in self._things[first:beyond]]
