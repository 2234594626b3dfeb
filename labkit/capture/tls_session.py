"""What a TLS client and server agree on: their hellos, and the session that follows from them.

Sources: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 7301 (ALPN).
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.capture.fields import Cursor, Truncated, printable
from labkit.capture.keylog import KeyLog
from labkit.capture.tls_keys import TLS12_SUITES

CLIENT_HELLO, SERVER_HELLO, ENCRYPTED_EXTENSIONS = 1, 2, 8
SERVER_NAME, ALPN, SESSION_TICKET = 0, 16, 35
PRE_SHARED_KEY, EARLY_DATA, SUPPORTED_VERSIONS, KEY_SHARE = 41, 42, 43, 51
QUIC_PARAMETERS, _RESET_TOKEN = 57, 2
# A ServerHello with this random is a HelloRetryRequest: SHA-256 of that word (RFC 8446 section 4.1.3).
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

SUITE_NAMES = {
    0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    **{number: suite[0] for number, suite in TLS12_SUITES.items()},
}  # fmt: skip
_GROUP_NAMES = {
    23: "secp256r1", 24: "secp384r1", 25: "secp521r1", 29: "X25519", 30: "X448", 256: "ffdhe2048",
    257: "ffdhe3072", 4587: "SecP256r1MLKEM768", 4588: "X25519MLKEM768", 4589: "SecP384r1MLKEM1024",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hello:
    """A ClientHello or a ServerHello, as far as it is needed here.

    Attributes:
        random: 32 bytes. The ClientHello's are the session's name in the key log.
        session_id: what the client would like to resume, or what the server calls this session.
        suite: number of the chosen cipher suite; 0 in a ClientHello.
        extensions: type → content.
    """

    random: bytes
    session_id: bytes
    suite: int
    extensions: dict[int, bytes]

    @classmethod
    def parse(cls, body: bytes, from_client: bool) -> Hello:
        """Read the body of a hello (RFC 8446 section 4.1). Raises ``Truncated``."""
        cursor = Cursor(body)
        cursor.take(2)  # legacy_version: says TLS 1.2 in TLS 1.3 too
        random, session_id = cursor.take(32), cursor.vector(1)
        suite = 0
        if from_client:
            cursor.vector(2)  # all the suites on offer
            cursor.vector(1)  # compression methods
        else:
            suite = cursor.number(2)
            cursor.take(1)
        return cls(random, session_id, suite, read_extensions(cursor) if cursor.left else {})

    @property
    def key_shares(self) -> list[str]:
        """The groups for which keys are sent along, by name. Raises ``Truncated``."""
        cursor = Cursor(self.extensions.get(KEY_SHARE, b""))
        if self.suite:  # the server's one, or the group that its HelloRetryRequest asks for
            return [group_name(cursor.number(2))] if cursor.left else []
        shares, groups = Cursor(cursor.vector(2) if cursor.left else b""), []
        while shares.left:
            groups.append(group_name(shares.number(2)))
            shares.vector(2)
        return groups

    @property
    def suite_name(self) -> str:
        """The chosen cipher suite."""
        return SUITE_NAMES.get(self.suite, f"cipher suite 0x{self.suite:04x}")

    @property
    def tls13(self) -> bool:
        """Whether this ServerHello chose TLS 1.3, or DTLS 1.3."""
        return self.extensions.get(SUPPORTED_VERSIONS) in (b"\x03\x04", b"\xfe\xfc")  # RFC 8446, RFC 9147

    @property
    def session_ticket(self) -> bytes:
        """The ticket that a client of TLS 1.2 shows; b"" for none."""
        return self.extensions.get(SESSION_TICKET, b"")

    @property
    def is_retry(self) -> bool:
        """Whether this ServerHello is a HelloRetryRequest."""
        return self.random == _RETRY_RANDOM


@dataclass(slots=True)
class Session:
    """What the two sides agreed on. None means: not seen.

    Attributes:
        client: the first ClientHello.
        server: the ServerHello (not a HelloRetryRequest).
        early_accepted: whether the server takes early data.
        reset_token: what the server's Stateless Resets end with (RFC 9000 section 18.2); b"" for none.
        datagrams: whether it is DTLS.
    """

    client: Hello | None = None
    server: Hello | None = None
    early_accepted: bool | None = None
    reset_token: bytes = b""
    datagrams: bool = False

    @property
    def tls13(self) -> bool | None:
        return None if self.server is None else self.server.tls13

    @property
    def early_offered(self) -> bool:
        return self.client is not None and EARLY_DATA in self.client.extensions

    @property
    def alpn_offers(self) -> list[str]:
        """The application protocols that the client offered."""
        try:
            return protocol_names(self.client.extensions[ALPN]) if self.client else []
        except (KeyError, Truncated):
            return []

    def learn(self, kind: int, body: bytes) -> None:
        """Take in a handshake message; each side's messages in their order."""
        try:
            if kind == CLIENT_HELLO and self.client is None:
                self.client = Hello.parse(body, from_client=True)
            elif kind == SERVER_HELLO and self.server is None:
                hello = Hello.parse(body, from_client=False)
                # Early data rests on the PSK, and a HelloRetryRequest rejects it (RFC 8446 section 4.2.10).
                if hello.is_retry or PRE_SHARED_KEY not in hello.extensions:
                    self.early_accepted = False
                if not hello.is_retry:
                    self.server = hello
            elif kind == ENCRYPTED_EXTENSIONS:
                extensions = read_extensions(Cursor(body))
                if self.early_accepted is None:
                    self.early_accepted = EARLY_DATA in extensions
                self.reset_token = quic_parameters(extensions.get(QUIC_PARAMETERS, b"")).get(_RESET_TOKEN, b"")
        except Truncated:
            pass  # described as malformed where it is named

    def secret(self, label: str, secrets: KeyLog) -> bytes | None:
        """Look up one of this session's secrets."""
        return secrets.secret(label, self.client.random) if self.client else None


def group_name(group: int) -> str:
    """Name of a group for key exchange."""
    if group & 0x0F0F == 0x0A0A and group >> 8 == group & 0xFF:
        return "GREASE"  # a made-up number, so that servers keep ignoring what they don't know (RFC 8701)
    return _GROUP_NAMES.get(group, f"group {group}")


def read_extensions(cursor: Cursor) -> dict[int, bytes]:
    """Read a list of extensions (RFC 8446 section 4.2) into type → content. Raises ``Truncated``."""
    extensions, block = {}, Cursor(cursor.vector(2))
    while block.left:
        kind = block.number(2)
        extensions[kind] = block.vector(2)
    return extensions


def quic_parameters(extension: bytes) -> dict[int, bytes]:
    """Read QUIC's transport parameters (RFC 9000 section 18) into number → value. Raises ``Truncated``."""
    cursor, parameters = Cursor(extension), {}
    while cursor.left:
        number = cursor.varint()
        parameters[number] = cursor.take(cursor.varint())
    return parameters


def protocol_names(extension: bytes) -> list[str]:
    """Read the content of an ALPN extension. Raises ``Truncated``."""
    cursor, names = Cursor(Cursor(extension).vector(2)), []
    while cursor.left:
        names.append(printable(cursor.vector(1)))
    return names
