"""WebSocket's frames, unmasked and inflated.

Sources: RFC 6455, RFC 7692 (permessage-deflate).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from labkit.capture.fields import printable
from labkit.capture.protocol import Certainty, HandOver, Opening, Side, StreamProtocol

_OPCODES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
_CLOSE_NAMES = {
    1000: "normal closure", 1001: "going away", 1002: "protocol error", 1003: "unsupported data",
    1007: "invalid payload data", 1008: "policy violation", 1009: "message too big", 1010: "mandatory extension",
    1011: "internal error", 1012: "service restart", 1013: "try again later",
}  # fmt: skip
_MAX_PAYLOAD = 2**26  # longer ones are no frames that anybody sends: the place in the stream is lost


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's header."""

    final: bool
    compressed: bool
    opcode: int
    mask: bytes
    begin: int  # offset of the payload
    end: int

    def payload(self, data: bytearray) -> bytes:
        masked = bytes(data[self.begin : self.end])
        if not self.mask or not masked:
            return masked
        size = len(masked)
        key = (self.mask * (size // 4 + 1))[:size]
        return (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


class WebSocket(StreamProtocol):
    """Frames in both directions, after HTTP has switched to them."""

    tokens = frozenset({"websocket"})

    def __init__(self, client: Side, server: Side, came_by: HandOver) -> None:
        super().__init__(client, server, came_by)
        extensions = came_by.fields.get("sec-websocket-extensions", "")
        # In a capture from the middle on nobody knows what the compressed messages before have left.
        begins = "permessage-deflate" in extensions
        self._inflaters = {
            side.from_client: _Inflater(f"{name}_no_context_takeover" in extensions, begins)
            for side, name in ((client, "client"), (server, "server"))
        }

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        if opening.client_begins or opening.server_begins:
            return Certainty.NO  # HTTP comes first
        client, server = _plausible(opening.client, True), _plausible(opening.server, False)
        if (opening.client and not client) or (opening.server and not server):
            return Certainty.NO
        return Certainty.MAYBE if client or server > 1 else Certainty.NO

    def receive(self, side: Side) -> None:
        while side.data:
            if not side.synchronised and not _plausible(side.data, side.from_client):
                side.leave(side.piece_end(1))
                continue
            side.synchronised = True
            frame = _read_header(side.data)
            if frame is None:
                return
            if frame.opcode not in _OPCODES or frame.end - frame.begin > _MAX_PAYLOAD:
                side.leave(side.piece_end(1))
                side.synchronised = False
            elif len(side.data) < frame.end:
                return
            else:
                self._take(side, frame)

    def ended(self, side: Side) -> None:
        self._inflaters[side.from_client].lose()
        frame = _read_header(side.data) if side.synchronised else None
        if frame is not None and frame.opcode in _OPCODES:
            side.take(len(side.data), "WebSocket", f"{_OPCODES[frame.opcode]} (incomplete)")

    def _take(self, side: Side, frame: _Frame) -> None:
        payload = frame.payload(side.data)
        parts = [f"{len(payload)} bytes"]
        control = frame.opcode >= 8
        if not control:
            inflated = self._inflaters[side.from_client].read(frame, payload)
            if inflated is None:
                parts.append("compressed")
            elif inflated is not payload:
                parts = [f"{len(inflated)} bytes, compressed to {len(payload)}"]
                payload = inflated
        name = label = _OPCODES[frame.opcode]
        if not frame.final:
            parts.append("more follows")
            label += " (more follows)"
        if frame.mask:
            parts.append("masked")
        if frame.opcode == 8 and len(payload) >= 2:
            code = int.from_bytes(payload[:2], "big")
            label += f": {code}"
            words = [_CLOSE_NAMES.get(code, ""), printable(payload[2:])]
            parts.insert(0, ", ".join([str(code), *filter(None, words)]))
        side.take(
            frame.end,
            "WebSocket",
            name,
            ", ".join(parts),
            role="control" if control else "data",
            data=payload,
            label=f"WebSocket {label}",
        )


class _Inflater:
    """permessage-deflate of one direction: fragments of a message, and messages that go on with one window."""

    def __init__(self, fresh_each: bool, begins: bool) -> None:
        self._fresh_each = fresh_each
        self._known = begins
        self._inside = False  # of a compressed message
        self._budget = 2**20  # what is inflated is bound by what was sent
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def lose(self) -> None:
        """Bytes are missing: what comes cannot be inflated."""
        self._known = self._inside = False

    def read(self, frame: _Frame, payload: bytes) -> bytes | None:
        """The payload as it is where it is not compressed, inflated where that can be done, None where not."""
        if frame.opcode != 0:
            self._inside = frame.compressed
        if not self._inside:
            return payload
        if not self._known:
            return None
        self._budget += 64 * len(payload)
        try:
            tail = b"\0\0\xff\xff" if frame.final else b""
            inflated = self._stream.decompress(payload + tail, self._budget)
        except zlib.error:
            self.lose()
            return None
        self._budget -= len(inflated)
        if self._stream.unconsumed_tail or self._budget <= 0:
            self.lose()
            return None
        if frame.final and (self._fresh_each or self._stream.eof):
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        return inflated


def _read_header(data: bytes | bytearray, at: int = 0) -> _Frame | None:
    """Read a frame's header (RFC 6455 section 5.2); None where more of it has to come."""
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    size, begin = second & 0x7F, at + 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(data) < begin + width:
            return None
        size = int.from_bytes(data[begin : begin + width], "big")
        begin += width
    mask = b""
    if second & 0x80:
        mask = bytes(data[begin : begin + 4])
        begin += 4
        if len(data) < begin:
            return None
    return _Frame(bool(first & 0x80), bool(first & 0x40), first & 0x0F, mask, begin, begin + size)


def _plausible(data: bytes | bytearray, masked: bool) -> int:
    """How many complete frames stand here, with nothing but frames behind them; 0 where something else does."""
    at, complete = 0, 0
    inside: bool | None = None  # of a message in fragments; None = nobody knows yet
    data = data[:1024]
    while at < len(data):
        if not re.match(rb"[\x80-\x82\x00-\x02\x88-\x8a\xc1\xc2\x41\x42]", data[at : at + 1]):
            return 0
        if len(data) > at + 1 and bool(data[at + 1] & 0x80) != masked:
            return 0
        frame = _read_header(data, at)
        if frame is None:
            break
        if not _possible(frame, data, inside):
            return 0
        complete += frame.end <= len(data)
        inside = inside if frame.opcode >= 8 else not frame.final
        at = frame.end
    return complete


def _possible(frame: _Frame, data: bytes | bytearray, inside: bool | None) -> bool:
    """Whether a sender would send such a frame here (RFC 6455 sections 5.2, 5.4 and 8.1)."""
    size = frame.end - frame.begin
    if frame.opcode >= 8:
        return size <= 125 and frame.final
    if size > _MAX_PAYLOAD or inside is (frame.opcode != 0):
        return False  # the next of a message's frames is a continuation, and only that
    if not size and not frame.final:
        return False  # an empty fragment says nothing, and zeros would be nothing but such
    if frame.opcode != 1 or frame.mask or frame.compressed or not frame.final or frame.end > len(data):
        return True
    return _is_text(bytes(data[frame.begin : frame.end]))


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


STREAM = WebSocket
