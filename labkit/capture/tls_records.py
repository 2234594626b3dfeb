"""TLS records, opened with the session's secrets.

``read_tls`` takes the two byte streams of a connection and names everything in them: handshake
messages, alerts, application data. The rules it lives by:

- The first pass reads the hellos, which are never encrypted: they say which version this is, and which
  lines of the key log belong to it.
- Then each direction is walked record by record. In TLS 1.3 nothing outside a record says which keys
  protect it (early, handshake or application), but an AEAD cipher opens only with the right ones: so the
  next keys are tried where the present ones fail. In TLS 1.2 ChangeCipherSpec says it in the clear.
- A record that does not open is named for its outside only: "Application data (encrypted)".

Sources: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found, Role, data_detail
from labkit.capture.tls_handshake import KEY_UPDATE, describe_handshake, split_handshake
from labkit.capture.tls_keys import TLS12_SUITES, Tls12Keys, Tls13Keys
from labkit.capture.tls_session import CLIENT_HELLO, SERVER_HELLO, Session

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = 20, 21, 22, 23, 24
_RECORD_NAMES = {
    CHANGE_CIPHER_SPEC: "ChangeCipherSpec", ALERT: "Alert", HANDSHAKE: "Handshake message",
    APPLICATION_DATA: "Application data", HEARTBEAT: "Heartbeat",
}  # fmt: skip
_MAX_RECORD = 2**14 + 2048  # the longest in TLS 1.2 (RFC 5246 section 6.2.3); TLS 1.3 allows less
_ALERT_LEVELS = {1: "warning", 2: "fatal"}
_ALERT_NAMES = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow",
    40: "handshake_failure", 42: "bad_certificate", 43: "unsupported_certificate",
    44: "certificate_revoked", 45: "certificate_expired", 46: "certificate_unknown",
    47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
    51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error",
    86: "inappropriate_fallback", 90: "user_canceled", 100: "no_renegotiation", 109: "missing_extension",
    110: "unsupported_extension", 112: "unrecognized_name", 115: "unknown_psk_identity",
    116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip


def looks_like_tls(data: bytes) -> bool:
    """Whether a record can begin with these bytes: a known type, a version 3.x, a possible length."""
    known = len(data) >= 5 and CHANGE_CIPHER_SPEC <= data[0] <= HEARTBEAT and data[1] == 3 and data[2] <= 4
    return known and 0 < int.from_bytes(data[3:5], "big") <= _MAX_RECORD


def alert(data: bytes) -> tuple[str, str]:
    """Name an alert: "Alert close_notify", "warning"."""
    if len(data) != 2:
        return "malformed Alert", f"{len(data)} bytes"
    return f"Alert {_ALERT_NAMES.get(data[1], str(data[1]))}", _ALERT_LEVELS.get(data[0], "unknown level")


def read_tls(client: bytes, server: bytes, secrets: KeyLog) -> tuple[list[Found], list[Found]]:
    """Name everything that a TLS connection says.

    Args:
        client: what the client sent, from the beginning of a record on; b"" where unknown.
        server: what the server sent.
        secrets: the key log; may be empty.

    Returns:
        the messages of the client and of the server, with offsets in their streams. Nothing is raised.
    """
    session = Session()
    for stream in (client, server):
        hellos = b"".join(body for kind, body in _first_records(stream) if kind == HANDSHAKE)
        for _, kind, body in split_handshake(hellos):
            if kind in (CLIENT_HELLO, SERVER_HELLO):
                session.learn(kind, body)
    # The server goes first: its EncryptedExtensions tell whether the client's early data was accepted.
    from_server = _Walker(session, secrets, from_client=False).walk(server)
    return _Walker(session, secrets, from_client=True).walk(client), from_server


def _first_records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of the first records: the hellos are among them."""
    position = 0
    for _ in range(8):
        if not looks_like_tls(stream[position : position + 5]):
            return
        end = position + 5 + int.from_bytes(stream[position + 3 : position + 5], "big")
        yield stream[position], stream[position + 5 : end]
        position = end


