"""HTTP/3's header fields, which are compressed with a table that both sides keep (QPACK).

A header block may refer to entries of the table that come later on another stream: then its fields are told later.

Source: RFC 9204.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pylsqpack import Decoder

Fields = list[tuple[bytes, bytes]]

_LARGEST_TABLE = 2**20
_LARGEST_FIELDS = 2**26  # bytes: a block of a few references to large entries may mean more than memory holds


class FieldDecoder:
    """Decodes the header fields that one side sends."""

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._capacity: int | None = None  # None: the other side has not said it
        self._instructions = bytearray()  # what came before that
        self._instructed = 0  # bytes: no entry of the table is longer than they make it
        self._waiting: dict[int, tuple[bytes, Callable[[Fields], None]]] = {}
        self._blocks = 0

    def allow(self, capacity: int) -> None:
        """The other side has said how large the table may be: without that, references to it cannot be read."""
        if self._capacity is not None:
            return  # it may not say so twice (RFC 9114 section 7.2.4)
        self._begin(min(capacity, _LARGEST_TABLE))
        self.instruct(bytes(self._instructions))
        self._instructions.clear()
        waiting, self._waiting = self._waiting, {}
        for block, use in waiting.values():
            self.decode(block, use)

    def _begin(self, capacity: int) -> Decoder:
        from pylsqpack import Decoder

        self._decoder, self._capacity = Decoder(capacity, 0xFFFF), capacity
        return self._decoder

    def instruct(self, data: bytes) -> None:
        """Take in bytes of the QPACK encoder stream."""
        from pylsqpack import EncoderStreamError

        if self._decoder is None:
            self._instructions += data[: _LARGEST_TABLE - len(self._instructions)]
            return
        self._instructed += len(data)
        try:
            ready = self._decoder.feed_encoder(data)
        except EncoderStreamError:
            return
        for number in ready:
            if number in self._waiting:
                self._finish(number, *self._waiting.pop(number), resume=True)

    def decode(self, block: bytes, use: Callable[[Fields], None]) -> None:
        """Decode a header block.

        Args:
            block: the bytes.
            use: called with the fields, now or when what they refer to has come; never where they cannot be read.
        """
        self._blocks += 1
        longest = min(self._capacity or 0, 2 * self._instructed)  # Huffman's code makes less than twice as much
        if len(block) * longest <= _LARGEST_FIELDS:
            self._finish(self._blocks, block, use, resume=False)

    def _finish(self, number: int, block: bytes, use: Callable[[Fields], None], *, resume: bool) -> None:
        from pylsqpack import Decoder, DecompressionFailed, StreamBlocked

        decoder = self._decoder or Decoder(0, 0)  # the static table can be read without a word of the other side
        try:
            _, fields = decoder.resume_header(number) if resume else decoder.feed_header(number, block)
        except (DecompressionFailed, StreamBlocked):
            self._waiting[number] = block, use
            return
        use(fields)
