"""The secrets of TLS and QUIC sessions, as the libraries write them down.

TLS libraries write secrets to a *key log* (the file that SSLKEYLOGFILE names, Python's
``SSLContext.keylog_filename``), so that tools such as Wireshark can read a capture: one line for each
secret, ``LABEL client_random secret``, both in hex. The ClientHello's random number says which session a
line belongs to.

Source: RFC 9850.
"""

from __future__ import annotations

import re

# Old QUIC libraries put ``QUIC_`` in front of the labels; they mean the same.
_LINE = re.compile(r"\s*(?:QUIC_)?(\w+)\s+([0-9A-Fa-f]{64})\s+((?:[0-9A-Fa-f]{2})+)\s*")


class KeyLog:
    """The secrets of any number of sessions."""

    def __init__(self, secrets: dict[tuple[str, bytes], bytes] | None = None) -> None:
        self._secrets = secrets or {}
        self._answers: dict[tuple[str, bytes], bytes | None] = {}

    @classmethod
    def parse(cls, text: str) -> KeyLog:
        """Read the NSS key log format.

        Args:
            text: the content of a key log file. Comments (``#``) and malformed lines are skipped, as
                Wireshark does.
        """
        lines = filter(None, map(_LINE.fullmatch, text.splitlines()))
        return cls({(line[1], bytes.fromhex(line[2])): bytes.fromhex(line[3]) for line in lines})

    def secret(self, label: str, client_random: bytes) -> bytes | None:
        """Return one secret, or None where the log has none.

        Args:
            label: such as "CLIENT_RANDOM" (TLS 1.2 master secret) or "SERVER_HANDSHAKE_TRAFFIC_SECRET".
            client_random: the 32 random bytes of the session's ClientHello.
        """
        return self._answers.setdefault((label, client_random), self._secrets.get((label, client_random)))

    def answers_as(self, other: KeyLog) -> bool:
        """Whether everything that was asked here has the same answer in another log, such as a later one."""
        return all(other.secret(*question) == answer for question, answer in self._answers.items())

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        sessions = {client_random for _, client_random in self._secrets}
        return f"KeyLog({len(self)} secrets of {len(sessions)} sessions)"
