"""Names for TLS handshake messages, and what stands in them: "ClientHello", "SNI server; key shares: X25519".

Sources: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 6066 and 7301 (server name, ALPN), RFC 5077 (tickets).
"""

from __future__ import annotations

from collections.abc import Iterator

from labkit.capture.fields import Cursor, Truncated, printable
from labkit.capture.tls_session import (
    ALPN,
    CLIENT_HELLO,
    EARLY_DATA,
    ENCRYPTED_EXTENSIONS,
    KEY_SHARE,
    PRE_SHARED_KEY,
    SERVER_HELLO,
    SERVER_NAME,
    Hello,
    Session,
    protocol_names,
    read_extensions,
)

NEW_SESSION_TICKET, CERTIFICATE, KEY_UPDATE = 4, 11, 24
_HANDSHAKE_NAMES = {
    0: "HelloRequest", CLIENT_HELLO: "ClientHello", SERVER_HELLO: "ServerHello",
    3: "HelloVerifyRequest", NEW_SESSION_TICKET: "NewSessionTicket", 5: "EndOfEarlyData",
    ENCRYPTED_EXTENSIONS: "EncryptedExtensions", CERTIFICATE: "Certificate", 12: "ServerKeyExchange",
    13: "CertificateRequest", 14: "ServerHelloDone", 15: "CertificateVerify", 16: "ClientKeyExchange",
    20: "Finished", 22: "CertificateStatus", KEY_UPDATE: "KeyUpdate", 25: "CompressedCertificate",
}  # fmt: skip


def split_handshake(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, type and body of each complete handshake message in ``data``."""
    position = 0
    while position + 4 <= len(data):
        end = position + 4 + int.from_bytes(data[position + 1 : position + 4], "big")
        if end > len(data):
            return
        yield position, data[position], data[position + 4 : end]
        position = end


def handshake_name(kind: int) -> str:
    """Name a type of handshake message."""
    return _HANDSHAKE_NAMES.get(kind, f"handshake message {kind}")


def describe_handshake(kind: int, body: bytes, session: Session) -> tuple[str, str]:
    """Name one handshake message.

    Args:
        kind: the HandshakeType.
        body: the message without its four bytes of header.
        session: what is agreed on; the same message has other fields in TLS 1.2 than in 1.3.

    Returns:
        name and detail. A message that cannot be read is "malformed ...".
    """
    name = handshake_name(kind)
    try:
        if kind == CLIENT_HELLO:
            return name, _client_hello_detail(Hello.parse(body, from_client=True))
        if kind == SERVER_HELLO:
            hello = Hello.parse(body, from_client=False)
            return "HelloRetryRequest" if hello.is_retry else name, _server_hello_detail(hello, session)
        if kind == ENCRYPTED_EXTENSIONS:
            return name, _encrypted_extensions_detail(read_extensions(Cursor(body)), session)
        if kind == CERTIFICATE:
            return name, _certificate_detail(Cursor(body), session)
        if kind == NEW_SESSION_TICKET:
            return name, _ticket_detail(Cursor(body), session)
        if kind == KEY_UPDATE:
            return name, "asks the peer to update too" if body == b"\1" else ""
    except Truncated:
        return f"malformed {name}", f"{len(body)} bytes"
    return name, f"{len(body)} bytes" if body else ""


def _client_hello_detail(hello: Hello) -> str:
    extensions, details = hello.extensions, []
    if SERVER_NAME in extensions:
        names = Cursor(extensions[SERVER_NAME])
        names.take(3)  # length of the list, type of the name
        details.append("SNI " + printable(names.vector(2)))
    if ALPN in extensions:
        details.append("ALPN: " + ", ".join(protocol_names(extensions[ALPN])))
    if KEY_SHARE in extensions:
        details.append("key shares: " + (", ".join(hello.key_shares) or "none"))
    if hello.session_ticket:
        details.append(f"session ticket, {len(hello.session_ticket)} bytes")
    if PRE_SHARED_KEY in extensions:
        details.append("PSK")
    if EARLY_DATA in extensions:
        details.append("early_data")
    return "; ".join(details)


def _server_hello_detail(hello: Hello, session: Session) -> str:
    details = [("DTLS" if session.datagrams else "TLS") + (" 1.3" if hello.tls13 else " 1.2 or older")]
    details.append(hello.suite_name)
    if KEY_SHARE in hello.extensions:
        details.append("key share: " + ", ".join(hello.key_shares))
    if PRE_SHARED_KEY in hello.extensions:
        details.append("PSK accepted")
    # TLS 1.2 agrees to resume by repeating the client's session ID (TLS 1.3 repeats it without a meaning).
    elif session.client and not hello.tls13 and hello.session_id == session.client.session_id != b"":
        details.append("session resumed")
    return "; ".join(details)


def _encrypted_extensions_detail(extensions: dict[int, bytes], session: Session) -> str:
    details = []
    if ALPN in extensions:
        details.append("ALPN: " + ", ".join(protocol_names(extensions[ALPN])))
    if EARLY_DATA in extensions:
        details.append("early data accepted")
    elif session.early_offered:
        details.append("early data rejected")
    return "; ".join(details)


def _certificate_detail(body: Cursor, session: Session) -> str:
    if session.tls13:
        body.vector(1)  # certificate_request_context
    certificates, count, size = Cursor(body.vector(3)), 0, 0
    while certificates.left:
        size += len(certificates.vector(3))
        count += 1
        if session.tls13:
            certificates.vector(2)  # extensions of this certificate
    return f"{count} certificate{'' if count == 1 else 's'}, {size} bytes"


def _ticket_detail(body: Cursor, session: Session) -> str:
    lifetime_s, early = body.number(4), None
    if session.tls13:
        body.take(4)  # ticket_age_add
        body.vector(1)  # ticket_nonce
    size = len(body.vector(2))
    if session.tls13:
        early = read_extensions(body).get(EARLY_DATA)
    return f"{size} bytes, lifetime {lifetime_s} s" + (", early data allowed" if early else "")
