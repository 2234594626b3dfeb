"""HTTP/2, frame by frame: requests and responses by their start lines, streams, settings, windows, errors.

Source: RFC 9113.
"""

from __future__ import annotations

from collections.abc import Mapping

from hyperframe.frame import DataFrame, SettingsFrame

from labkit.capture.fields import shortened
from labkit.capture.http_fields import Body, body_protocol, readable, start_of, tunnel
from labkit.capture.protocol import BodyProtocol, Certainty, HandOver, Opening, Side, StreamProtocol
from labkit.capture.protocols import _http2_frames as frames
from labkit.capture.protocols._hpack import HeaderBlocks

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MAX_BLOCK = 2**20  # bytes of a header block with its CONTINUATION frames


class Http2(StreamProtocol):
    """The frames of both sides."""

    ports = frozenset({443, 8443, 50051})
    tokens = frozenset({"h2c"})

    def __init__(self, client: Side, server: Side, came_by: HandOver) -> None:
        super().__init__(client, server, came_by)
        self._directions = {side.from_client: _Direction(side.synchronised) for side in (client, server)}
        self._asked: dict[int, str] = {}  # start lines of the requests
        self._tunnels: dict[int, str] = {}  # what streams are to become that were asked for by CONNECT (RFC 8441)

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        if opening.client.startswith(_PREFACE[:18]):
            return Certainty.SURE
        sides = [data for data in (opening.client, opening.server) if data]
        if not sides or not all(map(frames.plausible, sides)):
            return Certainty.NO
        if opening.server_begins and opening.server[3:4] == bytes([frames.SETTINGS]):
            return Certainty.SURE
        return Certainty.MAYBE

    def receive(self, side: Side) -> None:
        direction = self._directions[side.from_client]
        while side.data and self.successor is None:
            if not side.synchronised:
                if not frames.plausible(side.data) and not side.data.startswith(_PREFACE):
                    side.leave(side.piece_end(1))
                    continue
                side.synchronised = True
            if side.from_client and _PREFACE.startswith(side.data[: len(_PREFACE)]):
                if len(side.data) < len(_PREFACE):
                    return
                side.take(len(_PREFACE), "HTTP/2", "connection preface", role="control")
                continue
            ends = direction.complete(side.data)
            if direction.lost:
                side.synchronised = False
                self.successor = HandOver()  # whatever this is
            elif not ends:
                return
            else:
                self._take(side, ends)

    def ended(self, side: Side) -> None:
        if side.synchronised and len(side.data) >= frames.HEADER_BYTES:
            name = frames.name_of(side.data[3])
            side.take(len(side.data), "HTTP/2", f"{name} (incomplete)")
        self._directions[side.from_client] = _Direction(whole=False)

    def _take(self, side: Side, ends: list[int]) -> None:
        """Take a frame; or the frames of a header block, all at once, since its fields are known with the last."""
        sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        read, at = [], 0
        for size in sizes:
            read.append(frames.parse(bytes(side.data[at : at + size])))
            at += size
        block = b"".join(bytes(getattr(frame, "data", b"")) for frame in read)
        whole = frames.header_at(side.data, ends[-1] - sizes[-1])[2] & frames.END_HEADERS
        for number, (size, frame) in enumerate(zip(sizes, read, strict=True)):
            _, kind, flags, stream = frames.header_at(side.data)
            if frame is None:
                side.take(size, "HTTP/2", f"malformed {frames.name_of(kind)} frame", stream=stream)
            elif isinstance(frame, DataFrame):
                self._take_data(side, size, stream, bool(flags & frames.END_STREAM), frame.data)
            elif number == 0 and kind in (frames.HEADERS, frames.PUSH_PROMISE):
                self._take_fields(side, size, block if whole and None not in read else None)
            else:
                if isinstance(frame, SettingsFrame):
                    self._directions[not side.from_client].obey(frame.settings)
                detail, label = frames.describe(frame)
                name = frames.name_of(kind)
                side.take(size, "HTTP/2", name, detail, role="control", stream=stream, label=name + label)

    def _take_data(self, side: Side, size: int, stream: int, fin: bool, data: bytes) -> None:
        label = f"DATA {stream}"
        detail = f"{len(data)} bytes" + (", end of the stream" if fin else "")
        of_data = {"data": data, "length": len(data)}
        side.take(size, "HTTP/2", "DATA", detail, role="data", stream=stream, fin=fin, label=label, **of_data)
        body = self._directions[side.from_client].bodies.get(stream)
        if body is not None:
            side.found += body.receive(side.found[-1], data)

    def _take_fields(self, side: Side, size: int, block: bytes | None) -> None:
        """Take HEADERS or PUSH_PROMISE with the fields of its block; None where bytes of the block are missing."""
        direction = self._directions[side.from_client]
        _, kind, flags, stream = frames.header_at(side.data)
        name, fin = frames.name_of(kind), bool(kind == frames.HEADERS and flags & frames.END_STREAM)
        read = direction.blocks.read(block) if block is not None else None
        fields, unknown = (readable(read[0]), read[1]) if read is not None else ((), 1)
        known = dict(fields)
        role, start_line, status = start_of(known)
        if role == "data" and unknown and stream not in direction.streams:
            role, start_line = ("request", "? ?") if side.from_client else ("response", "?")
        direction.streams.add(stream)
        words = [shortened(start_line)] if start_line else []
        if role == "request" and kind == frames.HEADERS:
            self._asked[stream] = start_line
        if kind == frames.HEADERS:
            words += self._begin_body(direction, stream, known, side.from_client)
        if role == "data" and not words:
            words = ["trailers"]
        detail = f"{len(fields) + unknown} fields"
        if read is None:
            direction.blocks = HeaderBlocks(whole=False)
            detail = f"{size - frames.HEADER_BYTES} bytes, fields unreadable"
        elif unknown:
            detail += f", {unknown} of them unknown: their entries in the dynamic table were not captured"
        side.take(
            size,
            "HTTP/2",
            name,
            detail + (", end of the stream" if fin else ""),
            role=role,
            stream=stream,
            fin=fin,
            start_line=start_line,
            status=status,
            headers=fields,
            label=f"{name} {stream}: {', '.join(words)}",
        )

    def _begin_body(self, direction: _Direction, stream: int, known: dict[str, str], from_client: bool) -> list[str]:
        """Prepare for the body of a known protocol, and return what the fields say of this protocol."""
        if ":protocol" in known:
            self._tunnels[stream] = known[":protocol"]
        elif known.get(":status", "").startswith("2") and (token := self._tunnels.pop(stream, "")):
            for side, body in tunnel(token, known, stream).items():
                self._directions[side].bodies[stream] = body
            return []
        protocol = body_protocol(known)
        if protocol is not None:
            direction.protocols[stream] = protocol
            direction.bodies[stream] = Body(protocol(self._asked.get(stream, "")), Side(from_client), stream)
        told = direction.protocols[stream].tell(known) if stream in direction.protocols else ""
        return [told] if told else []


