"""Names of QUIC packets, frames and TLS messages, from real connections of aioquic with itself."""

from __future__ import annotations

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog

HANDSHAKE = "Handshake: CRYPTO[EncryptedExtensions, Certificate, CertificateVerify, Finished]"


def streams(recording, stream):
    """The messages on one stream, each once: what a ladder shows, detail and level."""
    found = {id(m): m for packet in recording.packets for m in packet.messages if m.stream == stream}
    return [(m.label or m.name, m.detail, m.level) for m in found.values()]


@pytest.mark.parametrize("scenario", ["quic", "quic_aes128", "quic_chacha20"])
def test_a_full_handshake(record, scenario):
    recording = record(scenario)
    first, second = recording.packets[:2]
    assert first.what.startswith("Initial: CRYPTO[ClientHello]")
    assert (first.label, first.flow.protocol, first.payload) == ("datagram", "UDP", 1200)
    assert second.what.startswith(f"Initial: ACK, CRYPTO[ServerHello] + {HANDSHAKE} + 1-RTT: ")
    assert [(m.name, m.level) for m in second.messages][:6] == [
        ("ACK", "initial"),
        ("ServerHello", "initial"),
        ("EncryptedExtensions", "handshake"),
        ("Certificate", "handshake"),
        ("CertificateVerify", "handshake"),
        ("Finished", "handshake"),
    ]
    assert first.messages[0].detail.startswith("SNI lab.test; ALPN: h3; key shares: ")
    assert second.messages[2].detail == "ALPN: h3"
    cipher = {"quic": "AES_256_GCM", "quic_aes128": "AES_128_GCM", "quic_chacha20": "CHACHA20"}[scenario]
    assert cipher in second.messages[1].detail
    assert recording.messages("HANDSHAKE_DONE")[0].level == "application"
    assert not [m for p in recording.packets for m in p.messages if "encrypted" in m.name]


def test_http3(record):
    recording = record("quic")
    request, head, *body = streams(recording, 0)
    assert request[0] == "GET /"
    assert request[1].startswith("stream 0, request, ")
    assert request[1].endswith(" bytes, fin")
    assert head[0] == "200"
    assert head[1].startswith("stream 0, response, ")
    assert [name for name, _, _ in body] == ["DATA"]
    assert body[0][1] == "stream 0, response, 2500 bytes, fin"
    (asked, answered) = recording.messages("HEADERS")
    assert (asked.role, asked.start_line, asked.status) == ("request", "GET /", None)
    assert (":authority", "lab.test") in asked.headers
    assert (answered.role, answered.status, answered.headers) == ("response", 200, ((":status", "200"),))
    (data,) = recording.messages("DATA")
    assert (data.data, data.fin, data.stream, data.last > data.first) == (b"hello" * 500, True, 0, True)
    assert [name for name, _, _ in streams(recording, 2)] == ["control", "SETTINGS", "MAX_PUSH_ID"]
    assert "QPACK_MAX_TABLE_CAPACITY 4096" in streams(recording, 2)[1][1]
    assert [name for name, _, _ in streams(recording, 3)] == ["control", "SETTINGS"]
    assert {streams(recording, number)[0][0] for number in (6, 10)} == {"QPACK encoder", "QPACK decoder"}
    assert "STREAM 0[DATA …]" in recording.packets[data.last].what  # behind an ACK, where a pause left one to send


def test_zero_rtt(record):
    recording = record("quic_early")
    full, early = recording.connections()
    assert full.messages("NewSessionTicket")[0].level == "application"
    first = early.packets[0]
    assert first.what.startswith("Initial: CRYPTO[ClientHello] + 0-RTT: STREAM ")
    assert "STREAM 0" in first.what
    assert early.messages("EncryptedExtensions")[0].detail == "ALPN: h3; early data accepted"
    assert streams(early, 0)[0][::2] == ("GET /", "early")
    assert "rejected" not in streams(early, 0)[0][1]
    assert streams(early, 0)[1][0] == "200"


def test_zero_rtt_rejected(record):
    early = record("quic_early_rejected").connections()[1]
    assert early.messages("EncryptedExtensions")[0].detail == "ALPN: h3; early data rejected"
    (name, rejected, level), (again, repeated, later), *_ = streams(early, 0)
    assert (name, level, again, later) == ("GET /", "early", "GET /", "application")
    assert rejected.endswith("fin, rejected")
    assert repeated.endswith("bytes, fin")


def test_retry(record):
    recording = record("quic_retry")
    assert [packet.what.split("]")[0] for packet in recording.packets[:4]] == [
        "Initial: CRYPTO[ClientHello",
        "Retry",
        "Initial: CRYPTO[ClientHello",
        "Initial: ACK, CRYPTO[ServerHello",
    ]
    assert streams(recording, 0)


def test_keys_are_updated(record):
    recording = record("quic_key_update")
    assert streams(recording, 4)[0][1].startswith("stream 4, request")
    assert not [m for p in recording.packets for m in p.messages if "encrypted" in m.name]


def test_without_secrets_only_initial_packets_are_open(record):
    recording = record("quic_early")
    packets = dissect(recording.transits, KeyLog())
    assert packets[0].what == recording.packets[0].what
    assert packets[1].what.startswith("Initial: ACK, CRYPTO[ServerHello] + Handshake: Handshake packet (encrypted)")
    names = {(m.name, m.level) for p in packets for m in p.messages if m.level not in ("", "initial")}
    assert names == {
        ("0-RTT packet (encrypted)", "early"),
        ("Handshake packet (encrypted)", "handshake"),
        ("1-RTT packet (encrypted)", "application"),
    }


def lose(transit: Transit) -> Transit:
    return Transit(transit.sent_ns, None, transit.source, "", transit.data)


def test_a_client_hello_that_is_lost_and_sent_again(record):
    """The first datagram is lost; a second one with the same bytes arrives."""
    recording = record("quic")
    first = recording.transits[0]
    packets = dissect([lose(first), *recording.transits], recording.secrets)
    lost, again = packets[:2]
    assert lost.lost
    assert lost.messages[0].name == again.messages[0].name == "ClientHello"
    assert again.messages[0].first == again.messages[0].last == 1
    assert [p.what for p in packets[1:]] == [p.what for p in recording.packets]


def test_a_short_header_before_any_long_one_is_a_datagram(record):
    recording = record("quic")
    packets = dissect(recording.transits[4:], recording.secrets)
    assert {packet.what for packet in packets} == {"datagram"}
