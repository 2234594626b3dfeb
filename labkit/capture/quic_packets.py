"""QUIC datagrams, opened with the session's secrets: packets, their frames, the TLS messages inside them.

``read_quic`` takes the datagrams between two addresses. It works in three steps:

1. Initial packets. Their keys come from the connection ID that the client chose for the server, which is
   in the clear: everybody can open them. They hold the ClientHello, whose random names the session.
2. All other packets, with the secrets from the key log.
3. The CRYPTO frames of each level are put together to a stream, and the stream's TLS messages are named in
   the packets that carried them. Lost packets count as long as nothing else brought the same bytes.

Sources: RFC 9000 (transport), RFC 9001 (protection), RFC 9369 (version 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from labkit.capture.http3 import Http3Streams
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import PACKET_NAMES, Found
from labkit.capture.quic_frames import QuicFrame, parse_frames
from labkit.capture.streams import Segment, Stream
from labkit.capture.tls_handshake import describe_handshake, split_handshake
from labkit.capture.tls_session import Session

if TYPE_CHECKING:
    from aioquic.quic.crypto import CryptoContext

_VERSIONS = (0x00000001, 0x6B3343CF)  # RFC 9000, RFC 9369
_SECRET_LABELS = {
    "early": "EARLY_TRAFFIC_SECRET",
    "handshake": "HANDSHAKE_TRAFFIC_SECRET",
    "application": "TRAFFIC_SECRET_0",
}
_MIN_SHORT_PACKET = 1 + 4 + 16  # first byte, packet number and sample (RFC 9001 section 5.4.2)


@dataclass(slots=True)
class _Packet:
    """A QUIC packet inside a datagram: ``level`` "" for Retry and Version Negotiation."""

    datagram: int
    from_client: bool
    delivered: bool
    level: str
    data: bytes
    number_at: int  # where the protected packet number begins
    destination_id: bytes = b""
    version: int = 0
    note: tuple[str, str] | None = None  # name and detail of a packet without frames
    connection: _Connection | None = None
    frames: list[QuicFrame] | None = None  # None: could not be opened


@dataclass(eq=False, slots=True)
class _Connection:
    """The keys and the CRYPTO streams of one connection."""

    version: int
    contexts: dict[tuple[str, bool], CryptoContext] = field(default_factory=dict)
    expected: dict[tuple[bool, bool, bool], int] = field(default_factory=dict)
    crypto: dict[tuple[str, bool], Stream] = field(default_factory=dict)
    session: Session = field(default_factory=Session)
    http3: Http3Streams = field(default_factory=Http3Streams)

    @classmethod
    def from_initial(cls, version: int, destination_id: bytes) -> _Connection:
        """Make a connection with the Initial keys of RFC 9001 section 5.2."""
        from aioquic.quic.crypto import CryptoPair

        pair = CryptoPair()
        pair.setup_initial(destination_id, is_client=False, version=version)
        return cls(version, {("initial", True): pair.recv, ("initial", False): pair.send})

    def open(self, packet: _Packet, secrets: KeyLog) -> bool:
        """Try to open a packet; keep its frames where that works."""
        key = (packet.level, packet.from_client)
        contexts = [self.contexts[key]] if key in self.contexts else self._candidates(packet, secrets)
        for context in contexts:
            payload = self._decrypt(packet, context)
            if payload is not None:
                self.contexts[key] = context
                packet.connection, packet.frames = self, parse_frames(payload)
                for frame in packet.frames:
                    if frame.name == "CRYPTO":
                        stream = self.crypto.setdefault(key, Stream())
                        stream.add(Segment(frame.offset, frame.data, packet.datagram, packet.delivered))
                return True
        return False

    def _candidates(self, packet: _Packet, secrets: KeyLog) -> list[CryptoContext]:
        """The keys that the log's secret can mean: it does not name the cipher, only its length tells."""
        from aioquic.quic.crypto import CryptoContext
        from aioquic.tls import CipherSuite

        if packet.level not in _SECRET_LABELS:
            return []
        side = "CLIENT" if packet.from_client else "SERVER"
        secret = self.session.secret(f"{side}_{_SECRET_LABELS[packet.level]}", secrets)
        suites = {
            32: (CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256),
            48: (CipherSuite.AES_256_GCM_SHA384,),
        }
        contexts = []
        for suite in suites.get(len(secret or b""), ()):
            context = CryptoContext()
            context.setup(cipher_suite=suite, secret=secret or b"", version=self.version)
            contexts.append(context)
        return contexts

    def _decrypt(self, packet: _Packet, context: CryptoContext) -> bytes | None:
        from aioquic.quic.crypto import apply_key_phase, next_key_phase

        # Packet numbers count in three spaces: Initial, Handshake, and one for 0-RTT and 1-RTT.
        space = (packet.level == "initial", packet.level == "handshake", packet.from_client)
        expected = self.expected.get(space, 0)
        try:
            _, payload, number, key_update = context.decrypt_packet(packet.data, packet.number_at, expected)
        except ValueError:  # aioquic's CryptoError: other keys, or damaged on the way
            return None
        self.expected[space] = max(expected, number + 1)
        if key_update:
            apply_key_phase(context, next_key_phase(context), "remote_update")
        return payload

    def learn_hello(self) -> None:
        """Take the ClientHello from the Initial packets."""
        for _, kind, body in split_handshake(self._crypto_start("initial", True)):
            self.session.learn(kind, body)

    def _crypto_start(self, level: str, from_client: bool) -> bytes:
        stream = self.crypto.get((level, from_client))
        chunks = stream.assemble() if stream else []
        return chunks[0].data if chunks and chunks[0].start == 0 else b""

    def tls_messages(self) -> dict[tuple[str, bool], list[tuple[int, int, Found]]]:
        """Name the TLS messages: (level, from the client) → their start, end in the CRYPTO stream, and name.

        The server's go first: its EncryptedExtensions tell whether early data was accepted.
        """
        messages: dict[tuple[str, bool], list[tuple[int, int, Found]]] = {}
        order = ("initial", "handshake", "application")
        for key in sorted(self.crypto, key=lambda key: (key[1], order.index(key[0]))):
            messages[key] = []
            for chunk in self.crypto[key].assemble():
                if chunk.start != 0:
                    break  # after a gap nobody knows where a message begins
                for offset, kind, body in split_handshake(chunk.data):
                    end = offset + 4 + len(body)
                    self.session.learn(kind, body)
                    name, detail = describe_handshake(kind, body, self.session)
                    first, last = chunk.packets(offset, end)
                    data = chunk.data[offset:end]
                    found = Found("TLS", name, detail, key[0], first, last, len(data), data)
                    messages[key].append((offset, end, found))
        return messages

    def stream_detail(self, frame: QuicFrame, from_client: bool, early: bool) -> str:
        """Describe a STREAM frame; with HTTP/3, name the HTTP/3 frames that begin in it."""
        assert frame.stream is not None
        parts = [f"stream {frame.stream}"]
        if frame.stream % 4 == 0:  # opened by the client, bidirectional: where requests go (RFC 9000 section 2.1)
            parts.append("request" if from_client else "response")
        parts.append(f"{frame.length} bytes")
        if frame.fin:
            parts.append("fin")
        if early and self.session.early_accepted is False:
            parts.append("rejected")
        names = self.http3.names(frame, from_client) if "h3" in self.session.alpn_offers else []
        return ", ".join(parts) + (": " + ", ".join(names) if names else "")


