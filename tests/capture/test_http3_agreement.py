"""QUIC and HTTP/3 as tshark names them, packet by packet: aioquic in memory, hypercorn and aioquic in a lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pytest
from quic_in_memory import V1, V2, Peers

from labkit import Lab
from labkit.capture.dissect import dissect
from labkit.capture.frames import Frame
from labkit.capture.messages import Dissected
from labkit.capture.pcapng import write_pcapng
from labkit.services import Service

PROGRAMS = Path(__file__).resolve().parent / "programs"
QUIC_FRAMES = {
    "PING": 0x01, "ACK": 0x02, "RESET_STREAM": 0x04, "STOP_SENDING": 0x05, "NEW_TOKEN": 0x07, "STREAM": 0x08,
    "MAX_DATA": 0x10, "MAX_STREAM_DATA": 0x11, "MAX_STREAMS": 0x12, "NEW_CONNECTION_ID": 0x18,
    "RETIRE_CONNECTION_ID": 0x19, "PATH_CHALLENGE": 0x1A, "PATH_RESPONSE": 0x1B, "CONNECTION_CLOSE": 0x1C,
    "HANDSHAKE_DONE": 0x1E,
}  # fmt: skip
HTTP3_FRAMES = {
    "DATA": 0,
    "HEADERS": 1,
    "CANCEL_PUSH": 3,
    "SETTINGS": 4,
    "PUSH_PROMISE": 5,
    "GOAWAY": 7,
    "MAX_PUSH_ID": 13,
}
HTTP3_STREAMS = {"control": 0, "push": 1, "QPACK encoder": 2, "QPACK decoder": 3}
FIELDS = ["quic.frame_type", "http3.frame_type", "http3.stream_type"]
Look = Callable[[Path], list[list[list[int]]]]


@pytest.fixture
def tshark(require_program: Callable[[str], str]) -> Look:
    program = require_program("tshark")

    def look(file: Path) -> list[list[list[int]]]:
        fields = [word for field in FIELDS for word in ("-e", field)]
        done = subprocess.run([program, "-r", str(file), "-T", "fields", *fields], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        return [[[int(number, 0) for number in value.split(",") if number] for value in line] for line in lines]

    return look


def check(packets: Sequence[Dissected], theirs: list[list[list[int]]]) -> int:
    """The same frames in the same packets; returns how many frames of HTTP/3 there were."""
    assert len(packets) == len(theirs)
    count = 0
    for packet, (quic, http3, types) in zip(packets, theirs, strict=True):
        frames = groupby(packet.messages, lambda m: m.stream if m.protocol == "HTTP/3" else object())
        named = ["STREAM" if isinstance(stream, int) else next(inside).name for stream, inside in frames]
        # PADDING is left out, which tshark sees behind the packets, too; CRYPTO frames stand as TLS messages.
        seen = [0x08 if 0x08 <= kind <= 0x0F else 0x1C if kind == 0x1D else kind for kind in quic if kind not in (0, 6)]
        assert [QUIC_FRAMES[name] for name in named if name in QUIC_FRAMES] == seen, packet.what
        begun = [m for m in packet.messages if m.protocol == "HTTP/3" and m.first == packet.index]
        assert [HTTP3_FRAMES[m.name] for m in begun if m.name in HTTP3_FRAMES] == http3, packet.what
        ours = [HTTP3_STREAMS[m.name] for m in begun if m.name in HTTP3_STREAMS]
        assert [kind for kind in ours if kind in types] == types, packet.what
        count += len(http3)
    return count


def save(peers: Peers, file: Path) -> Path:
    frames = [Frame(transit.time_ns, transit.data, "client", True, len(transit.data)) for transit in peers.transits]
    write_pcapng(file, frames, peers.secrets_text)
    return file


def test_a_moved_client(tshark, tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    for path in ("/a", "/b"):
        peers.get(path, **{"x-long": "a value that a table remembers"})
        peers.talk()
    peers.client.change_connection_id()
    peers.client_at = ("198.51.100.7", 1234)
    peers.get("/moved")
    peers.talk()
    theirs = tshark(save(peers, tmp_path / "moved.pcapng"))
    assert check(dissect(peers.transits, peers.secrets), theirs) == 12


def test_hypercorn(require_program, tshark, tmp_path):
    with Lab(rtt_ms=2) as lab:
        if not lab.can("kernel"):
            pytest.skip("these programs run on hosts of a kernel's network")
        pem = tmp_path / "server.pem"
        pem.write_bytes(lab.authority.certificate_for("server.lab").private_key_and_cert_chain_pem.bytes())
        tmp_path.chmod(0o755)
        binds = ["--bind", "server.lab:8080", "--quic-bind", "server.lab:443", "--insecure-bind", "server.lab:8081"]
        command = [sys.executable, "-m", "hypercorn", "asgi_app:app", "--certfile", str(pem), "--keyfile", str(pem)]
        with Service(lab.server, [*command, *binds], ready=8081, env={"PYTHONPATH": str(PROGRAMS)}):
            client = [sys.executable, str(PROGRAMS / "http3_client.py"), "server.lab", "443", "/", "/large", "/last"]
            with lab.capture() as capture:
                lab.client.run(client).check()
        packets = capture.messages
        assert check(packets, tshark(capture.save(tmp_path / "hypercorn.pcapng"))) > 10
        messages = {id(m): m for packet in packets for m in packet.messages if m.protocol == "HTTP/3"}.values()
        assert [m.start_line for m in messages if m.role == "request"] == ["GET /", "GET /large", "GET /last"]
        assert [m.status for m in messages if m.role == "response"] == [200, 200, 200]
        asked = [dict(m.headers)["x-asked-by"] for m in messages if m.role == "request"]
        assert asked == ["aioquic"] * 3
        assert "GET /" in str(capture.ladder())


def test_version_2_after_version_1(tshark, tmp_path):
    peers = Peers(tmp_path, versions=(V2, V1), original_version=V1, supported_versions=[V2, V1])
    peers.talk()
    peers.get("/")
    peers.talk()
    theirs = tshark(save(peers, tmp_path / "v2.pcapng"))
    packets = dissect(peers.transits, peers.secrets)
    # aioquic protects the client's last Initial with the keys of version 1: neither of us opens it.
    assert check(packets, theirs) >= 5
