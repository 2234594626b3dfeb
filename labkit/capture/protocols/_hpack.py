"""Header blocks of HTTP/2, also where the connection began before the capture.

The dynamic table is then unknown, but not what is added from now on: new entries come in front (RFC 7541, section
2.3.3). A reference to one of those is read as always, a reference behind them is a field that nobody knows. So what is
read is right, and what is unknown is said to be.
"""

from __future__ import annotations

from hpack import Decoder, HPACKError, InvalidTableIndex
from hpack.table import HeaderTable

_MAX_FIELDS_BYTES = 2**16  # of all fields of a block: one byte can stand for a field of thousands
_UNKNOWN = (b"", b"")


class HeaderBlocks:
    """Reads the header blocks of one direction, in their order.

    Args:
        whole: whether all blocks since the beginning of the connection are there.
    """

    def __init__(self, whole: bool) -> None:
        self._decoder = _decoder(whole)

    def read(self, block: bytes) -> tuple[list[tuple[bytes, bytes]], int] | None:
        """The fields of a block, and how many of its fields are unknown; None where it is malformed.

        After a malformed block the table is unknown.
        """
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError:
            self._decoder = _decoder(whole=False)
            return None
        known = [(name, value) for name, value in fields if name]
        return known, len(fields) - len(known)


def _decoder(whole: bool) -> Decoder:
    decoder = Decoder(max_header_list_size=_MAX_FIELDS_BYTES)
    decoder.max_allowed_table_size = 2**32  # the peers hold each other to what they agreed on
    if not whole:
        decoder.header_table = _NewEntries()
    return decoder


class _NewEntries(HeaderTable):
    """A table of which only the entries are known that were added since somebody looks."""

    def get_by_index(self, index: int) -> tuple[bytes, bytes]:
        try:
            return super().get_by_index(index)
        except InvalidTableIndex:
            if index <= 0:
                raise
            return _UNKNOWN
