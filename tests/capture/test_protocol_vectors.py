"""HTTP/2, WebSocket and server-sent events by the bytes that stand in the RFCs and in HTML's standard."""

from __future__ import annotations

from itertools import pairwise

import pytest
from dialogues import PREFACE, frame, labels, read

SETTINGS, ACK = frame(4, 0, 0), frame(4, 1, 0)
# RFC 7541 appendix C.4 and C.6: requests and responses with Huffman codes, which use the dynamic table.
REQUESTS = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)
RESPONSES = (
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    "4883640effc1c0bf",
    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672"
    "c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
)


def test_header_blocks() -> None:
    client = b"".join(frame(1, 5, 1 + 2 * n, bytes.fromhex(block)) for n, block in enumerate(REQUESTS))
    server = b"".join(frame(1, 4, 1 + 2 * n, bytes.fromhex(block)) for n, block in enumerate(RESPONSES))
    named = read((">", PREFACE + SETTINGS + client), ("<", SETTINGS + ACK + server))
    assert labels(named) == [
        "> connection preface",
        "> SETTINGS",
        "> HEADERS 1: GET /",
        "> HEADERS 3: GET /",
        "> HEADERS 5: GET /index.html",
        "< SETTINGS",
        "< SETTINGS ACK",
        "< HEADERS 1: 302",
        "< HEADERS 3: 307",
        "< HEADERS 5: 200",
    ]
    requests = [found for direction, found in named if direction == ">"][2:]
    assert [found.role for found in requests] == ["request"] * 3
    assert dict(requests[2].headers) == {
        ":method": "GET", ":scheme": "https", ":path": "/index.html", ":authority": "www.example.com",
        "custom-key": "custom-value",
    }  # fmt: skip
    last = named[-1][1]
    assert (last.role, last.status, last.start_line, last.stream) == ("response", 200, "200", 5)
    assert dict(last.headers)["set-cookie"] == "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"


def test_a_connection_that_began_before_the_capture() -> None:
    """What the dynamic table held then is unknown, and said to be; what is added later is read."""
    client = [(">", frame(1, 5, 7 + 2 * n, bytes.fromhex(block))) for n, block in enumerate(REQUESTS[1:])]
    named = read(*client, begins=(False, False))
    assert labels(named) == ["> HEADERS 7: GET /", "> HEADERS 9: GET /index.html"]
    first, second = (found for _, found in named)
    assert first.detail.startswith("5 fields, 1 of them unknown: their entries in the dynamic table")
    assert dict(first.headers)["cache-control"] == "no-cache"
    assert "1 of them unknown" in second.detail  # :authority still
    nothing = read((">", frame(1, 5, 7, b"\xc0\xc1")), (">", frame(6, 0, 0, bytes(8))), begins=(False, False))
    assert labels(nothing) == ["> HEADERS 7: ? ?", "> PING"]
    assert nothing[0][1].role == "request"


def test_frames_of_every_type() -> None:
    block = bytes.fromhex(REQUESTS[0])
    push = frame(5, 4, 1, b"\0\0\0\2" + block)
    server = [
        frame(0, 8, 1, b"\2hello\0\0"), frame(0, 1, 1, b""), frame(8, 0, 1, b"\0\0\1\0"), frame(8, 0, 0, b"\0\0\1\0"),
        frame(3, 0, 1, b"\0\0\0\x08"), frame(3, 0, 1, b"\0\0\xff\0"), frame(6, 1, 0, b"12345678"), push,
        frame(2, 0, 3, b"\0\0\0\1\x0f"), frame(7, 0, 0, b"\0\0\0\1\0\0\0\x0btoo fast"), frame(0x42, 0, 0, b"?"),
        frame(3, 0, 1, b"\0\0"),
    ]  # fmt: skip
    named = read((">", PREFACE + SETTINGS + frame(1, 0, 1, block[:4]) + frame(9, 4, 1, block[4:])))
    assert labels(named) == ["> connection preface", "> SETTINGS", "> HEADERS 1: GET /", "> CONTINUATION 1"]
    named = read((">", PREFACE + SETTINGS), ("<", SETTINGS + b"".join(server)))
    assert labels(named)[3:] == [
        "< DATA 1", "< DATA 1", "< WINDOW_UPDATE 1", "< WINDOW_UPDATE 0", "< RST_STREAM 1: CANCEL",
        "< RST_STREAM 1: error 0xff00", "< PING ACK", "< PUSH_PROMISE 1: GET /", "< PRIORITY 3",
        "< GOAWAY: ENHANCE_YOUR_CALM", "< frame type 0x42", "< malformed RST_STREAM frame",
    ]  # fmt: skip
    padded, end = named[3][1], named[4][1]
    assert (padded.data, padded.length, padded.fin, end.fin) == (b"hello", 5, False, True)
    assert "too fast" in named[12][1].detail


