"""The HTTP/3 frames inside QUIC's STREAM frames, by name.

Source: RFC 9114.
"""

from __future__ import annotations

from labkit.capture.fields import Cursor, Truncated
from labkit.capture.quic_frames import QuicFrame

_HTTP3_FRAMES = {
    0: "DATA", 1: "HEADERS", 3: "CANCEL_PUSH", 4: "SETTINGS", 5: "PUSH_PROMISE", 7: "GOAWAY",
    13: "MAX_PUSH_ID",
}  # fmt: skip
_HTTP3_STREAMS = {0: "control", 1: "push", 2: "QPACK encoder", 3: "QPACK decoder"}


class Http3Streams:
    """The HTTP/3 streams of one QUIC connection: remembers where the next HTTP/3 frame of each begins."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, bool], int] = {}

    def names(self, frame: QuicFrame, from_client: bool) -> list[str]:
        """Name the HTTP/3 frames that begin in a STREAM frame."""
        assert frame.stream is not None
        key, names = (frame.stream, from_client), []
        begin = self._next.get(key, 0) - frame.offset if frame.offset else 0
        if not 0 <= begin < len(frame.data):
            return []  # the middle of an HTTP/3 frame, or bytes seen before
        cursor = Cursor(frame.data[begin:])
        try:
            if frame.stream & 0x02 and frame.offset + begin == 0:  # unidirectional: begins with its type
                kind = cursor.varint()
                names.append(_HTTP3_STREAMS.get(kind, f"stream type {kind}"))
                if kind != 0:  # only the control stream consists of frames
                    self._next[key] = 1 << 62
                    return names
            while cursor.left:
                kind, length = cursor.varint(), cursor.varint()
                names.append(_HTTP3_FRAMES.get(kind, f"frame type 0x{kind:x}"))
                self._next[key] = frame.offset + begin + cursor.position + length
                cursor.take(length)
        except Truncated:
            pass  # goes on in the next STREAM frame
        return names
