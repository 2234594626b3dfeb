"""HTTP/3 on bytes made by hand, and QPACK on those of its RFC."""

from __future__ import annotations

from labkit.capture.http3 import Http3Streams
from labkit.capture.qpack import FieldDecoder
from labkit.capture.quic_frames import QuicFrame

GET, OK = b"\0\0\xd1\xd7\xc1", b"\0\0\xd9"  # GET https /, and 200, all from the static table


def names(*sent: tuple[int, bool, bytes]) -> list[list[str]]:
    """What stands in each of these: number of the stream, whether its client sends it, bytes that go on there."""
    streams, frames, ends = Http3Streams(), [], dict[tuple[int, bool], int]()
    for number, from_client, data in sent:
        offset = ends.get((number, from_client), 0)
        ends[number, from_client] = offset + len(data)
        frames.append((QuicFrame("STREAM", "", len(data), data, number, offset), from_client))
    for index, (frame, from_client) in enumerate(frames):
        streams.add(frame, from_client, False, index, True)
    messages = streams.messages(rejected=False)
    found = [messages.inside(frame, from_client, "application") for frame, from_client in frames]
    return [[message.label or message.name for message in here] for here in found]


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, len(payload)]) + payload


def test_streams_are_told_apart_by_their_type():
    assert names(
        (2, True, b"\0" + frame(4, b"\1\0\6\x44\0") + frame(7, b"\4")),
        (3, False, b"\0" + frame(4, b"") + frame(7, b"\0")),
        (0, False, frame(5, b"\7" + GET) + frame(1, OK) + frame(0, b"hello")),
        (7, False, b"\1\7" + frame(1, OK) + frame(0, b"pushed")),
        (6, True, b"\2\x20"),
        (10, True, b"\3"),
        (10, True, b"\x80"),
        (14, True, b"\x40\x54" + b"anything"),
        (1, False, frame(1, OK)),
    ) == [
        ["control", "SETTINGS", "GOAWAY"],
        ["control", "SETTINGS", "GOAWAY"],
        ["PUSH_PROMISE GET /", "200", "DATA"],
        ["push", "200", "DATA"],
        ["QPACK encoder"],
        ["QPACK decoder"],
        ["QPACK decoder"],
        ["stream type 0x54"],
        [],  # a server opens no such stream in HTTP/3
    ]


def test_frames_in_pieces_and_trailers():
    head = frame(1, GET)
    assert names((0, True, head[:1]), (0, True, head[1:4]), (0, True, head[4:])) == [["GET /"]] * 3
    trailers = frame(1, b"\0\0\x21a\1b")  # a field that is no pseudo-header: "a: b"
    answer = [(0, False, frame(1, OK)), (0, False, b"\0\6abc"), (0, False, b"def" + frame(0x21, b"") + trailers)]
    assert names(*answer) == [["200"], ["DATA"], ["DATA", "frame type 0x21", "trailers"]]
    assert names((4, True, frame(1, b"\0\0\xd4\x51\2/x"))) == [["POST /x"]]
    assert names((4, True, frame(1, b"\0\0\xcf\x50\3y:1"))) == [["CONNECT y:1"]]
    assert names((4, True, frame(1, b"\xff\xff\xff"))) == [["HEADERS"]]


def test_rfc9204_appendix_b():
    fields: list[list[tuple[bytes, bytes]]] = []
    decoder = FieldDecoder()
    decoder.decode(bytes.fromhex("0000510b2f696e6465782e68746d6c"), fields.append)
    assert fields.pop() == [(b":path", b"/index.html")]
    # B.2, with the header block before the instructions that it refers to, and both before the table's size is known.
    decoder.decode(bytes.fromhex("03811011"), fields.append)
    decoder.instruct(bytes.fromhex("3fbd01c00f7777772e6578616d706c652e636f6d"))
    assert fields == []
    decoder.allow(220)
    assert fields == []
    decoder.instruct(bytes.fromhex("c10c2f73616d706c652f70617468"))
    assert fields.pop() == [(b":authority", b"www.example.com"), (b":path", b"/sample/path")]
    decoder.allow(1)  # a second time does not count
    decoder.decode(bytes.fromhex("03811011"), fields.append)
    assert fields.pop()[0] == (b":authority", b"www.example.com")


def test_a_header_block_that_would_fill_the_memory_is_not_decoded():
    """A table of one long entry, and a block of references to it: each byte would be 100 kB."""
    fields: list[list[tuple[bytes, bytes]]] = []
    decoder = FieldDecoder()
    decoder.allow(2**20)
    entry = b"\x41a" + b"\x7f\xa1\x8c\x06" + b"b" * 100_000  # insert with a literal name (RFC 9204 section 4.3.3)
    decoder.instruct(b"\x3f\xe1\xff\x3f" + entry)
    decoder.decode(b"\x02\x00" + b"\x80" * 10, fields.append)
    assert [len(each) for each in fields] == [10]
    decoder.decode(b"\x02\x00" + b"\x80" * 10_000, fields.append)
    assert len(fields) == 1
