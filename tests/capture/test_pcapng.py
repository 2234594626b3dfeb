"""pcapng files, read back block by block; and by tshark, which shows the same messages as ``dissect``."""

from __future__ import annotations

import io
import struct
import subprocess
from itertools import groupby

import pytest

from labkit.capture.frames import Frame
from labkit.capture.pcapng import write_pcapng


def blocks(content: bytes) -> list[tuple[int, bytes]]:
    found, position = [], 0
    while position < len(content):
        kind, length = struct.unpack_from("<II", content, position)
        assert length % 4 == 0
        assert struct.unpack_from("<I", content, position + length - 4) == (length,)
        found.append((kind, content[position + 8 : position + length - 4]))
        position += length
    return found


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert data == bytes(4)
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]
    return found


FRAMES = [
    Frame(1_700_000_000_123_456_789, b"one", "client", True, 3),
    Frame(1_700_000_000_123_456_800, b"one", "server", False, 3),
    Frame(1_700_000_000_200_000_000, b"three!!", "server", True, 1500),
    Frame(1_700_000_000_300_000_000, b"unseen", "client", False, 6),
]


def test_blocks():
    file = io.BytesIO()
    written = write_pcapng(file, FRAMES, "CLIENT_RANDOM 00 00\n", interfaces={"server": "the right one"})
    assert written == 3
    section, client, server, secrets, *packets = blocks(file.getvalue())
    assert section[0] == 0x0A0D0D0A
    assert section[1][:16] == struct.pack("<IHHQ", 0x1A2B3C4D, 1, 0, 2**64 - 1)
    assert [client[0], server[0], secrets[0]] == [1, 1, 10]
    assert struct.unpack_from("<HHI", client[1]) == (1, 0, 0)
    assert options(client[1][8:]) == {2: b"client", 9: b"\x09"}
    assert options(server[1][8:]) == {2: b"server", 3: b"the right one", 9: b"\x09"}
    assert secrets[1] == struct.pack("<II", 0x544C534B, 20) + b"CLIENT_RANDOM 00 00\n"
    seen = []
    for kind, body in packets:
        assert kind == 6
        interface, high, low, captured, length = struct.unpack_from("<IIIII", body)
        data = body[20 : 20 + captured]
        direction = struct.unpack("<I", options(body[20 + captured + -captured % 4 :])[2])
        seen.append((interface, (high << 32) + low, data, length, *direction))
    assert seen == [
        (0, FRAMES[0].time_ns, b"one", 3, 2),
        (1, FRAMES[2].time_ns, b"three!!", 1500, 2),
        (0, FRAMES[3].time_ns, b"unseen", 6, 1),  # its sending was not seen
    ]


def test_arrivals_too():
    file = io.BytesIO()
    assert write_pcapng(file, FRAMES, arrivals=True) == 4
    assert [kind for kind, _ in blocks(file.getvalue())] == [0x0A0D0D0A, 1, 1, 6, 6, 6, 6]


def test_path(tmp_path):
    target = tmp_path / "capture.pcapng"
    write_pcapng(target, FRAMES)
    write_pcapng(str(target), FRAMES)  # writing again replaces the file
    assert len(blocks(target.read_bytes())) == 6
    with pytest.raises(OSError, match="No such file"):
        write_pcapng(tmp_path / "nowhere" / "x.pcapng", FRAMES)


# tshark ------------------------------------------------------------------------------------------------

TYPES = {
    "ClientHello": 1, "ServerHello": 2, "HelloRetryRequest": 2, "NewSessionTicket": 4, "EndOfEarlyData": 5,
    "EncryptedExtensions": 8, "Certificate": 11, "ServerKeyExchange": 12, "ServerHelloDone": 14,
    "CertificateVerify": 15, "ClientKeyExchange": 16, "Finished": 20, "KeyUpdate": 24,
}  # fmt: skip
QUIC_TYPES = {
    "PADDING": 0x00, "PING": 0x01, "ACK": 0x02, "RETIRE_CONNECTION_ID": 0x19, "NEW_CONNECTION_ID": 0x18,
    "CONNECTION_CLOSE": 0x1C, "HANDSHAKE_DONE": 0x1E, "MAX_DATA": 0x10, "MAX_STREAM_DATA": 0x11,
    "MAX_STREAMS": 0x12, "STREAM": 0x08, "NEW_TOKEN": 0x07,
}  # fmt: skip


@pytest.fixture
def tshark(require_program, tmp_path):
    program = require_program("tshark")

    def read(recording, *fields: str, secrets: bool = True) -> list[list[str]]:
        file = tmp_path / "capture.pcapng"
        write_pcapng(file, recording.frames, recording.keylog_text if secrets else "")
        arguments = [argument for field in ("frame.number", *fields) for argument in ("-e", field)]
        finished = subprocess.run(
            [program, "-r", str(file), "-T", "fields", *arguments], capture_output=True, text=True, timeout=60
        )
        assert finished.returncode == 0, finished.stderr
        return [line.split("\t") for line in finished.stdout.splitlines()]

    return read