def looks_like_quic(datagram: bytes) -> bool:
    """Whether a datagram begins with a QUIC long header of a known version (or a Version Negotiation)."""
    if len(datagram) < 7 or not datagram[0] & 0x80:
        return False
    version = int.from_bytes(datagram[1:5], "big")
    return version == 0 or (version in _VERSIONS and bool(datagram[0] & 0x40))


def read_quic(datagrams: Sequence[tuple[bytes, bool, bool]], secrets: KeyLog) -> list[list[Found]] | None:
    """Name everything in the datagrams between one client and one server.

    Args:
        datagrams: payload, whether it comes from the client, whether it was delivered; in capture order.
        secrets: the key log; may be empty.

    Returns:
        the messages of each datagram, with datagram numbers as places; the same object in several datagrams
        where a message spans them. None where this is not QUIC. Nothing is raised.
    """
    if not any(looks_like_quic(data) for data, _, _ in datagrams):
        return None
    id_lengths: dict[bool, int] = {}  # how long the IDs are that each side put into the peer's short headers
    packets: list[_Packet] = []
    for number, (data, from_client, delivered) in enumerate(datagrams):
        packets += _split_datagram(data, number, from_client, delivered, id_lengths)
    connections: list[_Connection] = []
    for packet in packets:
        if packet.level != "initial" or any(known.open(packet, secrets) for known in reversed(connections)):
            continue
        # The first Initial of a connection, or the first after a Retry (which changes the ID, so the keys).
        fresh = _Connection.from_initial(packet.version, packet.destination_id)
        if packet.from_client and fresh.open(packet, secrets):
            connections.append(fresh)
    for connection in connections:
        connection.learn_hello()
    for packet in packets:
        if packet.level not in ("", "initial"):
            any(connection.open(packet, secrets) for connection in reversed(connections))
    if not connections and not any(packet.note for packet in packets):
        return None
    messages = {connection: connection.tls_messages() for connection in connections}
    found: list[list[Found]] = [[] for _ in datagrams]
    for packet in packets:
        tls = messages[packet.connection] if packet.connection else {}
        found[packet.datagram] += _describe(packet, tls.get((packet.level, packet.from_client), []))
    return found


