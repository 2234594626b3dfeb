"""The bytes of a stream as far as there is no gap, while they come in any order, some of them twice."""

from __future__ import annotations

from heapq import heappop, heappush


class InOrder:
    """Hands out each byte of a stream once, as soon as all bytes before it are there.

    Attributes:
        end: offset of the first byte that is missing.
    """

    def __init__(self) -> None:
        self.end = 0
        self._waiting: list[tuple[int, bytes]] = []

    def add(self, start: int, data: bytes) -> bytes:
        """Take in bytes at their offset; return those that go on where the last ones ended."""
        heappush(self._waiting, (start, data))
        new: list[bytes] = []
        while self._waiting and self._waiting[0][0] <= self.end:
            begin, part = heappop(self._waiting)
            if begin + len(part) > self.end:
                new.append(part[self.end - begin :])
                self.end = begin + len(part)
        return b"".join(new)