class _Direction:
    """What is known of one direction.

    Attributes:
        blocks: its header blocks.
        max_frame: the longest frame that the other side takes (SETTINGS_MAX_FRAME_SIZE).
        streams: those of which a header block has been seen.
        bodies: of streams whose bodies are of a known protocol.
        protocols: of those streams.
        lost: whether something stands where a frame should begin that cannot be one.
    """

    def __init__(self, whole: bool) -> None:
        self.blocks = HeaderBlocks(whole)
        self.max_frame = frames.DEFAULT_MAX_FRAME if whole else frames.LARGEST_MAX_FRAME
        self.streams: set[int] = set()
        self.bodies: dict[int, Body] = {}
        self.protocols: dict[int, type[BodyProtocol]] = {}
        self.lost = False
        self._ends: list[int] = []  # of frames that have come, and wait for the rest of their header block

    def obey(self, settings: Mapping[int, int]) -> None:
        """Take in the settings of the other side."""
        self.max_frame = max(self.max_frame, settings.get(frames.SETTINGS_MAX_FRAME_SIZE, 0))

    def complete(self, data: bytearray) -> list[int]:
        """Where the frame in front ends, and the CONTINUATION frames of its header block; [] where more has to come."""
        at = self._ends[-1] if self._ends else 0
        while len(data) >= at + frames.HEADER_BYTES:
            length, kind, flags, _ = frames.header_at(data, at)
            if self._ends and kind != frames.CONTINUATION:
                break  # the block stays without its end
            if length > self.max_frame:
                self.lost = not self._ends
                break
            end = at + frames.HEADER_BYTES + length
            if len(data) < end:
                return []
            self._ends.append(end)
            at = end
            fields = kind in (frames.HEADERS, frames.PUSH_PROMISE, frames.CONTINUATION)
            if not fields or flags & frames.END_HEADERS or at > _MAX_BLOCK:
                break
        else:
            return []
        ends, self._ends = self._ends, []
        return ends


STREAM = Http2