def numbers(field: str) -> list[int]:
    return [int(value, 0) for value in field.split(",") if value]


@pytest.mark.parametrize(
    "scenario",
    [
        "tls12_aes128", "tls12_aes256", "tls12_chacha20", "tls13", "tls13_retry", "openssl_early_data",
        "openssl_key_update", "openssl_aes128", "tls_refused",
        "quic", "quic_early", "quic_early_rejected", "quic_key_update", "quic_chacha20",
    ],
)  # fmt: skip
def test_tshark_sees_the_same_handshake_messages(record, tshark, scenario):
    recording = record(scenario)
    ours = handshake_messages(recording)
    assert ours == their_handshake_messages(tshark, recording)
    assert len(ours) >= 5


def handshake_messages(recording) -> list[tuple[int, int]]:
    return [
        (packet.index + 1, TYPES[message.name])
        for packet in recording.packets
        for message in packet.messages
        if message.name in TYPES and message.last == packet.index  # Wireshark names a message where it ends
    ]


def their_handshake_messages(tshark, recording) -> list[tuple[int, int]]:
    rows = tshark(recording, "tls.handshake.type")
    return [(int(number), kind) for number, types in rows for kind in numbers(types)]


def test_tshark_cannot_know_that_a_packet_was_lost(record, tshark):
    """A file from the wire holds the lost ClientHello too, and Wireshark takes it for delivered."""
    recording = record("lost_client_hello")
    ours, theirs = handshake_messages(recording), their_handshake_messages(tshark, recording)
    assert [kind for _, kind in ours] == [kind for _, kind in theirs]
    assert ours[1:] == theirs[1:]
    assert recording.packets[theirs[0][0] - 1].lost
    # Captured on the server's side, the lost packet is not there.
    at_server = type(recording)([f for f in recording.frames if f.host == "server"], recording.keylog_text)
    assert handshake_messages(at_server) == their_handshake_messages(tshark, at_server)


@pytest.mark.parametrize("scenario", ["quic", "quic_early", "quic_early_rejected", "quic_key_update"])
def test_tshark_sees_the_same_quic_frames(record, tshark, scenario):
    # Not with a Retry: Wireshark 4.0 opens no Handshake packet after one.
    recording = record(scenario)
    for number, types in tshark(recording, "quic.frame_type"):
        packet = recording.packets[int(number) - 1]
        theirs = [0x08 if 0x08 <= kind <= 0x0F else kind for kind in numbers(types) if kind != 0x06]
        theirs = [0x1C if kind == 0x1D else kind for kind in theirs]
        # A STREAM frame stands as the HTTP/3 messages in it.
        frames = groupby(packet.messages, lambda m: m.stream if m.protocol == "HTTP/3" else object())
        named = ["STREAM" if isinstance(frame, int) else next(inside).name for frame, inside in frames]
        ours = [QUIC_TYPES[name] for name in named if name in QUIC_TYPES]
        assert ours == theirs, packet.what


@pytest.mark.parametrize("scenario", ["http", "tls12_aes128", "tls12_chacha20", "tls13", "tls13_retry", "fast_open"])
def test_tshark_decrypts_the_same_http(record, tshark, scenario):
    recording = record(scenario)
    if scenario == "fast_open":  # not the third: Wireshark takes data in a SYN for accepted, always
        recording = recording.connections()[1]
    # Newer ones (4.4, not 4.0) name with a response the URI that it answers, in the same field.
    theirs = [
        (int(number), uri if method else status)
        for number, method, uri, status in tshark(
            recording, "http.request.method", "http.request.uri", "http.response.code"
        )
        if method or status
    ]
    ours = [
        (message.last + 1, message.name.split()[1])
        for packet in recording.packets
        for message in packet.messages
        if message.protocol == "HTTP" and message.last == packet.index
    ]
    assert {text for _, text in ours} == {"/hello", "200"}
    assert ours == theirs


def test_tshark_without_secrets_sees_less(record, tshark):
    types = [
        kind for _, field in tshark(record("tls13"), "tls.handshake.type", secrets=False) for kind in numbers(field)
    ]
    assert set(types) == {1, 2}


def test_tshark_reads_times_and_names(record, tshark):
    recording = record("http")
    rows = tshark(recording, "frame.time_epoch", "frame.interface_name")
    sent = [frame for frame in recording.frames if frame.sent]
    assert [(epoch.replace(".", ""), name) for _, epoch, name in rows] == [
        (str(frame.time_ns), frame.host) for frame in sent
    ]


def test_tshark_marks_the_same_retransmissions(record, tshark):
    for scenario in ("lost_request", "lost_client_hello"):
        recording = record(scenario)
        rows = tshark(recording, "tcp.analysis.retransmission")
        theirs = [int(number) for number, mark in rows if mark]
        assert theirs == [packet.index + 1 for packet in recording.packets if packet.retransmission]
