"""Conversations over TLS: the ssl module, the openssl programs, pyOpenSSL. Every function takes a ``Recorder``."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trustme
from peers import DEADLINE_S, REQUEST, answer, ask, connect, listen, read_until, serving
from recorder import Recorder, wait_until


def tls_contexts(
    recorder: Recorder, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, ciphers: str = ""
) -> tuple[trustme.CA, ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.create_default_context()
    authority.issue_cert("lab.test").configure_cert(server)
    authority.configure_trust(client)
    client.keylog_filename = str(recorder.keylog)
    for context in (server, client):
        context.minimum_version = context.maximum_version = version
        if ciphers:
            context.set_ciphers(ciphers)
    return authority, server, client


def tls_twice(recorder: Recorder, version: ssl.TLSVersion, ciphers: str = "", curve: str = "") -> None:
    """A full handshake, then one that resumes its session."""
    _, server_context, client_context = tls_contexts(recorder, version, ciphers)
    if curve:
        server_context.set_ecdh_curve(curve)

    def serve(connection: socket.socket) -> None:
        with server_context.wrap_socket(connection, server_side=True) as encrypted:
            answer(encrypted)
            with contextlib.suppress(OSError):
                encrypted.unwrap().close()

    session = None
    with serving(listen(recorder), serve, times=2):
        for _ in range(2):
            client = connect(recorder)
            with client_context.wrap_socket(client, server_hostname="lab.test", session=session) as encrypted:
                ask(encrypted)
                assert encrypted.session_reused == (session is not None)
                session = encrypted.session
                encrypted.unwrap().close()


def tls12_aes128(recorder: Recorder) -> None:
    tls_twice(recorder, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256")


def tls12_aes256(recorder: Recorder) -> None:
    tls_twice(recorder, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384")


def tls12_chacha20(recorder: Recorder) -> None:
    tls_twice(recorder, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305")


def tls12_cbc(recorder: Recorder) -> None:
    """A cipher suite that is not opened: its records must be named for their outside only."""
    tls_twice(recorder, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA")


def tls13(recorder: Recorder) -> None:
    tls_twice(recorder, ssl.TLSVersion.TLSv1_3)


def tls13_large(recorder: Recorder) -> None:
    """Some two thousand packets of encrypted data, as fast as the recorder can write them down."""
    _, server_context, client_context = tls_contexts(recorder)
    pieces = 260

    def serve(connection: socket.socket) -> None:
        with server_context.wrap_socket(connection, server_side=True) as encrypted:
            for _ in range(pieces):
                encrypted.sendall(bytes(10_000))
                encrypted.recv(1)

    with (
        serving(listen(recorder), serve),
        connect(recorder) as client,
        client_context.wrap_socket(client, server_hostname="lab.test") as encrypted,
    ):
        for _ in range(pieces):
            received = 0
            while received < 10_000:
                received += len(encrypted.recv(65536))
            recorder.catch_up()
            encrypted.sendall(b"+")


def tls13_retry(recorder: Recorder) -> None:
    """The server wants another key share than the client sent."""
    tls_twice(recorder, ssl.TLSVersion.TLSv1_3, curve="secp384r1")


def tls_through_proxy(recorder: Recorder) -> None:
    """TLS begins in the middle of a connection, after a CONNECT in the clear."""
    _, server_context, client_context = tls_contexts(recorder)

    def serve(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with server_context.wrap_socket(connection, server_side=True) as encrypted:
            answer(encrypted)

    with serving(listen(recorder), serve), connect(recorder) as client:
        client.sendall(b"CONNECT lab.test:443 HTTP/1.1\r\n\r\n")
        read_until(client, b"\r\n\r\n")
        with client_context.wrap_socket(client, server_hostname="lab.test") as encrypted:
            ask(encrypted)


def tls_refused(recorder: Recorder) -> None:
    """The client does not know the server's authority, and says so in an alert."""
    _, server_context, client_context = tls_contexts(recorder)
    stranger = ssl.create_default_context()
    stranger.keylog_filename = client_context.keylog_filename

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), server_context.wrap_socket(connection, server_side=True):
            pass

    with serving(listen(recorder), serve), connect(recorder) as client, contextlib.suppress(ssl.SSLError):
        stranger.wrap_socket(client, server_hostname="lab.test")


def lost_client_hello(recorder: Recorder) -> None:
    """The first copy of a ClientHello is lost, all of its segments."""
    _, server_context, client_context = tls_contexts(recorder)
    accepted, connections = threading.Event(), []

    def serve(connection: socket.socket) -> None:
        connections.append(connection.dup())  # wrapping takes the descriptor away
        accepted.set()
        with server_context.wrap_socket(connection, server_side=True) as encrypted:
            answer(encrypted)

    with serving(listen(recorder), serve), connect(recorder) as client:
        accepted.wait(DEADLINE_S)
        encrypted = client_context.wrap_socket(client, server_hostname="lab.test", do_handshake_on_connect=False)
        encrypted.setblocking(False)
        with recorder.losing(connections[0], encrypted):
            with contextlib.suppress(ssl.SSLWantReadError):
                encrypted.do_handshake()
        encrypted.settimeout(DEADLINE_S)
        with encrypted, connections[0]:
            encrypted.do_handshake()
            ask(encrypted)