def test_a_status_that_is_no_number_is_named() -> None:
    for status in (b"x", b"9" * 5000, b"2000", b"\xb2\xb2\xb2"):
        block = b"\x08" + (b"\x7f" + varint(len(status) - 127) if len(status) >= 127 else bytes([len(status)])) + status
        (_, response) = read((">", PREFACE), ("<", SETTINGS + frame(1, 4, 1, block)))[-1]
        assert (response.role, response.status) == ("response", None)


def varint(number: int) -> bytes:
    """The rest of an integer that does not fit its prefix (RFC 7541 section 5.1)."""
    more = b""
    while number >= 128:
        more += bytes([number % 128 + 128])
        number //= 128
    return more + bytes([number])


def test_what_cannot_be_a_frame_is_data_and_frames_are_found_again() -> None:
    ping = frame(6, 0, 0, bytes(8))
    named = read((">", PREFACE + SETTINGS), ("<", SETTINGS), ("<", b"\xff" * 100), ("<", ping + ping))
    assert labels(named)[2:] == ["< SETTINGS", "< data", "< PING", "< PING"]


def test_a_gap_in_one_direction_leaves_the_other_whole() -> None:
    first, second = (frame(1, 5, 1 + 2 * n, bytes.fromhex(block)) for n, block in enumerate(REQUESTS[:2]))
    ok = frame(1, 5, 1, b"\x88")
    named = read(
        (">", PREFACE + SETTINGS + first), ("<", SETTINGS), ("<", ok[:4]), ("<", None), ("<", ok), (">", second)
    )
    assert labels(named) == [
        "> connection preface", "> SETTINGS", "> HEADERS 1: GET /", "> HEADERS 3: GET /", "< SETTINGS", "< data",
        "< HEADERS 1: 200",
    ]  # fmt: skip
    assert "unknown" not in named[3][1].detail


def test_a_call_of_grpc() -> None:
    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    kind = literal(b"content-type", b"application/grpc+proto")
    ask = b"\x83\x86" + literal(b":path", b"/lab.Echo/Say") + kind
    named = read(
        (">", PREFACE + SETTINGS + frame(1, 4, 1, ask) + frame(0, 0, 1, b"\0\0\0\0\5he") + frame(0, 1, 1, b"llo")),
        ("<", SETTINGS + frame(1, 4, 1, b"\x88" + kind) + frame(0, 0, 1, b"\0\0\0\0\0\1\0\0\0\1?")),
        ("<", frame(1, 5, 1, literal(b"grpc-status", b"4") + literal(b"grpc-message", b"late"))),
        ("<", frame(1, 5, 3, b"\x88" + kind + literal(b"grpc-status", b"12"))),
    )
    assert labels(named)[2:] == [
        "> HEADERS 1: POST /lab.Echo/Say", "> DATA 1", "> DATA 1", "> gRPC message of 5 bytes", "< SETTINGS",
        "< HEADERS 1: 200", "< DATA 1", "< gRPC message of 0 bytes", "< gRPC message of 1 bytes",
        "< HEADERS 1: grpc-status DEADLINE_EXCEEDED", "< HEADERS 3: 200, grpc-status UNIMPLEMENTED",
    ]  # fmt: skip
    call = named[5][1]
    assert (call.protocol, call.data, call.stream) == ("gRPC", b"hello", 1)
    assert call.detail == "5 bytes, /lab.Echo/Say"
    assert (call.start, call.end) == (named[3][1].start, named[4][1].end)
    assert named[10][1].detail == "1 bytes, compressed, /lab.Echo/Say"
    assert named[11][1].role == "data"  # the response began before


# WebSocket: RFC 6455 section 5.7, RFC 7692 section 7.2.3 -------------------------------------------------

UPGRADE = b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%s\r\n"
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


def frames_after_upgrade(*frames: tuple[str, str], fields: bytes = b"") -> list[tuple[str, str, bytes]]:
    said = [(direction, bytes.fromhex(data)) for direction, data in frames]
    named = read((">", UPGRADE), ("<", SWITCH % fields), *said)
    assert labels(named[:1]) == ["> GET /chat HTTP/1.1"]
    frames = [(direction, found) for direction, found in named if found.protocol != "HTTP"]
    assert {found.protocol for _, found in frames} == {"WebSocket"}
    return [(f"{direction} {found.label}", found.detail, found.data) for direction, found in frames]


