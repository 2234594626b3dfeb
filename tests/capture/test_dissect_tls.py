"""Names of TLS messages, from real handshakes of OpenSSL with itself."""

from __future__ import annotations

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.keylog import KeyLog
from labkit.errors import InvalidValue


def said(recording, sender):
    """The names of the TLS and HTTP messages of one side, in order, each once."""
    seen = {}
    for packet in recording.packets:
        if packet.from_client == (sender == "client"):
            for message in packet.messages:
                if message.protocol != "TCP":
                    seen[id(message)] = message
    return [(message.name, message.level) for message in seen.values()]


@pytest.mark.parametrize("scenario", ["tls12_aes128", "tls12_aes256", "tls12_chacha20"])
def test_tls12_full_and_resumed(record, scenario):
    full, resumed = record(scenario).connections()
    assert said(full, "client") == [
        ("ClientHello", ""),
        ("ClientKeyExchange", ""),
        ("ChangeCipherSpec", ""),
        ("Finished", "application"),
        ("GET /hello HTTP/1.1", "application"),
        ("Alert close_notify", "application"),
    ]
    assert said(full, "server") == [
        ("ServerHello", ""),
        ("Certificate", ""),
        ("ServerKeyExchange", ""),
        ("ServerHelloDone", ""),
        ("NewSessionTicket", ""),
        ("ChangeCipherSpec", ""),
        ("Finished", "application"),
        ("HTTP/1.1 200 OK", "application"),
        ("Alert close_notify", "application"),
    ]
    # Resumed, it is the server that finishes first.
    assert said(resumed, "client")[:3] == [
        ("ClientHello", ""), ("ChangeCipherSpec", ""), ("Finished", "application"),
    ]  # fmt: skip
    assert said(resumed, "server")[:3] == [
        ("ServerHello", ""), ("ChangeCipherSpec", ""), ("Finished", "application"),
    ]  # fmt: skip
    assert "session ticket" in resumed.messages("ClientHello")[0].detail
    assert resumed.messages("ServerHello")[0].detail.endswith("session resumed")
    assert "session resumed" not in full.messages("ServerHello")[0].detail
    assert full.messages("Certificate")[0].detail.startswith("1 certificate, ")
    offered, chosen = (full.messages(name)[0].hello for name in ("ClientHello", "ServerHello"))
    assert chosen.suite_name in full.messages("ServerHello")[0].detail
    assert (offered.session_ticket, chosen.key_shares) == (b"", [])
    assert resumed.messages("ClientHello")[0].hello.session_ticket
    with pytest.raises(InvalidValue, match="'Finished' is no hello"):
        _ = full.messages("Finished")[0].hello
    assert full.messages("GET /hello HTTP/1.1")[0].data.endswith(b"Host: lab.test\r\n\r\n")


def test_a_cipher_suite_that_is_not_opened_is_named_for_its_outside(record):
    full = record("tls12_cbc").connections()[0]
    assert said(full, "client") == [
        ("ClientHello", ""),
        ("ClientKeyExchange", ""),
        ("ChangeCipherSpec", ""),
        ("Handshake message (encrypted)", "unknown"),
        ("Application data (encrypted)", "unknown"),
        ("Alert (encrypted)", "unknown"),
    ]


def test_tls13_full_and_resumed(record):
    full, resumed = record("tls13").connections()
    assert said(full, "client") == [
        ("ClientHello", ""),
        ("ChangeCipherSpec", ""),
        ("Finished", "handshake"),
        ("GET /hello HTTP/1.1", "application"),
        ("Alert close_notify", "application"),
    ]
    assert said(full, "server") == [
        ("ServerHello", ""),
        ("ChangeCipherSpec", ""),
        ("EncryptedExtensions", "handshake"),
        ("Certificate", "handshake"),
        ("CertificateVerify", "handshake"),
        ("Finished", "handshake"),
        ("NewSessionTicket", "application"),
        ("NewSessionTicket", "application"),
        ("HTTP/1.1 200 OK", "application"),
        ("Alert close_notify", "application"),
    ]
    assert [name for name, _ in said(resumed, "server")[:5]] == [
        "ServerHello", "ChangeCipherSpec", "EncryptedExtensions", "Finished", "NewSessionTicket",
    ]  # fmt: skip
    (hello,) = full.messages("ClientHello")
    assert hello.detail.startswith("SNI lab.test; key shares: ")
    assert "PSK" not in hello.detail
    assert "; PSK" in resumed.messages("ClientHello")[0].detail
    assert resumed.messages("ServerHello")[0].detail.endswith("PSK accepted")


def test_hello_retry_request(record):
    full = record("tls13_retry").connections()[0]
    assert [name for name, _ in said(full, "server")[:4]] == [
        "HelloRetryRequest", "ChangeCipherSpec", "ServerHello", "EncryptedExtensions",
    ]  # fmt: skip
    assert full.messages("HelloRetryRequest")[0].detail.endswith("key share: secp384r1")
    first, second = full.messages("ClientHello")
    assert "secp384r1" not in first.detail
    assert "secp384r1" not in first.hello.key_shares
    assert full.messages("HelloRetryRequest")[0].hello.key_shares == second.hello.key_shares == ["secp384r1"]
    assert second.detail.endswith("key shares: secp384r1")
    assert ("HTTP/1.1 200 OK", "application") in said(full, "server")


