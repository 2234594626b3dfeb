"""The analysers against the examples in the RFCs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import rfc_vectors as rfc
from aioquic.quic.crypto import CryptoPair

from labkit.capture.keylog import KeyLog
from labkit.capture.protocol import Datagram
from labkit.capture.quic_connection import candidate_keys
from labkit.capture.quic_packets import read_quic
from labkit.capture.tls_keys import expand_label, prf
from labkit.capture.tls_records import read_tls

CLIENT, SERVER = ("192.0.2.1", 40000), ("192.0.2.2", 443)


def quic_names(first, *answers):
    """What is found in a client's datagram, and in those that answer it."""
    sent = [Datagram(first, True, True, CLIENT, SERVER)]
    sent += [Datagram(answer, False, True, SERVER, CLIENT) for answer in answers]
    readings = read_quic(sent, KeyLog())
    assert [reading.from_client for reading in readings] == [datagram.from_client for datagram in sent]
    return [reading.found for reading in readings]


def names(messages):
    return [(message.name, message.level) for message in messages]


def test_rfc8448_simple_handshake():
    client_stream = rfc.CLIENT_HELLO + rfc.CLIENT_FINISHED + rfc.CLIENT_DATA + rfc.CLIENT_ALERT
    server_stream = rfc.SERVER_HELLO + rfc.SERVER_FLIGHT + rfc.SERVER_TICKET + rfc.SERVER_DATA + rfc.SERVER_ALERT
    client, server = read_tls(client_stream, server_stream, KeyLog.parse(rfc.KEY_LOG))
    assert names(client) == [
        ("ClientHello", ""),
        ("Finished", "handshake"),
        ("Application data", "application"),
        ("Alert close_notify", "application"),
    ]
    assert names(server) == [
        ("ServerHello", ""),
        ("EncryptedExtensions", "handshake"),
        ("Certificate", "handshake"),
        ("CertificateVerify", "handshake"),
        ("Finished", "handshake"),
        ("NewSessionTicket", "application"),
        ("Application data", "application"),
        ("Alert close_notify", "application"),
    ]
    assert client[0].detail == "SNI server; key shares: X25519"
    assert server[0].detail == "TLS 1.3; TLS_AES_128_GCM_SHA256; key share: X25519"
    assert server[2].detail == "1 certificate, 432 bytes"
    assert server[5].detail == "178 bytes, lifetime 30 s, early data allowed"
    assert client[2].data == server[6].data == bytes(range(50))
    # Section 3 gives the verify_data of both sides.
    assert client[1].data[4:].hex() == "a8ec436d677634ae525ac1fcebe11a039ec17694fac6e98527b642f2edd5ce61"
    assert server[4].data[4:].hex() == "9b9b141d906337fbd2cbdce71df4deda4ab42c309572cb7fffee5454b78f0718"
    # Every byte of the streams belongs to a message, in order.
    for messages, stream in ((client, client_stream), (server, server_stream)):
        assert messages[0].start == 0
        assert messages[-1].end == len(stream)
        assert all(before.end == after.start for before, after in pairwise(messages))


def test_rfc8448_without_secrets_names_only_the_outside():
    _, server = read_tls(rfc.CLIENT_HELLO, rfc.SERVER_HELLO + rfc.SERVER_FLIGHT, KeyLog())
    assert names(server) == [("ServerHello", ""), ("Application data (encrypted)", "unknown")]
    assert server[1].data == b""


def test_rfc8448_damaged_record_is_not_named():
    damaged = bytearray(rfc.SERVER_FLIGHT)
    damaged[100] ^= 1
    _, server = read_tls(rfc.CLIENT_HELLO, rfc.SERVER_HELLO + damaged, KeyLog.parse(rfc.KEY_LOG))
    assert names(server)[1:] == [("Application data (encrypted)", "unknown")]


def test_rfc8448_traffic_keys():
    secret = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    assert expand_label("sha256", secret, "key", 16).hex() == "3fce516009c21727d0f2e4e86ee403bc"
    assert expand_label("sha256", secret, "iv", 12).hex() == "5d313eb2671276ee13000b30"


def test_tls12_prf():
    # The test vector for P_SHA256 that the TLS working group published with RFC 5246.
    output = prf(
        "sha256",
        bytes.fromhex("9bbe436ba940f017b17652849a71db35"),
        b"test label",
        bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c"),
        100,
    )
    assert output.hex() == (
        "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14ba"
        "f9af0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a51"
        "10fff70187347b66"
    )


def test_rfc9001_initial_packets_need_no_secrets():
    client, server = quic_names(rfc.CLIENT_INITIAL, rfc.SERVER_INITIAL)
    assert [(m.protocol, m.name, m.level) for m in client] == [
        ("TLS", "ClientHello", "initial"),
        ("QUIC", "PADDING", "initial"),
    ]
    assert client[0].detail == "SNI example.com; ALPN: alpn; key shares: X25519"
    assert client[1].detail == "917 bytes"
    assert [(m.protocol, m.name, m.detail) for m in server] == [
        ("QUIC", "ACK", "0"),
        ("TLS", "ServerHello", "TLS 1.3; TLS_AES_128_GCM_SHA256; key share: X25519"),
    ]


def test_rfc9001_retry():
    _, retry = quic_names(rfc.CLIENT_INITIAL, rfc.RETRY)
    assert [(m.name, m.detail) for m in retry] == [("Retry", "token of 5 bytes")]


def test_rfc9369_initial_packets_and_retry_of_version_2():
    # A.2 protects the frames of RFC 9001's A.2 with the keys of version 2: the RFC's first and last bytes of it.
    pair, old = CryptoPair(), CryptoPair()
    connection_id = bytes.fromhex("8394c8f03e515708")
    pair.setup_initial(connection_id, is_client=True, version=0x6B3343CF)
    old.setup_initial(connection_id, is_client=False, version=1)
    _, payload, _ = old.decrypt_packet(rfc.CLIENT_INITIAL, 18, 0)
    client_initial = pair.encrypt_packet(bytes.fromhex("d36b3343cf088394c8f03e5157080000449e00000002"), payload, 2)
    assert client_initial.startswith(bytes.fromhex("d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485"))
    assert client_initial.endswith(bytes.fromhex("a18b2faa745b6fe189cf772a9f84cbfc"))
    client, server, retry = quic_names(client_initial, rfc.SERVER_INITIAL_V2, rfc.RETRY_V2)
    assert [(m.protocol, m.name, m.detail) for m in client] == [
        ("TLS", "ClientHello", "SNI example.com; ALPN: alpn; key shares: X25519"),
        ("QUIC", "PADDING", "917 bytes"),
    ]
    assert [(m.protocol, m.name, m.level) for m in server] == [
        ("QUIC", "ACK", "initial"),
        ("TLS", "ServerHello", "initial"),
    ]
    assert [(m.name, m.detail) for m in retry] == [("Retry", "token of 5 bytes")]


@pytest.mark.parametrize(
    ("version", "packet"),
    [(1, "4cfe4189655e5cd55c41f69080575d7999c25a5bfb"), (0x6B3343CF, "5558b1c60ae7b6b932bc27d786f4bc2bb20f2162ba")],
)
def test_rfc9001_and_rfc9369_packets_with_a_short_header(version, packet):
    """A.5 of both: a PING by ChaCha20-Poly1305. Of the ciphers that a secret of 32 bytes can mean, one opens it."""
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    opened = [keys.open(bytes.fromhex(packet), 1, 654360564) for keys in candidate_keys(secret, version)]
    assert opened == [None, (b"\1", 654360564)]