# TLS with the openssl programs -------------------------------------------------------------------------


@contextlib.contextmanager
def openssl_server(recorder: Recorder, *options: str) -> Iterator[None]:
    certificate, key = recorder.folder / "server.pem", recorder.folder / "server.key"
    issued = trustme.CA().issue_cert("lab.test")
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    command = ["openssl", "s_server", "-accept", str(recorder.port), "-cert", str(certificate), "-key", str(key)]
    server = subprocess.Popen(
        [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert server.stdout is not None
    while b"ACCEPT" not in (line := server.stdout.readline()):
        assert line, "openssl s_server did not start"
    try:
        yield
    finally:
        server.terminate()
        server.communicate()


def openssl_client(recorder: Recorder, *options: str, say: bytes = b"") -> Path:
    """Run ``openssl s_client``; it takes what it reads as commands, so a line "K" updates the keys.

    Returns:
        the file with its session.
    """
    session = Path(tempfile.mkdtemp(dir=recorder.folder), "session.pem")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{recorder.port}", "-servername", "lab.test"]
    client = subprocess.Popen(
        [*command, "-keylogfile", str(recorder.keylog), "-sess_out", str(session), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert client.stdin is not None
    wait_until(lambda: session.exists() and b"END" in session.read_bytes())  # the handshake is over, a ticket is there
    for line in [*say.splitlines(keepends=True), b"Q\n"]:
        client.stdin.write(line)
        client.stdin.flush()
        wait_until(lambda: not unread(client.stdin))  # a command must come in a read of its own
    client.communicate(timeout=DEADLINE_S)
    return session


def unread(pipe: Any) -> int:
    """Bytes in a pipe that its reader has not taken."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def openssl_early_data(recorder: Recorder) -> None:
    """Early data accepted, then the same session a second time: rejected, for it could be a replay."""
    early = recorder.folder / "early.txt"
    early.write_bytes(REQUEST)
    with openssl_server(recorder, "-early_data", "-tls1_3"):
        session = openssl_client(recorder)
        for _ in range(2):
            openssl_client(recorder, "-sess_in", str(session), "-early_data", str(early))


def openssl_key_update(recorder: Recorder) -> None:
    with openssl_server(recorder, "-tls1_3"):
        openssl_client(recorder, "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", say=b"before\nK\nafter\n")


def openssl_aes128(recorder: Recorder) -> None:
    with openssl_server(recorder, "-tls1_3"):
        openssl_client(recorder, "-ciphersuites", "TLS_AES_128_GCM_SHA256", say=b"some data\n")


# Early data that the server rejects though it takes the session up: pyOpenSSL -----------------------------


def early_data_rejected(recorder: Recorder) -> None:
    """The server changes its mind about early data between the two connections of a client."""
    from cryptography.hazmat.bindings.openssl.binding import Binding
    from OpenSSL import SSL

    binding = Binding()
    lib, ffi = binding.lib, binding.ffi
    authority = trustme.CA()
    server_context, client_context = SSL.Context(SSL.TLS_METHOD), SSL.Context(SSL.TLS_METHOD)
    authority.issue_cert("lab.test").configure_cert(server_context)
    server_context.set_session_id(b"lab")
    # Without OpenSSL's own protection against replays a ticket holds the session: the server keeps nothing.
    no_anti_replay = 1 << 24
    server_context.set_options(no_anti_replay)
    lib.SSL_CTX_set_max_early_data(server_context._context, 16384)

    def log_key(_: SSL.Connection, line: bytes) -> None:
        with recorder.keylog.open("ab") as keylog:
            keylog.write(line + b"\n")

    client_context.set_keylog_callback(log_key)
    session: Any = None

    def serve(connection: socket.socket) -> None:
        connection.setblocking(True)
        encrypted = SSL.Connection(server_context, connection)
        encrypted.set_accept_state()
        encrypted.do_handshake()
        answer(encrypted)
        encrypted.shutdown()

    with serving(listen(recorder), serve, times=2):
        for _ in range(2):
            raw = connect(recorder)
            raw.setblocking(True)
            encrypted = SSL.Connection(client_context, raw)
            encrypted.set_tlsext_host_name(b"lab.test")
            encrypted.set_connect_state()
            if session is not None:
                encrypted.set_session(session)
                written = ffi.new("size_t *")
                assert lib.SSL_write_early_data(encrypted._ssl, REQUEST, len(REQUEST), written) == 1
            encrypted.do_handshake()
            ask(encrypted)
            session = encrypted.get_session()
            lib.SSL_CTX_set_max_early_data(server_context._context, 0)
            encrypted.shutdown()
            raw.close()