def test_a_refusal_is_an_alert_by_name(record):
    (alert,) = record("tls_refused").messages("Alert unknown_ca")
    assert (alert.detail, alert.data) == ("fatal", b"\x02\x30")


def test_messages_of_one_record_are_told_apart_by_packet(record):
    """A ClientHello with a post-quantum key share does not fit one segment; neither does the server's flight."""
    full = record("early_data_rejected").connections()[0]
    (hello,) = full.messages("ClientHello")
    first, last = (packet for packet in full.packets if hello in packet.messages)
    assert (hello.first, hello.last) == (first.index, last.index)
    assert "key shares: X25519MLKEM768" in hello.detail
    assert (first.what, last.what) == ("ClientHello", "ClientHello …")
    flight = [packet for packet in full.packets if not packet.from_client and packet.payload][:2]
    assert flight[0].what.startswith("ServerHello, ChangeCipherSpec, EncryptedExtensions")
    assert flight[1].what.endswith("CertificateVerify, Finished")


# Early data --------------------------------------------------------------------------------------------


def test_early_data_accepted(record):
    full, early, replayed = record("openssl_early_data").connections()
    assert "early data allowed" in full.messages("NewSessionTicket")[0].detail
    assert said(early, "client")[:5] == [
        ("ClientHello", ""),
        ("ChangeCipherSpec", ""),
        ("GET /hello HTTP/1.1", "early"),
        ("EndOfEarlyData", "early"),
        ("Finished", "handshake"),
    ]
    assert early.messages("ClientHello")[0].detail.endswith("PSK; early_data")
    assert early.messages("EncryptedExtensions")[0].detail == "early data accepted"
    (request,) = early.messages("GET /hello HTTP/1.1")
    assert request.detail == "early data, 39 bytes"
    # OpenSSL 3.5's key share makes the ClientHello two segments: then its end comes with the early data.
    (hello,) = early.messages("ClientHello")
    assert request.first == hello.last
    end = "ClientHello" if hello.first == hello.last else "ClientHello …"
    assert early.packets[hello.last].what == f"{end}, ChangeCipherSpec, early data: GET /hello HTTP/1.1"
    # A second use of the same session could be a replay: the server does not take it up.
    assert "PSK accepted" not in replayed.messages("ServerHello")[0].detail
    assert replayed.messages("GET /hello HTTP/1.1")[0].detail == "early data, 39 bytes, rejected"
    assert replayed.messages("EndOfEarlyData") == []
    assert ("Finished", "handshake") in said(replayed, "client")


def test_early_data_rejected_though_the_session_is_resumed(record):
    early = record("early_data_rejected").connections()[1]
    assert early.messages("ServerHello")[0].detail.endswith("PSK accepted")
    assert early.messages("EncryptedExtensions")[0].detail == "early data rejected"
    rejected, repeated = early.messages("GET /hello HTTP/1.1")
    assert (rejected.level, rejected.detail) == ("early", "early data, 39 bytes, rejected")
    assert (repeated.level, repeated.detail) == ("application", "39 bytes")
    assert repeated.first > rejected.first


# Other ciphers, new keys, no keys ----------------------------------------------------------------------


def test_key_update(record):
    recording = record("openssl_key_update")
    (update,) = recording.messages("KeyUpdate")
    assert update.detail == "asks the peer to update too"
    before, after = (m for m in recording.messages("Application data") if m.data != b"\n")
    assert (before.data, after.data) == (b"before\n", b"after\n")
    assert before.first < update.first < after.first
    assert "CHACHA20" in recording.messages("ServerHello")[0].detail


def test_aes128(record):
    recording = record("openssl_aes128")
    assert "AES_128_GCM" in recording.messages("ServerHello")[0].detail
    assert [m.data for m in recording.messages("Application data")] == [b"some data\n"]


@pytest.mark.parametrize("scenario", ["tls12_aes128", "tls13", "tls13_retry", "openssl_early_data"])
def test_without_secrets_nothing_encrypted_is_named(record, scenario):
    recording = record(scenario)
    inside = {"EncryptedExtensions", "CertificateVerify", "Finished", "GET /hello HTTP/1.1", "HTTP/1.1 200 OK"}
    packets = dissect(recording.transits, KeyLog())
    names = {message.name for packet in packets for message in packet.messages}
    assert "ClientHello" in names
    assert "Application data (encrypted)" in names
    assert not names & inside
    for packet in packets:
        for message in packet.messages:
            assert (message.level == "unknown") == ("(encrypted)" in message.name)
            assert message.level != "unknown" or message.data == b""
    assert [p.label for p in packets] == [p.label for p in recording.packets]


def test_a_capture_that_begins_after_the_handshake(record):
    recording = record("tls13").connections()[0]
    (request,) = recording.messages("GET /hello HTTP/1.1")
    packets = dissect(recording.transits[request.first :], recording.secrets)
    assert packets[0].what == "Application data (encrypted)"
    assert packets[0].from_client


def test_tls_after_something_else_in_the_same_connection(record):
    recording = record("tls_through_proxy")
    assert recording.lines[2:5] == ["> CONNECT lab.test:443 HTTP/1.1", "< HTTP/1.1 200 OK", "> ClientHello"]
    assert "> GET /hello HTTP/1.1" in recording.lines
