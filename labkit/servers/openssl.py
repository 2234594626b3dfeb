"""TLS 1.3 early data with OpenSSL: what the standard ``ssl`` module does not have.

pyOpenSSL holds contexts and connections; the calls for early data are reached through the binding that
pyOpenSSL itself uses. TLS is fed through memory buffers instead of a socket, for two reasons: a client can
collect its whole first flight (ClientHello and early data) and send it at once, and both sides can wait with
a deadline.

Sources: RFC 8446, sections 2.3, 4.2.10 and 8; SSL_read_early_data(3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trustme
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from labkit.errors import InvalidValue
from labkit.servers.authority import SMALL_GROUP, Authority, KeyLogWriter
from labkit.servers.http1 import Stream

T = TypeVar("T")
READ_BYTES = 65536
MAX_EARLY_DATA_BYTES = 16384
OP_NO_ANTI_REPLAY = 1 << 24  # SSL_OP_NO_ANTI_REPLAY, which pyOpenSSL does not name
EARLY_DATA_FAILED, EARLY_DATA_READ, EARLY_DATA_FINISHED = 0, 1, 2  # SSL_READ_EARLY_DATA_…

_lib: Any = Binding.lib
_ffi: Any = Binding.ffi


def _base_context(authority: Authority) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    Callbacks(context, authority.keylog_path)
    return context


def server_context(authority: Authority, certificate: trustme.LeafCert, *, replay_protection: bool) -> SSL.Context:
    """A context for a TLS 1.3 server whose tickets allow early data.

    Args:
        authority: for its key log.
        certificate: the server's.
        replay_protection: take each ticket for early data once. OpenSSL does it by keeping sessions in memory
            and forgetting them on use (RFC 8446, section 8.1), and calls its absence SSL_OP_NO_ANTI_REPLAY.
    """
    context = _base_context(authority)
    certificate.configure_cert(context)
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
    context.set_session_id(b"labkit")
    context.set_alpn_select_callback(
        lambda _, offered: b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS
    )
    if not replay_protection:
        context.set_options(OP_NO_ANTI_REPLAY)
    _lib.SSL_CTX_set_max_early_data(context._context, MAX_EARLY_DATA_BYTES)  # 0 by default: none
    return context


def client_context(authority: Authority, *, group: str | None = SMALL_GROUP) -> SSL.Context:
    """A context for TLS 1.3 clients that verifies servers against this authority, and no other.

    Args:
        authority: to be trusted; its key log is written.
        group: the only key exchange group to offer, for instance "X25519". None for what OpenSSL likes: since 3.5 it
            sends a key share of the post-quantum hybrid X25519MLKEM768, and one of X25519.

    Raises:
        InvalidValue: a group that OpenSSL does not know.
    """
    context = _base_context(authority)
    context.load_verify_locations(str(authority.ca_path))
    context.set_verify(SSL.VERIFY_PEER)
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    context.set_alpn_protos([b"http/1.1"])
    # OpenSSL's own choice starts with a post-quantum hybrid, whose key share makes a ClientHello of 1.5 kB.
    # With early data behind it, it would not fit into a SYN, and TCP Fast Open would save nothing.
    if group is not None and _lib.SSL_CTX_set1_curves_list(context._context, group.encode()) != 1:
        raise InvalidValue(f"key exchange group {group!r}: this OpenSSL does not know it; try {SMALL_GROUP!r}")
    return context


def max_early_data_bytes(session: SSL.Session) -> int:
    """How much early data the server allows with this session: 0 for none."""
    return int(_lib.SSL_SESSION_get_max_early_data(session._session))


class Callbacks:
    """What OpenSSL calls while it works: the key log, and the watch for the server's word on early data.

    An exception in a callback cannot pass through OpenSSL's frames of C. It is kept, and ``raise_kept`` raises it,
    so that an interrupt that arrives here is not lost.

    Attributes:
        early_data_accepted: client: whether the server took the early data, by the answer it gives in
            EncryptedExtensions (the binding has no SSL_get_early_data_status). It speaks of the context's last
            handshake; set it to False before the next.
    """

    HANDSHAKE_RECORD, ENCRYPTED_EXTENSIONS, EARLY_DATA_EXTENSION = 22, 8, 42  # RFC 8446, sections 5.1, 4 and 4.2

    def __init__(self, context: SSL.Context, keylog_path: Path) -> None:
        self.early_data_accepted = False
        self._key_log = KeyLogWriter(keylog_path)
        self._kept: list[BaseException] = []

        def keep(_kind: object, exc: BaseException, _traceback: object) -> None:
            self._kept.append(exc)

        # Kept with the context: OpenSSL calls them as long as it lives, and a collected callback ends the process.
        self._keylog = _ffi.callback("void (*)(const SSL *, const char *)", self._key, onerror=keep)
        signature = "void (*)(int, int, int, const void *, size_t, SSL *, void *)"
        self._message_seen = _ffi.callback(signature, self._message, onerror=keep)
        _lib.SSL_CTX_set_keylog_callback(context._context, self._keylog)
        _lib.SSL_CTX_set_msg_callback(context._context, self._message_seen)
        context.set_app_data(self)

    def _key(self, _ssl: Any, line: Any) -> None:
        self._key_log.write(f"{_ffi.string(line).decode('ascii')}\n")

    def _message(self, sent: int, _version: int, record: int, data: Any, length: int, _ssl: Any, _arg: Any) -> None:
        if sent or record != self.HANDSHAKE_RECORD:
            return
        message = bytes(_ffi.buffer(data, length))
        if message[0] == self.ENCRYPTED_EXTENSIONS:
            self.early_data_accepted = self.EARLY_DATA_EXTENSION in _extension_types(message[6:])

    def raise_kept(self) -> None:
        """Raise what a callback could not."""
        if self._kept:
            raise self._kept.pop()


def _extension_types(block: bytes) -> set[int]:
    """The types in a list of TLS extensions, each of them type (2 bytes), length (2 bytes) and content."""
    types, at = set(), 0
    while at + 4 <= len(block):
        types.add(int.from_bytes(block[at : at + 2], "big"))
        at += 4 + int.from_bytes(block[at + 2 : at + 4], "big")
    return types


class BioTls:
    """TLS over a connected TCP socket, by memory buffers. It reads and writes like a socket.

    Args:
        context: from ``server_context`` or ``client_context``.
        sock: a connected socket, whose own time-out bounds each wait. Closing it is the caller's business.
    """

    def __init__(self, context: SSL.Context, sock: Stream) -> None:
        self.connection = SSL.Connection(context, None)
        self.callbacks: Callbacks = context.get_app_data()
        self.sock = sock

    @property
    def alpn(self) -> str | None:
        return self.connection.get_alpn_proto_negotiated().decode("ascii") or None

    @property
    def resumed(self) -> bool:
        return bool(_lib.SSL_session_reused(self.connection._ssl))

    def take_output(self) -> bytes:
        """What TLS wants sent now."""
        output = bytearray()
        while True:
            try:
                output += self.connection.bio_read(READ_BYTES)
            except SSL.WantReadError:
                return bytes(output)

    def flush(self) -> None:
        """Send what TLS wants sent."""
        if output := self.take_output():
            self.sock.sendall(output)

    def drive(self, step: Callable[[], T]) -> T:
        """Repeat a step of TLS, feeding it from the socket, until it has what it needs.

        Raises:
            ConnectionError: the peer closed the connection in the middle.
            OpenSSL.SSL.Error: TLS failed, for instance because a certificate is not to be trusted.
        """
        while True:
            try:
                result = step()
                self.callbacks.raise_kept()
            except SSL.WantReadError:
                self.callbacks.raise_kept()
                self.flush()
                data = self.sock.recv(READ_BYTES)
                if not data:
                    raise ConnectionError("the peer closed the connection without closing TLS") from None
                self.connection.bio_write(data)
            except SSL.Error:
                self.flush()  # the alert that tells the peer why
                raise
            else:
                self.flush()
                return result

    def handshake(self) -> None:
        self.drive(self.connection.do_handshake)

    def recv(self, max_bytes: int) -> bytes:
        """As socket.recv. The end is TLS's own, close_notify; a cut connection raises ConnectionError."""
        try:
            return self.drive(lambda: self.connection.recv(max_bytes))
        except SSL.ZeroReturnError:
            return b""

    def sendall(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.flush()

    def read_early_data(self, max_bytes: int) -> bytes | None:
        """Server: the next early data; None where there is none, or no more. Call it before the handshake."""
        buffer, count = _ffi.new("char[]", max_bytes), _ffi.new("size_t *")

        def step() -> bytes | None:
            status = _lib.SSL_read_early_data(self.connection._ssl, buffer, max_bytes, count)
            if status == EARLY_DATA_FAILED:
                self.connection._raise_ssl_error(self.connection._ssl, 0)
            return bytes(_ffi.buffer(buffer, count[0])) if status == EARLY_DATA_READ else None

        return self.drive(step)

    def write_early_data(self, data: bytes) -> None:
        """Client: early data behind the ClientHello. Server: an answer before the handshake is complete.

        Nothing is sent: see ``take_output`` and ``flush``.
        """
        count = _ffi.new("size_t *")
        while data:
            if _lib.SSL_write_early_data(self.connection._ssl, data, len(data), count) != 1:
                self.connection._raise_ssl_error(self.connection._ssl, 0)
            data = data[count[0] :]

    def verify_name(self, name: str) -> None:
        """Client: send this name, and accept only a certificate that carries it (RFC 9525)."""
        encoded = name.encode("idna")
        self.connection.set_tlsext_host_name(encoded)
        parameters = _lib.SSL_get0_param(self.connection._ssl)
        if _lib.X509_VERIFY_PARAM_set1_host(parameters, encoded, len(encoded)) != 1:
            raise RuntimeError(f"OpenSSL refused to check the name {name!r}")

    def say_goodbye(self) -> None:
        """Send close_notify. OpenSSL forgets the session of a connection that is freed without it."""
        self.connection.shutdown()
        self.flush()
