"""WebRTC, as aiortc speaks it: STUN, DTLS with its secrets, SRTP, SCTP and data channels; named as tshark names it."""

from __future__ import annotations

import re
import struct
import subprocess

import pytest
from scenarios_webrtc import talk

from labkit import Lab
from labkit.capture.dissect import dissect
from labkit.capture.frames import Frame
from labkit.capture.keylog import KeyLog
from labkit.capture.pcapng import write_pcapng

HANDSHAKE_TYPES = {
    "ClientHello": 1, "ServerHello": 2, "Certificate": 11, "ServerKeyExchange": 12, "CertificateRequest": 13,
    "ServerHelloDone": 14, "CertificateVerify": 15, "ClientKeyExchange": 16, "Finished": 20,
}  # fmt: skip
CHUNK_TYPES = {
    "DATA": 0, "INIT": 1, "INIT ACK": 2, "SACK": 3, "ABORT": 6, "SHUTDOWN": 7, "COOKIE ECHO": 10, "COOKIE ACK": 11,
    "DATA_CHANNEL_OPEN": 0, "DATA_CHANNEL_ACK": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tshark(require_program):
    program = require_program("tshark")

    def run(file, *arguments: str) -> str:
        heuristics = ["--enable-heuristic", "rtp_udp", "--enable-heuristic", "rtcp_udp"]
        finished = subprocess.run(
            [program, "-r", str(file), *heuristics, *arguments], capture_output=True, text=True, timeout=60
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def test_what_two_peers_say(record):
    recording = record("webrtc")
    said = [packet.what for packet in recording.packets]
    stun = [name for name in said if name.startswith("STUN")]
    assert re.fullmatch(r"STUN Binding success response 127\.0\.0\.1:\d+", stun[1])
    first = next(number for number, name in enumerate(said) if name.startswith("ClientHello"))
    assert said[first : first + 4] == [
        "ClientHello",
        "ServerHello, Certificate, ServerKeyExchange, CertificateRequest, ServerHelloDone",
        "Certificate, ClientKeyExchange, CertificateVerify, ChangeCipherSpec, Finished",
        "ChangeCipherSpec, Finished",
    ]
    hello = recording.messages("ServerHello")[0]
    assert (hello.protocol, hello.level) == ("DTLS", "")
    assert hello.detail.startswith("DTLS 1.2 or older; ECDHE-ECDSA-AES")
    assert {m.level for m in recording.messages("Finished")} == {"application"}
    assert "SCTP DATA_CHANNEL_OPEN 'chat'" in said
    assert recording.messages("DATA_CHANNEL_OPEN")[0].detail == "stream 1, 'chat', unordered"
    texts = [m for m in recording.messages("DATA") if m.protocol == "SCTP"]
    assert [m.data for m in texts] == [b"hello", b"echo hello"]
    assert {(m.stream, m.label, m.role) for m in texts} == {(1, "SCTP DATA 1 unordered", "data")}
    sound = recording.messages("SRTP")
    assert [m.level for m in sound[:3]] == ["unknown"] * 3
    assert "payload type 96, seq " in sound[0].detail
    assert "encrypted" not in " ".join(said)


def test_between_two_hosts():
    """The secrets go where those of all sessions go, so the capture finds them."""
    with Lab(rtt_ms=4) as lab:
        with lab.capture() as capture:
            talk((lab.client.ip, lab.client), (lab.server.ip, lab.server), lab.keylog_path)
            lab.wire.settle()
        said = {packet.what for packet in capture.messages}
        assert {"ClientHello", "ChangeCipherSpec, Finished", "SCTP DATA_CHANNEL_ACK", "SCTP DATA 1 unordered"} <= said
        assert f"STUN Binding success response {lab.client.ip}" in {name.rpartition(":")[0] for name in said}
        assert {packet.transit.source for packet in capture.messages} == {"client", "server"}
        assert len({packet.flow for packet in capture.messages if packet.flow.protocol == "UDP"}) == 1


def test_without_secrets_the_outside_is_named(record):
    recording = record("webrtc")
    said = [packet.what for packet in dissect(recording.transits, KeyLog())]
    assert "ChangeCipherSpec, Handshake message (encrypted)" in said
    assert "Application data (encrypted)" in said
    assert not [name for name in said if "SCTP" in name]


def test_tshark_says_the_same(record, tshark, tmp_path):
    recording = record("webrtc")
    file = tmp_path / "webrtc.pcapng"
    write_pcapng(file, recording.frames, recording.keylog_text)
    fields = ["stun.type", "dtls.handshake.type", "rtp.seq", "rtcp.pt"]
    lines = tshark(file, "-T", "fields", *[word for field in fields for word in ("-e", field)]).splitlines()
    assert len(lines) == len(recording.packets)
    for packet, line in zip(recording.packets, lines, strict=True):
        stun, handshake, rtp, rtcp = line.split("\t")
        ours = [m for m in packet.messages if m.protocol in ("STUN", "DTLS", "SRTP", "SRTCP")]
        assert bool(stun) == any(m.protocol == "STUN" for m in ours), packet.what
        assert int(stun or "0", 0) == next((int.from_bytes(m.data[:2], "big") for m in ours if stun), 0)
        types = list(dict.fromkeys(int(kind) for kind in handshake.split(",") if kind))  # fragments: once
        assert [HANDSHAKE_TYPES[m.name] for m in ours if m.name in HANDSHAKE_TYPES] == types, packet.what
        assert [re.search(r"seq (\d+)", m.detail)[1] for m in ours if m.protocol == "SRTP"] == [rtp] * bool(rtp)
        assert [m.data[1] for m in ours if m.protocol == "SRTCP"] == [int(kind) for kind in rtcp.split(",")[:1] if kind]


def test_tshark_opens_the_same_sctp(record, tshark, tmp_path):
    """tshark 4.0 opens DTLS and does not look for SCTP inside it: what it opened is shown to it once more, as IP."""
    recording = record("webrtc")
    file, inside = tmp_path / "webrtc.pcapng", tmp_path / "sctp.pcapng"
    write_pcapng(file, recording.frames, recording.keylog_text)
    carriers = [packet for packet in recording.packets if any(m.protocol == "SCTP" for m in packet.messages)]
    assert len(carriers) > 10
    text = tshark(file, "-x", "-Y", "dtls.record.content_type == 23")
    dumps = re.split(r"^Frame \(\d+ bytes\):\n", text, flags=re.MULTILINE)[1:]
    frames = []
    for packet, both in zip(carriers, dumps, strict=True):
        dump = both.split("Decrypted DTLS")[1].split(":\n", 1)[1]
        opened = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ){1,16})", dump, re.MULTILINE)))
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(opened), 0, 0, 64, 132, 0, bytes(4), bytes(4)) + opened
        frames.append(Frame(packet.index, bytes(12) + b"\x08\x00" + ip, "a", True, 34 + len(opened)))
    write_pcapng(inside, frames)
    theirs = tshark(inside, "-T", "fields", "-e", "sctp.chunk_type").splitlines()
    ours = [",".join(str(CHUNK_TYPES[m.name]) for m in packet.messages) for packet in carriers]
    assert ours == theirs
