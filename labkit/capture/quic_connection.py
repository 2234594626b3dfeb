"""One QUIC connection: its keys, and the streams that its packets carry.

- Initial keys come from the connection ID that the client chose for the server, which is in the clear: everybody
  can open these packets. They hold the ClientHello, whose random names the session in the key log.
- All other keys come from the key log. Version 2 derives them with other labels (RFC 9369 section 3.3), and a
  connection may begin in one version and go on in the other (RFC 9368 section 2.3).
- The CRYPTO frames of each level are put together to a stream of TLS messages. Lost packets count as long as nothing
  else brought the same bytes.

Sources: RFC 9001 (protection, key update), RFC 9368 and 9369 (versions).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from labkit.capture.http3 import Http3Streams
from labkit.capture.in_order import InOrder
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found
from labkit.capture.quic_frames import QuicFrame, parse_frames
from labkit.capture.quic_headers import VERSIONS
from labkit.capture.streams import Segment, Stream
from labkit.capture.tls_handshake import describe_handshake, split_handshake
from labkit.capture.tls_session import Session

if TYPE_CHECKING:
    from aioquic.quic.crypto import CryptoContext

_SECRET_LABELS = {
    "early": "EARLY_TRAFFIC_SECRET",
    "handshake": "HANDSHAKE_TRAFFIC_SECRET",
    "application": "TRAFFIC_SECRET_0",
}
_LEVELS = ("initial", "early", "handshake", "application")
_LONGEST_HELLO = 2**16


class _Keys:
    """What one side protects the packets of one level with, over all its key updates (RFC 9001 section 6)."""

    def __init__(self, context: CryptoContext) -> None:
        self._now = context
        self._before: CryptoContext | None = None  # for packets that an update has overtaken

    def open(self, data: bytes, number_at: int, expected: int) -> tuple[bytes, int] | None:
        """Return a packet's payload and number; None where these are not its keys."""
        from aioquic.quic.crypto import apply_key_phase, next_key_phase

        for context in (self._now, self._before):
            if context is None:
                continue
            try:
                _, payload, number, updated = context.decrypt_packet(data, number_at, expected)
            except ValueError:  # aioquic's CryptoError: other keys, or damaged on the way
                continue
            if updated and context is self._now:
                self._before = copy.copy(context)
                apply_key_phase(context, next_key_phase(context), "remote_update")
            return payload, number
        return None