def test_frames_of_websocket() -> None:
    assert frames_after_upgrade(
        (">", "818537fa213d7f9f4d5158"), (">", "8a8537fa213d7f9f4d5158"), ("<", "810548656c6c6f"), ("<", "010348656c"),
        ("<", "890548656c6c6f"), ("<", "80026c6f"), ("<", "827e0100" + 256 * "aa"), ("<", "880403e86279"),
    ) == [
        ("> WebSocket text", "5 bytes, masked", b"Hello"),
        ("> WebSocket pong", "5 bytes, masked", b"Hello"),
        ("< WebSocket text", "5 bytes", b"Hello"),
        ("< WebSocket text (more follows)", "3 bytes, more follows", b"Hel"),
        ("< WebSocket ping", "5 bytes", b"Hello"),
        ("< WebSocket continuation", "2 bytes", b"lo"),
        ("< WebSocket binary", "256 bytes", b"\xaa" * 256),
        ("< WebSocket close: 1000", "1000, normal closure, by, 4 bytes", b"\x03\xe8by"),
    ]  # fmt: skip


def test_compressed_frames_of_websocket() -> None:
    """The second message refers to the first; a block may be stored, final, or one of two."""
    messages = ["c107f248cdc9c90700", "c105f200110000", "c10b000500faff48656c6c6f00", "c108f348cdc9c9070000"]
    messages += ["c10df248050000 00ffffcac9c90700".replace(" ", "")]
    named = frames_after_upgrade(*(("<", message) for message in messages), fields=DEFLATE)
    assert [data for _, _, data in named] == [b"Hello"] * 5
    assert named[0][1] == "5 bytes, compressed to 7"
    fragments = frames_after_upgrade(("<", "4103f248cd"), ("<", "8004c9c90700"), fields=DEFLATE)
    assert b"".join(data for _, _, data in fragments) == b"Hello"


def test_compressed_frames_after_a_gap_stay_compressed() -> None:
    said = [("<", bytes.fromhex("c107f248cdc9c90700")), ("<", None), ("<", bytes.fromhex("c105f200110000"))]
    named = read((">", UPGRADE), ("<", SWITCH % DEFLATE), *said)
    assert [found.detail for _, found in named[2:]] == ["5 bytes, compressed to 7", "5 bytes, compressed"]


def test_websocket_from_the_middle() -> None:
    masked, text = bytes.fromhex("818537fa213d7f9f4d5158"), bytes.fromhex("810548656c6c6f")
    named = read((">", masked), ("<", text), begins=(False, False))
    assert labels(named) == ["> WebSocket text", "< WebSocket text"]


def test_websocket_in_a_stream_of_http2() -> None:
    """RFC 8441: CONNECT with :protocol, and the frames stand in DATA."""

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    ask = literal(b":method", b"CONNECT") + literal(b":protocol", b"websocket") + literal(b":path", b"/chat")
    masked, text = bytes.fromhex("818537fa213d7f9f4d5158"), bytes.fromhex("c107f248cdc9c90700")
    named = read(
        (">", PREFACE + SETTINGS + frame(1, 4, 1, ask)),
        ("<", SETTINGS + frame(1, 4, 1, b"\x88" + literal(b"sec-websocket-extensions", b"permessage-deflate"))),
        (">", frame(0, 0, 1, masked[:3])), (">", frame(0, 0, 1, masked[3:])), ("<", frame(0, 0, 1, text)),
        ("<", frame(0, 0, 1, b"\xff" * 9)),
    )  # fmt: skip
    assert labels(named)[2:] == [
        "> HEADERS 1: CONNECT /chat", "> DATA 1", "> DATA 1", "> WebSocket text", "< SETTINGS", "< HEADERS 1: 200",
        "< DATA 1", "< WebSocket text", "< DATA 1",
    ]  # fmt: skip
    assert [(found.data, found.stream) for _, found in named if found.protocol == "WebSocket"] == [(b"Hello", 1)] * 2


# Server-sent events: HTML section 9.2.6 -------------------------------------------------------------------

EVENTS = b": test stream\n\ndata: first event\nid: 1\n\nevent: add\ndata: 73857293\ndata\n\nretry: 500\r\ndata\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 7, 200])
def test_server_sent_events(chunked: bool, size: int) -> None:
    parts = [EVENTS[start : start + size] for start in range(0, len(EVENTS), size)]
    fields = b"Content-Type: text/event-stream; charset=utf-8\r\n"
    if chunked:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
        fields += b"Transfer-Encoding: chunked\r\n"
    named = read(
        (">", b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("<", b"HTTP/1.1 200 OK\r\n%s\r\n" % fields),
        *(("<", part) for part in parts),
    )
    events = [found for _, found in named if found.protocol == "SSE"]
    assert [(found.name, found.label, found.data) for found in events[1:]] == [
        ("event", "event message, id 1", b"first event"),
        ("event", "event add", b"73857293\n"),
        ("event", "event message", b""),
    ]
    assert events[0].name == "comment"
    assert [found.detail for found in events[1:]] == [
        "event message, id 1, 11 bytes of data",
        "event add, 9 bytes of data",
        "event message, retry after 500 ms, 0 bytes of data",
    ]
    assert all(first.end <= second.end for first, second in pairwise(events))