class _Walker:
    """Walks one direction, record by record, with the keys of the moment."""

    def __init__(self, session: Session, secrets: KeyLog, from_client: bool) -> None:
        self._session = session
        self._found: list[Found] = []
        self._handshake = bytearray()  # a handshake message may go on in the next record
        self._places: list[int] = []  # where in the stream each of its bytes stands
        self._changed = False  # whether ChangeCipherSpec was sent
        self._keys12: Tls12Keys | None = None
        self._keys: Tls13Keys | None = None
        self._next_keys: list[Tls13Keys] = []
        client, server, side = session.client, session.server, "CLIENT" if from_client else "SERVER"
        master = session.secret("CLIENT_RANDOM", secrets)
        if client and server and master and not server.tls13 and server.suite in TLS12_SUITES:
            self._keys12 = Tls12Keys(server.suite, master, client.random, server.random, from_client)
        for label, level in (
            (f"{side}_EARLY_TRAFFIC_SECRET", "early"),  # the server has none
            (f"{side}_HANDSHAKE_TRAFFIC_SECRET", "handshake"),
            (f"{side}_TRAFFIC_SECRET_0", "application"),
        ):
            self._next_keys += Tls13Keys.candidates(session.secret(label, secrets), level)

    def walk(self, stream: bytes) -> list[Found]:
        position = 0
        while position < len(stream):
            header = stream[position : position + 5]
            end = position + 5 + int.from_bytes(header[3:5], "big")
            if len(header) == 5 and not looks_like_tls(header):
                self._add("unrecognised bytes", "unknown", position, len(stream), b"")
                break
            if len(header) < 5 or end > len(stream):
                name = _RECORD_NAMES.get(header[0], "record")
                self._add(f"{name} (incomplete)", "unknown", position, len(stream), b"")
                break
            self._record(header, stream[position + 5 : end], position, end)
            position = end
        return self._found

    def _add(
        self,
        name: str,
        level: str,
        start: int,
        end: int,
        data: bytes,
        detail: str = "",
        rejected: bool = False,
        role: Role = "",
    ) -> None:
        size = len(data) or max(end - start - 5, 0)
        detail = detail or data_detail(size, level, rejected)
        self._found.append(Found("TLS", name, detail, level, start, end, size, data, rejected=rejected, role=role))

    def _record(self, header: bytes, body: bytes, start: int, end: int) -> None:
        kind, level, data, data_at = header[0], "", body, start + 5
        if kind == CHANGE_CIPHER_SPEC:
            self._changed = True
            detail = "for old middleboxes" if self._session.tls13 else "encrypted from here on"
            self._add("ChangeCipherSpec", "", start, end, body, detail)
            return
        if kind == APPLICATION_DATA and self._session.tls13 is not False:
            opened = self._open(header, body)
            if opened is None:
                self._add("Application data (encrypted)", "unknown", start, end, b"")
                return
            kind, data = opened
            level = self._keys.level if self._keys else ""
        elif not self._session.tls13 and (self._changed or kind == APPLICATION_DATA):
            plain = self._keys12.open(header, body) if self._keys12 else None
            if plain is None or self._keys12 is None:
                self._add(f"{_RECORD_NAMES[kind]} (encrypted)", "unknown", start, end, b"")
                return
            # TLS 1.2 has one set of keys, for its Finished messages and for the data.
            data, data_at, level = plain, data_at + self._keys12.nonce_length, "application"
        if kind == HANDSHAKE:
            self._take_handshake(data, level, start, data_at, end)
        elif kind == ALERT:
            name, detail = alert(data)
            self._add(name, level, start, end, data, detail)
        elif kind == APPLICATION_DATA:
            rejected = level == "early" and self._session.early_accepted is False
            self._add("Application data", level, start, end, data, rejected=rejected, role="data")
        else:
            self._add(_RECORD_NAMES.get(kind, f"record of type {kind}"), level, start, end, data)

    def _open(self, header: bytes, body: bytes) -> tuple[int, bytes] | None:
        """Try the present TLS 1.3 keys, then those that come after them."""
        if self._keys is not None and (opened := self._keys.open(header, body)):
            return opened
        for number, keys in enumerate(self._next_keys):
            if opened := keys.open(header, body):
                self._keys, self._next_keys = keys, self._next_keys[number + 1 :]
                return opened
        return None

    def _take_handshake(self, data: bytes, level: str, start: int, data_at: int, end: int) -> None:
        """Take in a record's handshake bytes and report the messages that are complete now.

        Ciphers keep places: byte n of the plaintext travels in byte n of the ciphertext. So a flight of
        messages in one long record can be told apart by packet. The record's header counts to its first
        message, the rest of it to its last.
        """
        places = list(range(data_at, data_at + len(data)))
        if places:
            places[0], places[-1] = start, end - 1
        self._handshake += data
        self._places += places
        done = 0
        for offset, kind, body in split_handshake(bytes(self._handshake)):
            done = offset + 4 + len(body)
            self._session.learn(kind, body)
            name, detail = describe_handshake(kind, body, self._session)
            message = bytes(self._handshake[offset:done])
            first, last = self._places[offset], self._places[done - 1]
            self._found.append(Found("TLS", name, detail, level, first, last + 1, len(message), message))
            if kind == KEY_UPDATE and self._keys is not None:
                self._keys = self._keys.updated()
        del self._handshake[:done], self._places[:done]