class Connection:
    """What is known of one connection.

    Args:
        client: address and port of the side that began.
        server: of the other side.

    Attributes:
        key_ids: the IDs from which Initial keys follow: the first that the client sent to (RFC 9001 section 5.2).
        version: of the first packet, then what the server chose.
        first_version: of the client's first Initial; 0 where none was opened.
        id_lengths: how long the connection IDs are that the client (True) and the server (False) chose.
        session: what TLS agreed on.
        http3: what its streams say, where they are HTTP/3.
    """

    def __init__(self, client: tuple[str, int], server: tuple[str, int], version: int) -> None:
        self.client, self.server = client, server
        self.version = version
        self.first_version = 0
        self.key_ids: list[bytes] = []
        self.id_lengths: dict[bool, int] = {}
        self.session = Session()
        self.http3 = Http3Streams()
        self._keys: dict[tuple[str, bool, int, bytes], _Keys] = {}
        self._expected: dict[tuple[bool, bool, bool], int] = {}
        self._crypto: dict[tuple[str, bool], Stream] = {}
        self._hello, self._hello_order = bytearray(), InOrder()

    def open(
        self, level: str, version: int, data: bytes, number_at: int, from_client: bool, secrets: KeyLog
    ) -> list[QuicFrame] | None:
        """Open a packet and return its frames; None where the keys are unknown, or others.

        Args:
            level: "initial", "early", "handshake" or "application".
            version: as it stands in the packet; 0 in those with a short header.
            data: the packet.
            number_at: where its protected number begins.
            from_client: whether the client sent it.
            secrets: the key log.
        """
        # Packet numbers count in three spaces: Initial, Handshake, and one for 0-RTT and 1-RTT.
        space = (level == "initial", level == "handshake", from_client)
        expected = self._expected.get(space, 0)
        for place, keys in self._keys_for(level, version, from_client, secrets):
            opened = keys.open(data, number_at, expected)
            if opened is not None:
                payload, number = opened
                self._keys[place] = keys
                self._expected[space] = max(expected, number + 1)
                if level != "early" and version and not from_client:
                    self.version = version
                return parse_frames(payload)
        return None

    def _keys_for(
        self, level: str, version: int, from_client: bool, secrets: KeyLog
    ) -> list[tuple[tuple[str, bool, int, bytes], _Keys]]:
        if level == "initial":
            places = [(level, from_client, version, key_id) for key_id in self.key_ids[-1:-4:-1]]
            return [(place, self._keys.get(place) or _initial_keys(place)) for place in places]
        versions = [version] if version else sorted(VERSIONS, key=lambda known: known != self.version)
        known = [(level, from_client, each, b"") for each in versions]
        for place in known:
            if place in self._keys:
                return [(place, self._keys[place])]
        side = "CLIENT" if from_client else "SERVER"
        secret = self.session.secret(f"{side}_{_SECRET_LABELS[level]}", secrets) or b""
        return [(place, keys) for place in known for keys in candidate_keys(secret, place[2])]

    def learn(self, frames: list[QuicFrame], level: str, from_client: bool, datagram: int, delivered: bool) -> None:
        """Take in what the frames of an opened packet bring to the connection's streams."""
        for frame in frames:
            if frame.name == "CRYPTO":
                stream = self._crypto.setdefault((level, from_client), Stream())
                stream.add(Segment(frame.offset, frame.data, datagram, delivered))
                if level == "initial" and from_client and self.session.client is None:
                    self._learn_hello(frame)
            elif frame.name == "STREAM" and any(offer.startswith("h3") for offer in self.session.alpn_offers):
                self.http3.add(frame, from_client, level == "early", datagram, delivered)

    def _learn_hello(self, frame: QuicFrame) -> None:
        self._hello += self._hello_order.add(frame.offset, frame.data)
        size = 4 + int.from_bytes(self._hello[1:4], "big")
        if 4 < size <= min(len(self._hello), _LONGEST_HELLO):
            self.session.learn(self._hello[0], bytes(self._hello[4:size]))

    def tls_messages(self) -> dict[tuple[str, bool], list[tuple[int, int, Found]]]:
        """Name the TLS messages: (level, from the client) → their start, end in the CRYPTO stream, and name.

        The server's go first: its EncryptedExtensions tell whether early data was accepted.
        """
        messages: dict[tuple[str, bool], list[tuple[int, int, Found]]] = {}
        for key in sorted(self._crypto, key=lambda key: (key[1], _LEVELS.index(key[0]))):
            messages[key] = []
            for chunk in self._crypto[key].assemble():
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
        """Describe a STREAM frame."""
        assert frame.stream is not None
        parts = [f"stream {frame.stream}"]
        if frame.stream % 4 == 0:  # opened by the client, bidirectional: where requests go (RFC 9000 section 2.1)
            parts.append("request" if from_client else "response")
        parts.append(f"{frame.length} bytes")
        if frame.fin:
            parts.append("fin")
        if early and self.session.early_accepted is False:
            parts.append("rejected")
        return ", ".join(parts)


def _initial_keys(place: tuple[str, bool, int, bytes]) -> _Keys:
    """The Initial keys of RFC 9001 section 5.2, RFC 9369 section 3.3.1."""
    from aioquic.quic.crypto import CryptoPair

    _, from_client, version, key_id = place
    pair = CryptoPair()
    pair.setup_initial(key_id, is_client=False, version=version)
    return _Keys(pair.recv if from_client else pair.send)


def candidate_keys(secret: bytes, version: int) -> list[_Keys]:
    """The keys that the log's secret can mean: it does not name the cipher, only its length tells."""
    from aioquic.quic.crypto import CryptoContext
    from aioquic.tls import CipherSuite

    suites = {
        32: (CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256),
        48: (CipherSuite.AES_256_GCM_SHA384,),
    }
    candidates = []
    for suite in suites.get(len(secret), ()):
        context = CryptoContext()
        context.setup(cipher_suite=suite, secret=secret, version=version)
        candidates.append(_Keys(context))
    return candidates
