"""Reads the fields of messages from bytes: numbers, vectors, text that is safe to show."""

from __future__ import annotations


class Truncated(ValueError):
    """A message ends before the fields that it promises."""


class Cursor:
    """Reads numbers and vectors from bytes, as TLS and QUIC write them (big endian).

    Every method raises ``Truncated`` where the bytes end too early.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise Truncated(f"{length} bytes wanted at byte {self.position}, {self.left} left")
        self.position += length
        return self.data[self.position - length : self.position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes after a length field of ``size`` bytes."""
        return self.take(self.number(size))

    def varint(self) -> int:
        """A QUIC variable-length integer (RFC 9000 section 16)."""
        first = self.number(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.number(more)


def printable(data: bytes, limit: int = 80) -> str:
    """Bytes from the network as text that is safe to show: one line, no control characters."""
    return shortened(without_controls(data[: limit + 1].decode("latin-1")), limit)


def without_controls(text: str, instead: str = "?") -> str:
    """Text with a sign in place of each character that a terminal or a page would not show as one."""
    return text if text.isprintable() else "".join(c if c.isprintable() else instead for c in text)


def shortened(text: str, limit: int = 80) -> str:
    """Text that is not longer than this; where something is left out, it ends with "…"."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
