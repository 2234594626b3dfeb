"""What somebody without any key does with a first flight on its way: record it, take it apart, send it again.

With the secret of its ticket they can open it, too: ``psk_of`` plays the theft, ``expand_label`` is the key schedule's.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from book.https.reading import opened
from labkit.capture.captured import Captured
from labkit.errors import InvalidValue, MeasurementFailed
from labkit.network.host import Host

if TYPE_CHECKING:
    from OpenSSL import SSL

HASH = "sha384"  # of the cipher suite that OpenSSL likes best, TLS_AES_256_GCM_SHA384
PORT = 443
WAIT_S = 10.0
HEADER = 5  # bytes of a TLS record's header, the length in the last two


def first_flight(capture: Captured) -> bytes:
    """The client's first bytes behind TCP's handshake, as somebody on the way sees them.

    Raises:
        MeasurementFailed: no connection was opened, or the client said nothing.
    """
    for packet in opened(capture):
        if packet.from_client and packet.payload:
            return packet.headers.payload
    raise MeasurementFailed("the client sent nothing behind TCP's handshake: look at the capture's ladder")


def records(stream: bytes) -> Iterator[bytes]:
    """The TLS records of a stream of bytes, with their headers."""
    while stream:
        length = HEADER + int.from_bytes(stream[3:HEADER], "big")
        yield stream[:length]
        stream = stream[length:]


def expand_label(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446, section 7.1, for sizes up to that of the hash."""
    info = size.to_bytes(2, "big")
    for part in (b"tls13 " + label, context):
        info += bytes([len(part)]) + part
    return hmac.digest(secret, info + b"\x01", HASH)[:size]


def psk_of(session: SSL.Session, context: SSL.Context) -> bytes:
    """The pre-shared key in a client's session: what a thief takes.

    Raises:
        InvalidValue: the session of a connection that was not completed.
    """
    from OpenSSL import SSL

    connection = SSL.Connection(context, None)
    connection.set_session(session)
    if (key := connection.master_key()) is None:
        raise InvalidValue(f"{session!r} holds no key: take the session of a connection that has brought a ticket")
    return key


def send_again(host: Host, flight: bytes) -> None:
    """The same bytes once more, from another host and over another connection, until the server closes it."""
    with host, socket.create_connection(("server.lab", PORT), WAIT_S) as attacker:
        attacker.sendall(flight)
        attacker.shutdown(socket.SHUT_WR)  # no more will come: the server stops waiting for the rest
        while attacker.recv(65536):  # an answer that cannot be read
            continue
