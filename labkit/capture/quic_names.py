"""Names for what a QUIC packet carries: its frames, and in their places the messages of TLS and HTTP/3."""

from __future__ import annotations

from dataclasses import dataclass, replace

from labkit.capture.messages import PACKET_NAMES, Found
from labkit.capture.quic_connection import Connection
from labkit.capture.quic_frames import QuicFrame
from labkit.capture.quic_headers import LongHeader
from labkit.capture.streams import Placed


@dataclass(slots=True)
class QuicPacket:
    """A QUIC packet inside a datagram: ``note`` is the name and detail of one without frames."""

    datagram: int
    data: bytes
    level: str = ""
    header: LongHeader | None = None
    connection: Connection | None = None
    from_client: bool = True
    note: tuple[str, str] | None = None
    frames: list[QuicFrame] | None = None  # None: could not be opened


class PacketNames:
    """What one connection's packets carry: TLS messages in place of their CRYPTO frames."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tls = {place: Placed(found) for place, found in connection.tls_messages().items()}
        self._http = connection.http3.messages(rejected=connection.session.early_accepted is False)

    def describe(self, packet: QuicPacket) -> list[Found]:
        place = (packet.datagram, packet.datagram)
        if packet.note:
            return [Found("QUIC", *packet.note, "", *place, len(packet.data), packet.data)]
        if packet.frames is None:
            name = f"{PACKET_NAMES[packet.level]} packet (encrypted)"
            return [Found("QUIC", name, f"{len(packet.data)} bytes", packet.level, *place, len(packet.data))]
        described: dict[Found, None] = {}
        for frame in packet.frames:
            inside: list[Found] = []
            detail = frame.detail
            if frame.name == "CRYPTO" and (packet.level, packet.from_client) in self._tls:
                inside = self._tls[packet.level, packet.from_client].between(frame.offset, frame.offset + frame.length)
            elif frame.name == "STREAM":
                early = packet.level == "early"
                detail = self._connection.stream_detail(frame, packet.from_client, early)
                inside = self._http.inside(frame, packet.from_client, packet.level)
                detail += ", after a gap" if self._http.gap(frame, packet.from_client) and not inside else ""
            if inside:
                described.update(dict.fromkeys(inside))
                continue
            found = Found("QUIC", frame.name, detail, packet.level, *place, frame.length, frame.data)
            described[replace(found, stream=frame.stream, fin=frame.fin)] = None
        return list(described)
