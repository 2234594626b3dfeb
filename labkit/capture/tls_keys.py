"""The keys that protect TLS records, made from a session's secrets.

Sources: RFC 8446 section 7.3 (TLS 1.3 traffic keys), RFC 5246 sections 5 and 6.3 (TLS 1.2 PRF and key block),
RFC 5288 and RFC 7905 (nonces in TLS 1.2).
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

_TAG_LENGTH = 16  # of all the AEADs here

# The TLS 1.2 suites that encrypt with an AEAD: number → (name, hash of the PRF, key bytes, cipher).
TLS12_SUITES: dict[int, tuple[str, str, int, str]] = {
    0x009C: ("RSA-AES128-GCM-SHA256", "sha256", 16, "gcm"),
    0x009D: ("RSA-AES256-GCM-SHA384", "sha384", 32, "gcm"),
    0x009E: ("DHE-RSA-AES128-GCM-SHA256", "sha256", 16, "gcm"),
    0x009F: ("DHE-RSA-AES256-GCM-SHA384", "sha384", 32, "gcm"),
    0xC02B: ("ECDHE-ECDSA-AES128-GCM-SHA256", "sha256", 16, "gcm"),
    0xC02C: ("ECDHE-ECDSA-AES256-GCM-SHA384", "sha384", 32, "gcm"),
    0xC02F: ("ECDHE-RSA-AES128-GCM-SHA256", "sha256", 16, "gcm"),
    0xC030: ("ECDHE-RSA-AES256-GCM-SHA384", "sha384", 32, "gcm"),
    0xCCA8: ("ECDHE-RSA-CHACHA20-POLY1305", "sha256", 32, "chacha20"),
    0xCCA9: ("ECDHE-ECDSA-CHACHA20-POLY1305", "sha256", 32, "chacha20"),
    0xCCAA: ("DHE-RSA-CHACHA20-POLY1305", "sha256", 32, "chacha20"),
}


def expand_label(hash_name: str, secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1, RFC 5869 section 2.3).

    No TLS key is longer than the hash's output, so the first block of HKDF-Expand is enough.
    """
    full_label = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(full_label)]) + full_label + b"\0"
    return hmac.digest(secret, info + b"\1", hash_name)[:length]


def prf(hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """The pseudorandom function of TLS 1.2 (RFC 5246 section 5)."""
    seed = label + seed
    output, block = b"", seed
    while len(output) < length:
        block = hmac.digest(secret, block, hash_name)
        output += hmac.digest(secret, block + seed, hash_name)
    return output[:length]


def _aead(cipher: str, key: bytes) -> AESGCM | ChaCha20Poly1305:
    # cryptography is only needed when somebody looks into a capture: import it then.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    return AESGCM(key) if cipher == "gcm" else ChaCha20Poly1305(key)


class Tls13Keys:
    """What one side protects its TLS 1.3 records with, from one traffic secret on.

    Args:
        secret: the traffic secret.
        cipher: "gcm" or "chacha20".
        level: "early", "handshake" or "application".
    """

    def __init__(self, secret: bytes, cipher: str, level: str) -> None:
        self.level = level
        self._secret, self._cipher = secret, cipher
        # AES-128-GCM and ChaCha20 go with SHA-256 (32 bytes of secret), AES-256-GCM with SHA-384 (48 bytes).
        self._hash = "sha384" if len(secret) == 48 else "sha256"
        key_length = 32 if cipher == "chacha20" or self._hash == "sha384" else 16
        self._opener = _aead(cipher, expand_label(self._hash, secret, "key", key_length))
        self._iv = int.from_bytes(expand_label(self._hash, secret, "iv", 12), "big")
        self._sequence = 0

    @classmethod
    def candidates(cls, secret: bytes | None, level: str) -> list[Tls13Keys]:
        """Return the keys that a secret can mean: the log does not name the cipher, only the length tells."""
        if secret is None or len(secret) not in (32, 48):
            return []
        return [cls(secret, cipher, level) for cipher in (("gcm", "chacha20") if len(secret) == 32 else ("gcm",))]

    def open(self, header: bytes, body: bytes) -> tuple[int, bytes] | None:
        """Decrypt the next record (RFC 8446 section 5.2).

        Returns:
            its real content type and its plaintext, or None where these are not its keys.
        """
        from cryptography.exceptions import InvalidTag

        if len(body) < _TAG_LENGTH + 1:
            return None
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        try:
            inner = self._opener.decrypt(nonce, body, header).rstrip(b"\0")  # zeros are padding
        except InvalidTag:
            return None
        self._sequence += 1
        return (inner[-1], inner[:-1]) if inner else (0, b"")

    def updated(self) -> Tls13Keys:
        """The keys after a KeyUpdate message (RFC 8446 section 7.2)."""
        secret = expand_label(self._hash, self._secret, "traffic upd", len(self._secret))
        return Tls13Keys(secret, self._cipher, self.level)


class Tls12Keys:
    """What one side protects its TLS 1.2 records with (AEAD suites only).

    Args:
        suite: number of the cipher suite; one of ``TLS12_SUITES``.
        master: the master secret (label CLIENT_RANDOM of the key log).
        client_random: from the ClientHello.
        server_random: from the ServerHello.
        from_client: whose keys.
    """

    def __init__(
        self, suite: int, master: bytes, client_random: bytes, server_random: bytes, from_client: bool
    ) -> None:
        _, hash_name, key_length, self._cipher = TLS12_SUITES[suite]
        self._hidden = 4 if self._cipher == "gcm" else 12  # bytes of the nonce that are not in the record
        seed = server_random + client_random
        block = prf(hash_name, master, b"key expansion", seed, 2 * (key_length + self._hidden))
        # The block's order: client key, server key, client IV, server IV.
        side = 0 if from_client else 1
        self._opener = _aead(self._cipher, block[side * key_length :][:key_length])
        self._iv = block[2 * key_length + side * self._hidden :][: self._hidden]
        self._sequence = 0

    @property
    def nonce_length(self) -> int:
        """Bytes of nonce in front of the ciphertext of each record."""
        return 12 - self._hidden

    def open(self, header: bytes, body: bytes, sequence: int | None = None) -> bytes | None:
        """Decrypt a record (RFC 5246 section 6.2.3.3); None where these are not its keys.

        Args:
            header: begins with the record's type and version.
            body: what it protects.
            sequence: its number, where it says it itself (RFC 6347 section 4.1.2.1); else it is the next record.
        """
        from cryptography.exceptions import InvalidTag

        length = len(body) - self.nonce_length - _TAG_LENGTH
        if length < 0:
            return None
        number = self._sequence if sequence is None else sequence
        if self._cipher == "gcm":
            nonce = self._iv + body[:8]
        else:
            nonce = (int.from_bytes(self._iv, "big") ^ number).to_bytes(12, "big")
        extra = number.to_bytes(8, "big") + header[:3] + length.to_bytes(2, "big")
        try:
            plain = self._opener.decrypt(nonce, body[self.nonce_length :], extra)
        except InvalidTag:
            return None
        self._sequence = number + 1
        return plain
