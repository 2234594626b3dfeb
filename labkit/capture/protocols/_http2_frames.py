"""HTTP/2's frames, one at a time: the names, the codes, and what stands in them.

Source: RFC 9113 sections 4, 6 and 7.
"""

from __future__ import annotations

from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from labkit.capture.fields import printable

HEADER_BYTES = 9
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
DEFAULT_MAX_FRAME, LARGEST_MAX_FRAME = 2**14, 2**24 - 1
SETTINGS_MAX_FRAME_SIZE = 5
_NAMES = {
    DATA: "DATA", HEADERS: "HEADERS", PRIORITY: "PRIORITY", RST_STREAM: "RST_STREAM", SETTINGS: "SETTINGS",
    PUSH_PROMISE: "PUSH_PROMISE", PING: "PING", GOAWAY: "GOAWAY", WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION", 10: "ALTSVC", 12: "ORIGIN", 16: "PRIORITY_UPDATE",
}  # fmt: skip
_ERRORS = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
_SETTINGS = {
    1: "HEADER_TABLE_SIZE", 2: "ENABLE_PUSH", 3: "MAX_CONCURRENT_STREAMS", 4: "INITIAL_WINDOW_SIZE",
    5: "MAX_FRAME_SIZE", 6: "MAX_HEADER_LIST_SIZE", 8: "ENABLE_CONNECT_PROTOCOL", 9: "NO_RFC7540_PRIORITIES",
}  # fmt: skip
# What a header can be: flags that are defined, lengths that are possible, whether it belongs to a stream.
_FLAGS = {DATA: 0x09, HEADERS: 0x2D, SETTINGS: 0x01, PUSH_PROMISE: 0x0C, PING: 0x01, CONTINUATION: 0x04}
_LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_LEAST = {DATA: 1, HEADERS: 1, PUSH_PROMISE: 5, GOAWAY: 8, CONTINUATION: 1}  # an empty DATA frame ends its stream
_OF_CONNECTION = {SETTINGS, PING, GOAWAY}
_OF_EITHER = {WINDOW_UPDATE}


def header_at(data: bytes | bytearray, at: int = 0) -> tuple[int, int, int, int]:
    """Length, type, flags and stream of the frame that begins there (RFC 9113 section 4.1)."""
    length = int.from_bytes(data[at : at + 3], "big")
    return length, data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF


def name_of(kind: int) -> str:
    """A frame type's name."""
    return _NAMES.get(kind, f"frame type 0x{kind:02x}")


def plausible(data: bytes | bytearray) -> bool:
    """Whether frames begin here: headers that can be, each where the one before says, as far as they can be seen."""
    at, seen = 0, 0
    while len(data) >= at + HEADER_BYTES and seen < 4:
        length, kind, flags, stream = header_at(data, at)
        if data[at + 5] & 0x80 or not _possible(length, kind, flags, stream):
            return False
        # Where nothing is known, streams that servers begin are too rare to be guessed at.
        if seen == 0 and stream and stream % 2 == 0:
            return False
        if kind == WINDOW_UPDATE and data[at + HEADER_BYTES : at + HEADER_BYTES + 4] == bytes(4):
            return False
        seen += 1
        at += HEADER_BYTES + length
    return seen > 0


def _possible(length: int, kind: int, flags: int, stream: int) -> bool:
    if kind > CONTINUATION or length > DEFAULT_MAX_FRAME or flags & ~_FLAGS.get(kind, 0) or stream >= 2**24:
        return False
    if kind not in _OF_EITHER and (kind in _OF_CONNECTION) != (stream == 0):
        return False
    if kind == SETTINGS:
        return length % 6 == 0 and not (flags & ACK and length)
    least = _LEAST.get(kind, 0) if kind != DATA or not flags & END_STREAM else 0
    return length >= least and length == _LENGTHS.get(kind, length)


def parse(data: bytes) -> Frame | None:
    """Read a complete frame; None where its content cannot be what its type says."""
    try:
        frame, _ = Frame.parse_frame_header(memoryview(data[:HEADER_BYTES]))
        frame.parse_body(memoryview(data[HEADER_BYTES:]))
    except HyperframeError:
        return None
    return frame


def describe(frame: Frame) -> tuple[str, str]:
    """What stands in a frame that has no fields of HTTP: in words, and the part of it that a ladder shows."""
    if isinstance(frame, SettingsFrame):
        if "ACK" in frame.flags:
            return "acknowledged", " ACK"
        values = (f"{_SETTINGS.get(number, f'0x{number:x}')} {value}" for number, value in frame.settings.items())
        return ", ".join(values) or "no settings", ""
    if isinstance(frame, PingFrame):
        return frame.opaque_data.hex(), " ACK" if "ACK" in frame.flags else ""
    if isinstance(frame, WindowUpdateFrame):
        scope = f"stream {frame.stream_id}" if frame.stream_id else "connection"
        return f"{frame.window_increment} bytes more for the {scope}", f" {frame.stream_id}"
    if isinstance(frame, RstStreamFrame):
        return error_name(frame.error_code), f" {frame.stream_id}: {error_name(frame.error_code)}"
    if isinstance(frame, GoAwayFrame):
        debug = f", {printable(frame.additional_data)}" if frame.additional_data else ""
        error = error_name(frame.error_code)
        return f"{error}, last stream {frame.last_stream_id}{debug}", f": {error}"
    if isinstance(frame, PriorityFrame):
        return f"depends on {frame.depends_on}, weight {frame.stream_weight + 1}", f" {frame.stream_id}"
    if isinstance(frame, (ContinuationFrame, PushPromiseFrame)):
        return f"{len(frame.data)} bytes", f" {frame.stream_id}"
    return f"{frame.body_len} bytes", f" {frame.stream_id}" if frame.stream_id else ""


def error_name(code: int) -> str:
    """An error code by its name (RFC 9113 section 7)."""
    return _ERRORS[code] if code < len(_ERRORS) else f"error 0x{code:x}"