def _split_datagram(
    data: bytes, number: int, from_client: bool, delivered: bool, id_lengths: dict[bool, int]
) -> list[_Packet]:
    """Take coalesced packets apart (RFC 9000 section 12.2). Stops at bytes that make no packet."""
    from aioquic._buffer import Buffer  # aioquic.buffer's, which has no types
    from aioquic.quic.packet import QuicPacketType, pull_quic_header

    levels = {
        QuicPacketType.INITIAL: "initial", QuicPacketType.ZERO_RTT: "early",
        QuicPacketType.HANDSHAKE: "handshake", QuicPacketType.ONE_RTT: "application",
    }  # fmt: skip
    packets: list[_Packet] = []
    while data:
        if packets and not any(data):
            # Some senders fill a datagram up behind its packets, others with PADDING frames inside them.
            padding = "datagram padding", f"{len(data)} bytes"
            packets.append(_Packet(number, from_client, delivered, "", data, 0, note=padding))
            break
        if data[0] & 0x80 and not looks_like_quic(data):
            break
        buffer = Buffer(data=data)
        try:
            header = pull_quic_header(buffer, host_cid_length=id_lengths.get(not from_client, 8))
        except ValueError:
            break
        level = levels.get(header.packet_type, "")
        note: tuple[str, str] | None = None
        if header.packet_type == QuicPacketType.RETRY:
            note = "Retry", f"token of {len(header.token)} bytes"
        elif header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            offers = ", ".join(f"0x{version:08x}" for version in header.supported_versions[:8])
            note = "Version Negotiation", offers
        elif level != "application":
            id_lengths.setdefault(from_client, len(header.source_cid))
        packet = data[: header.packet_length]
        if level == "application" and len(packet) < _MIN_SHORT_PACKET:
            break
        place = (number, from_client, delivered, level, packet, buffer.tell())
        packets.append(_Packet(*place, header.destination_cid, header.version or 0, note))
        data = data[header.packet_length :]
    return packets


def _describe(packet: _Packet, tls: list[tuple[int, int, Found]]) -> list[Found]:
    """Name what one packet carries: TLS messages in place of their CRYPTO frames."""
    place = (packet.datagram, packet.datagram)
    if packet.note:
        return [Found("QUIC", *packet.note, "", *place, len(packet.data), packet.data)]
    if packet.frames is None or packet.connection is None:
        name = f"{PACKET_NAMES[packet.level]} packet (encrypted)"
        return [Found("QUIC", name, f"{len(packet.data)} bytes", packet.level, *place, len(packet.data))]
    described: list[Found] = []
    for frame in packet.frames:
        detail = frame.detail
        if frame.name == "CRYPTO":
            end = frame.offset + frame.length
            inside = [found for start, stop, found in tls if start < end and stop > frame.offset]
            if inside:
                described += [found for found in inside if found not in described]
                continue
        elif frame.name == "STREAM":
            detail = packet.connection.stream_detail(frame, packet.from_client, packet.level == "early")
        found = Found("QUIC", frame.name, detail, packet.level, *place, frame.length, frame.data)
        described.append(replace(found, stream=frame.stream, fin=frame.fin))
    return described
