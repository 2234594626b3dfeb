"""QUIC packets among the datagrams of a capture, opened with the session's secrets and named.

``read_quic`` goes through all datagrams in their order. ``quic_ids`` says which connection a packet belongs to,
``quic_connection`` opens it, and what its frames say (new connection IDs, the ClientHello) serves the packets after it.
What could not be opened is tried once more at the end, because packets overtake each other. Then the TLS messages
and the HTTP/3 messages are named in the packets that carried them.

Sources: RFC 8999 and 9000 (transport), RFC 9001 (protection), RFC 9287 (fixed bit), RFC 9368 and 9369 (versions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found
from labkit.capture.protocol import Datagram, Endpoint
from labkit.capture.quic_connection import Connection
from labkit.capture.quic_headers import FIXED_BIT, MIN_SHORT_PACKET, LongHeader, is_long, read_long_header
from labkit.capture.quic_ids import Identities
from labkit.capture.quic_names import PacketNames, QuicPacket

_MIN_RESET = 21  # RFC 9000 section 10.3


@dataclass(frozen=True, slots=True)
class QuicReading:
    """What a datagram of a QUIC connection says.

    Attributes:
        found: its messages, with datagram numbers as places; the same object in several datagrams where one spans them.
        from_client: whether the client sent it.
        client: where the client was when the connection began; its address may change later.
        server: where the server was then.
    """

    found: list[Found]
    from_client: bool
    client: Endpoint
    server: Endpoint


def read_quic(datagrams: Sequence[Datagram], secrets: KeyLog) -> list[QuicReading | None]:
    """Name everything that QUIC connections say in the datagrams of a capture.

    Args:
        datagrams: all of them, of any protocol, in capture order.
        secrets: the key log; may be empty.

    Returns:
        an entry for each datagram, None where it is not QUIC. Nothing is raised.
    """
    reader = _Reader(datagrams, secrets)
    for number in range(len(datagrams)):
        reader.read(number)
    return reader.readings()


@dataclass(slots=True)
class _Reader:
    datagrams: Sequence[Datagram]
    secrets: KeyLog
    packets: list[list[QuicPacket]] = field(default_factory=list)
    identities: Identities = field(default_factory=Identities)
    connections: list[Connection] = field(default_factory=list)
    # Who sent a long header with which IDs: what a Version Negotiation has to repeat (RFC 9000 section 6.1).
    asked: dict[tuple[Endpoint, Endpoint, bytes, bytes], int] = field(default_factory=dict)

    def read(self, number: int) -> None:
        """Take one datagram's coalesced packets apart (RFC 9000 section 12.2), and open them."""
        data, packets = self.datagrams[number].data, self._packets_of(number)
        while data:
            if packets and not any(data):
                # Some senders fill a datagram up behind its packets, others with PADDING frames inside them.
                note = "datagram padding", f"{len(data)} bytes"
                packets.append(replace(packets[-1], data=data, level="", header=None, note=note, frames=None))
                return
            packet = self._long(number, data) if is_long(data) else self._short(number, data)
            if packet is None:
                if packets:
                    note = "unrecognised bytes", f"{len(data)} bytes"
                    packets.append(replace(packets[-1], data=data, level="", header=None, note=note, frames=None))
                return
            packets.append(packet)
            data = data[len(packet.data) :]

    def _packets_of(self, number: int) -> list[QuicPacket]:
        while len(self.packets) <= number:
            self.packets.append([])
        return self.packets[number]

    def _long(self, number: int, data: bytes) -> QuicPacket | None:
        datagram, header = self.datagrams[number], read_long_header(data)
        if header is None:
            return None
        if header.level == "negotiation":
            return self._version_negotiation(number, data, header)
        key = (datagram.source, datagram.destination, header.destination_id, header.source_id)
        self.asked.setdefault(key, number)
        if not header.level:
            return None
        packet = QuicPacket(number, data[: header.end], header.level, header)
        known = self.identities.long(datagram.source, datagram.destination, header.destination_id)
        if header.level == "retry":
            packet.level, packet.note = "", ("Retry", f"token of {len(header.rest)} bytes")
            if not known and not header.fixed:
                return None
            # What the client sends next has other keys, and with aioquic another ClientHello: a connection of its own.
            packet.connection, packet.from_client = known[0] if known else (self._unopened(datagram, header), False)
        elif not self._open_long(packet, known):
            if not known and not header.fixed:
                return None  # nothing but AEAD proves that it is QUIC
            if packet.connection is None and known:
                packet.connection, packet.from_client = known[0]
            elif packet.connection is None:
                packet.connection = self._unopened(datagram, header)
                packet.from_client = packet.connection.client == datagram.source
        assert packet.connection is not None
        if packet.frames is not None or packet.note or not known:
            self.identities.add_path(packet.connection, packet.from_client, datagram.source, datagram.destination)
            self.identities.add_id(packet.connection, packet.from_client, header.source_id)
        return packet

    def _version_negotiation(self, number: int, data: bytes, header: LongHeader) -> QuicPacket | None:
        """Recognise it by the IDs that it repeats: any other protocol's bytes can look like one."""
        datagram = self.datagrams[number]
        asked = self.asked.get((datagram.destination, datagram.source, header.source_id, header.destination_id))
        if asked is None:
            return None
        if self.packets[asked]:
            connection = self.packets[asked][0].connection
        else:  # of a version not known here
            first = self.datagrams[asked].data
            connection = Connection(datagram.destination, datagram.source, 0)
            version = int.from_bytes(first[1:5], "big")
            note = f"packet of version 0x{version:08x}", f"{len(first)} bytes"
            self.packets[asked].append(QuicPacket(asked, first, connection=connection, note=note))
        versions = [header.rest[at : at + 4].hex() for at in range(0, min(len(header.rest), 32), 4)]
        note = "Version Negotiation", ", ".join(f"0x{version}" for version in versions)
        return QuicPacket(number, data, connection=connection, from_client=False, note=note)

    def _unopened(self, datagram: Datagram, header: LongHeader) -> Connection:
        """Begin a connection whose first packets the capture lacks: who is the client can only be guessed."""
        from_client = header.level == "early" or datagram.source[1] >= datagram.destination[1]
        if header.level == "retry":
            from_client = False
        ends = (datagram.source, datagram.destination) if from_client else (datagram.destination, datagram.source)
        connection = Connection(*ends, header.version)
        self.connections.append(connection)
        self.identities.add_id(connection, not from_client, header.destination_id)
        return connection

    def _open_long(self, packet: QuicPacket, known: Sequence[tuple[Connection, bool]]) -> bool:
        header = packet.header
        assert header is not None
        for connection, from_client in known:
            # Another version after a Version Negotiation: the client begins anew, with the same IDs.
            again = header.destination_id in connection.key_ids and header.version != connection.first_version
            if packet.level == "initial" and from_client and again and connection.first_version:
                continue
            if self._open(packet, connection, from_client):
                return True
        if packet.level != "initial":
            return False
        datagram = self.datagrams[packet.datagram]
        # Packets that came before the first one may have made a connection without keys.
        without_keys = (connection for connection, from_client in known if from_client and not connection.key_ids)
        fresh = next(without_keys, None) or Connection(datagram.source, datagram.destination, header.version)
        fresh.key_ids = [header.destination_id]
        if not self._open(packet, fresh, True):
            fresh.key_ids = []
            return False
        fresh.version = fresh.first_version = header.version
        if fresh not in self.connections:
            self.connections.append(fresh)
        self.identities.add_id(fresh, False, header.destination_id)
        return True

    def _short(self, number: int, data: bytes) -> QuicPacket | None:
        datagram, before = self.datagrams[number], self.packets[number]
        if len(data) < MIN_SHORT_PACKET:
            return None
        claimed: QuicPacket | None = None
        for connection, from_client, length, sure in self.identities.short(datagram.source, datagram.destination, data):
            packet = QuicPacket(number, data, "application", None, connection, from_client)
            if self._open(packet, connection, from_client, 1 + length):
                self.identities.add_path(connection, from_client, datagram.source, datagram.destination)
                return packet
            if claimed is None and (data[0] & FIXED_BIT or sure or before):
                claimed = packet
        if len(data) >= _MIN_RESET and (reset := self.identities.reset(data)) is not None:
            note = "Stateless Reset", f"{len(data)} bytes"
            return QuicPacket(number, data, connection=reset[0], from_client=reset[1], note=note)
        return claimed

    def _open(self, packet: QuicPacket, connection: Connection, from_client: bool, number_at: int = 0) -> bool:
        """Try to open a packet with one connection's keys, and learn from what it says."""
        if number_at + 20 > len(packet.data):  # packet number and sample (RFC 9001 section 5.4.2)
            return False
        version = packet.header.version if packet.header else 0
        at = packet.header.number_at if packet.header else number_at
        frames = connection.open(packet.level, version, packet.data, at, from_client, self.secrets)
        if frames is None:
            return False
        packet.connection, packet.from_client, packet.frames = connection, from_client, frames
        delivered = self.datagrams[packet.datagram].delivered
        connection.learn(frames, packet.level, from_client, packet.datagram, delivered)
        for frame in frames:
            if frame.new_id:
                self.identities.add_id(connection, from_client, frame.new_id)
                self.identities.add_token(connection, from_client, frame.reset_token)
        return True

    def _read_again(self) -> None:
        """Try once more what came before the packet that brought its keys, its connection ID or its reset's token."""
        unread = [n for n, packets in enumerate(self.packets) if not packets and self.datagrams[n].data]
        unopened = [
            (number, place)
            for number, packets in enumerate(self.packets)
            for place, packet in enumerate(packets)
            if packet.frames is None and not packet.note
        ]
        if not self.connections or not (unread or unopened):
            return
        for connection in self.connections:
            connection.tls_messages()  # teaches the session what the server's transport parameters say
            if token := connection.session.reset_token:
                self.identities.add_token(connection, False, token)
        for number in unread:
            self.read(number)
        for number, place in unopened:
            packet = self.packets[number][place]
            read = self._long if is_long(packet.data) else self._short
            self.packets[number][place] = read(number, packet.data) or packet

    def readings(self) -> list[QuicReading | None]:
        self._read_again()
        describe: dict[Connection, PacketNames] = {}
        readings: list[QuicReading | None] = []
        for packets in self.packets:
            found: list[Found] = []
            for packet in packets:
                assert packet.connection is not None
                if packet.connection not in describe:
                    describe[packet.connection] = PacketNames(packet.connection)
                found += describe[packet.connection].describe(packet)
            first = packets[0] if packets else None
            if first is None or first.connection is None:
                readings.append(None)
            else:
                ends = first.connection.client, first.connection.server
                readings.append(QuicReading(found, first.from_client, *ends))
        return readings
