"""What other people's programs say to each other in a lab, as we name it and as tshark does, message by message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.capture.capture import Capture
from labkit.capture.dissect import dissect
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Message
from labkit.services import Envoy, Nginx, Service

PROGRAMS = Path(__file__).resolve().parent / "programs"
NGINX = """\
server {{ listen server.lab:443 ssl http2; ssl_certificate {pem}; ssl_certificate_key {pem};
          location / {{ return 200 "hello"; }} location /large {{ root {root}; }} }}
server {{ listen server.lab:8081; location / {{ return 200 "hello"; }} location /large {{ root {root}; }} }}
"""
TYPES = [
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE",
    "CONTINUATION",
]  # fmt: skip
OPCODES = {"continuation": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
FIELDS = [
    "frame.number", "http2.type", "http2.streamid", "http2.headers.method", "http2.headers.path",
    "http2.headers.status", "http2.rst_stream.error", "grpc.message_length", "http.request.method", "http.request.uri",
    "http.response.code", "websocket.opcode", "websocket.fin",
]  # fmt: skip
Look = Callable[[Capture, int], list[dict[str, list[str]]]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=2) as lab:
        if not lab.can("kernel"):
            pytest.skip("these programs run on hosts of a kernel's network")
        yield lab


@pytest.fixture
def tshark(require_program: Callable[[str], str], tmp_path: Path) -> Look:
    """``tshark(capture, port)``: its fields of each packet; HTTP/2 in the clear is on this port."""
    program = require_program("tshark")

    def look(capture: Capture, port: int) -> list[dict[str, list[str]]]:
        file = tmp_path / "capture.pcapng"
        capture.save(file)
        fields = [word for field in FIELDS for word in ("-e", field)]
        known = ["-d", f"tcp.port=={port},http2"] if port else []
        command = [program, "-2", "-n", "-r", str(file), *known, "-T", "fields", *fields]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (line.split("\t") for line in done.stdout.splitlines())
        return [
            {name: [each for each in value.split(",") if each] for name, value in zip(FIELDS, line, strict=True)}
            for line in lines
        ]

    return look


def messages_of(capture: Capture, protocol: str) -> list[Message]:
    """Each message once, in the order of the packets that completed them."""
    found = (message for packet in capture.messages for message in packet.messages if message.protocol == protocol)
    return sorted({id(message): message for message in found}.values(), key=lambda message: message.last)


def all_of(packets: list[dict[str, list[str]]], field: str) -> list[str]:
    return [value for packet in packets for value in packet[field]]


def check_http2(capture: Capture, packets: list[dict[str, list[str]]]) -> list[Message]:
    """The same frames in the same packets, with the same streams, start lines and codes."""
    frames = [message for message in messages_of(capture, "HTTP/2") if message.name != "connection preface"]
    assert len(frames) > 5
    mine = [(message.last + 1, TYPES.index(message.name), message.stream) for message in frames]
    theirs = [
        (int(packet["frame.number"][0]), int(kind), int(stream))
        for packet in packets
        for kind, stream in zip(packet["http2.type"], packet["http2.streamid"], strict=True)
    ]
    assert mine == theirs
    fields = [dict(message.headers) for message in frames if message.headers]
    for name in ("method", "path", "status"):
        # Trailers that need no body are not among them, and pushed requests are.
        assert [value[f":{name}"] for value in fields if f":{name}" in value] == all_of(
            packets, f"http2.headers.{name}"
        )
    errors = [int.from_bytes(message.data[9:13], "big") for message in frames if message.name == "RST_STREAM"]
    assert errors == list(map(int, all_of(packets, "http2.rst_stream.error")))
    assert not any("unknown" in message.detail or "unreadable" in message.detail for message in frames)
    return frames


def check_from_the_middle(capture: Capture, step: int) -> None:
    """Where the capture begins later, nothing gets another name than in the whole, and nearly everything gets one."""

    def named(begin: int) -> list[Message]:
        packets = dissect(capture.transits[begin:], KeyLog())
        found = {id(message): message for packet in packets for message in packet.messages}.values()
        return [m for m in found if m.protocol not in ("TCP", "DATA") and "?" not in m.start_line]

    def looks(messages: list[Message]) -> set[tuple[object, ...]]:
        # Without the packets: where one comes twice, the capture may begin between the two.
        return {(m.protocol, m.name, m.stream, m.start_line, m.length) for m in messages}

    whole = named(0)
    there, found = 0, 0
    for begin in range(1, len(capture.transits), step):
        rest = named(begin)
        assert looks(rest) <= looks(whole)
        there += sum(message.first >= begin for message in whole)
        found += len(rest)
    assert found > 0.8 * there


def requests_of(frames: list[Message]) -> list[str]:
    return [message.start_line for message in frames if message.role == "request"]


def run(lab: Lab, *words: str) -> Capture:
    with lab.capture() as capture:
        lab.client.run(words).check()
    return capture


def test_curl_and_nginx(lab: Lab, tshark: Look, require_program: Callable[[str], str], tmp_path: Path) -> None:
    require_program("nginx")
    curl = [require_program("curl"), "--silent", "--fail", "--output", "/dev/null", "--output", "/dev/null"]
    (tmp_path / "server.pem").write_bytes(
        lab.authority.certificate_for("server.lab").private_key_and_cert_chain_pem.bytes()
    )
    (tmp_path / "large").write_bytes(bytes(50_000))
    tmp_path.chmod(0o755)
    with Nginx(lab.server, NGINX.format(pem=tmp_path / "server.pem", root=tmp_path)):
        capture = run(lab, *curl, "--http2", "https://server.lab/", "https://server.lab/large")
        frames = check_http2(capture, tshark(capture, 0))
        assert requests_of(frames) == ["GET /", "GET /large"]
        assert {message.level for message in frames} == {"application"}
        assert sum(message.length for message in frames if message.name == "DATA") == 50_005

        urls = ["http://server.lab:8081/", "http://server.lab:8081/large"]
        capture = run(lab, *curl, "--http1.1", *urls)
        packets = tshark(capture, 0)
        heads = messages_of(capture, "HTTP")
        mine = [(m.last + 1, m.start_line.split()[1]) for m in heads if m.role == "request"]
        assert mine == [(int(p["frame.number"][0]), p["http.request.uri"][0]) for p in packets if p["http.request.uri"]]
        statuses = [message.status for message in heads if message.role == "response"]
        assert statuses == list(map(int, all_of(packets, "http.response.code"))) == [200, 200]


def test_node(lab: Lab, tshark: Look, require_program: Callable[[str], str]) -> None:
    """Trailers, a pushed response, a cancelled stream, bodies in several frames, CONTINUATION, PING, GOAWAY."""
    node = require_program("node")
    with Service(lab.server, [node, str(PROGRAMS / "http2_server.js"), "server.lab", "8080"], ready=8080):
        capture = run(lab, node, str(PROGRAMS / "http2_client.js"), "http://server.lab:8080")
    frames = check_http2(capture, tshark(capture, 8080))
    assert requests_of(frames) == [
        "GET /trailers", "GET /push", "GET /style.css", "GET /endless", "POST /post", "GET /trailers",
    ]  # fmt: skip
    labels = [message.label for message in frames]
    for label in ("HEADERS 1: trailers", "PUSH_PROMISE 3: GET /style.css", "RST_STREAM 5: CANCEL", "HEADERS 7: 404"):
        assert label in labels
    assert {"CONTINUATION", "PING", "GOAWAY", "WINDOW_UPDATE"} <= {message.name for message in frames}
    check_from_the_middle(capture, 5)


def test_curl_and_envoy(lab: Lab, tshark: Look, require_program: Callable[[str], str]) -> None:
    with Envoy(lab.server):
        command = [require_program("curl"), "--silent", "--fail", "--http2-prior-knowledge"]
        capture = run(lab, *command, "--data", "text", "http://server.lab/a")
    assert requests_of(check_http2(capture, tshark(capture, 80))) == ["POST /a"]


def test_grpc(lab: Lab, tshark: Look) -> None:
    with Service(lab.server, [sys.executable, str(PROGRAMS / "grpc_server.py"), "server.lab:50051"], ready=50051):
        capture = run(lab, sys.executable, str(PROGRAMS / "grpc_client.py"), "server.lab:50051")
    packets = tshark(capture, 50051)
    frames = check_http2(capture, packets)
    assert requests_of(frames) == [f"POST /lab.Echo/{name}" for name in ("Repeat", "Three", "Fail", "None", "Wait")]
    messages = messages_of(capture, "gRPC")
    assert [len(message.data) for message in messages] == list(map(int, all_of(packets, "grpc.message_length")))
    assert {message.detail.split(", ")[1] for message in messages} == {m[5:] for m in requests_of(frames)}
    told = [message.label.rpartition("grpc-status ")[2] for message in frames if "grpc-status" in message.label]
    assert told[:4] == ["OK", "OK", "NOT_FOUND", "UNIMPLEMENTED"]
    assert "RST_STREAM 9: CANCEL" in [message.label for message in frames]
    check_from_the_middle(capture, 3)


def test_hypercorn(lab: Lab, tshark: Look, require_program: Callable[[str], str]) -> None:
    """WebSocket with compression and fragments; events over HTTP/1.1, over HTTP/2, and over HTTP/2 by Upgrade."""
    command = [sys.executable, "-m", "hypercorn", "asgi_app:app", "--bind", "server.lab:8080"]
    with Service(lab.server, command, ready=8080, env={"PYTHONPATH": str(PROGRAMS)}):
        capture = run(lab, sys.executable, str(PROGRAMS / "websocket_client.py"), "ws://server.lab:8080/")
        frames = messages_of(capture, "WebSocket")
        theirs = [
            (int(packet["frame.number"][0]), int(opcode))
            for packet in tshark(capture, 0)
            for opcode in packet["websocket.opcode"]
        ]
        assert [(message.last + 1, OPCODES[message.name]) for message in frames] == theirs
        assert [message.data for message in frames if message.name == "binary"] == [bytes(range(256))] * 2
        sent = b"".join(message.data for message in frames if message.name in ("text", "continuation"))
        assert sent == b"hello" * 2 + b"hello " * 400 + b"in three parts" * 2 + b"bye" * 2
        check_from_the_middle(capture, 3)
        assert "WebSocket close: 4000" in [message.label for message in frames]

        curl = [require_program("curl"), "--silent", "--fail"]
        for option in ("--http1.1", "--http2", "--http2-prior-knowledge"):
            capture = run(lab, *curl, option, "http://server.lab:8080/ticks")
            ticks = messages_of(capture, "SSE")
            assert [message.label for message in ticks] == [f"event tick, id {number}" for number in range(3)]
            assert [message.data for message in ticks] == [b"at 0", b"at 1", b"at 2"]
            if option != "--http1.1":
                check_http2(capture, tshark(capture, 0))
