"""Damaged, cut, shuffled and hostile bytes for every protocol over TCP: each byte has a name, nothing is raised."""

from __future__ import annotations

import math
import random
import struct

import pytest
from dialogues import PREFACE, frame, read
from test_protocol_vectors import DEFLATE, EVENTS, REQUESTS, RESPONSES, SWITCH, UPGRADE
from work import check_work

from labkit.capture.protocols import stream_protocols

Said = list[tuple[str, bytes | None]]

GRPC = b"\0\x0ccontent-type\x10application/grpc"
EVENT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# What real peers say; a protocol that comes brings its own here.
OK = b"HTTP/1.1 200 OK\r\n"
DIALOGUES: dict[str, Said] = {
    "http1": [
        (">", b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcHEAD /b HTTP/1.1\nHost: x\n\n"),
        ("<", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("<", b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nHTTP/1.0 200\r\n\r\nrest"),
        (">", b"CONNECT y:1 HTTP/1.1\r\nHost: y\r\n\r\n"), ("<", b"HTTP/1.1 200 OK\r\n\r\n"), (">", PREFACE),
    ],
    "http2": [
        (">", PREFACE + frame(4, 0, 0, b"\0\5\0\1\0\0") + frame(1, 4, 1, bytes.fromhex(REQUESTS[0]) + GRPC)),
        ("<", frame(4, 0, 0) + frame(4, 1, 0) + frame(8, 0, 0, b"\0\0\1\0") + frame(1, 0, 1, b"\x88")),
        ("<", frame(9, 4, 1, GRPC) + frame(0, 0, 1, b"\0\0\0\0\5hello\0\0")), (">", frame(0, 1, 1, b"\0\0\0\0\0")),
        (">", frame(1, 5, 3, bytes.fromhex(REQUESTS[1])) + frame(1, 5, 5, bytes.fromhex(REQUESTS[2]))),
        ("<", b"".join(frame(1, 4, 3 + 2 * n, bytes.fromhex(block)) for n, block in enumerate(RESPONSES))),
        ("<", frame(0, 9, 3, b"\1x\0") + frame(3, 0, 5, bytes(4)) + frame(7, 0, 0, bytes(8))),
    ],
    "websocket": [
        (">", UPGRADE), ("<", SWITCH % DEFLATE), (">", bytes.fromhex("818537fa213d7f9f4d5158")),
        ("<", bytes.fromhex("c107f248cdc9c90700c105f200110000")), ("<", bytes.fromhex("4103f248cd8004c9c90700")),
        (">", bytes.fromhex("888237fa213d3412")), ("<", bytes.fromhex("880203e8")),
    ],
    "event_stream": [
        (">", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("<", EVENT_HEAD + b"%x\r\n%s\r\n" % (len(EVENTS), EVENTS)), ("<", b"7\r\ndata: x\r\n2\r\n\n\n\r\n0\r\n\r\n"),
    ],
}  # fmt: skip


def mutate(random_: random.Random, said: Said) -> Said:
    said = list(said)
    for _ in range(random_.randrange(6)):
        index = random_.randrange(len(said))
        direction, data = said[index]
        if data is None:
            continue
        changed = bytearray(data)
        at = random_.randrange(len(data) + 1)
        kind = random_.randrange(8)
        if kind == 0 and at < len(data):
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = random_.randbytes(random_.randrange(40))
        elif kind == 3:
            changed[at : at + 4] = random_.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\r\n\r\n"])
        elif kind == 4:
            said.insert(index, (direction, None))
            continue
        elif kind == 5:
            said[index : index + 1] = [(direction, data[n : n + 1]) for n in range(len(data))]
            continue
        elif kind == 6:
            random_.shuffle(said)
            continue
        else:
            direction = ">" if direction == "<" else "<"
        said[index] = direction, bytes(changed)
    return [(direction, data) for direction, data in said if data != b""]


def check(said: Said, begins: tuple[bool, bool]) -> None:
    named = read(*said, begins=begins)
    covered = {">": bytearray(), "<": bytearray()}
    for direction, data in said:
        covered[direction] += bytes(len(data) if data is not None else 100)
    for direction, found in named:
        assert found.name.isprintable() and found.detail.isprintable() and found.label.isprintable()
        assert 0 <= found.start < found.end <= len(covered[direction])
        assert found.role in ("", "request", "response", "control", "data")
        covered[direction][found.start : found.end] = b"x" * (found.end - found.start)
    places = {">": 0, "<": 0}
    for direction, data in said:
        size = len(data) if data is not None else 100
        part = covered[direction][places[direction] : places[direction] + size]
        assert part == (b"x" if data is not None else b"\0") * size
        places[direction] += size


@pytest.mark.parametrize("name", DIALOGUES)
def test_damaged_bytes_are_named(name: str) -> None:
    random_ = random.Random(name)
    for _ in range(400):
        check(mutate(random_, DIALOGUES[name]), random_.choice([(True, True), (False, False), (True, False)]))


def test_random_bytes_are_named() -> None:
    random_ = random.Random(3)
    for _ in range(1000):
        said = [(random_.choice("<>"), random_.randbytes(random_.randrange(1, 60))) for _ in range(5)]
        check(said, (False, False))


def test_bulk_data_of_no_known_protocol_is_only_data() -> None:
    random_ = random.Random(4)
    named = read(*(("<", random_.randbytes(1448)) for _ in range(3000)), begins=(False, False))
    assert {found.name for _, found in named} == {"data"}


PATTERNS = {
    "zeros": bytes(60_000),
    "small numbers, little endian": b"".join(struct.pack("<I", n % 300) for n in range(15_000)),
    "small numbers, big endian": b"".join(struct.pack(">I", n % 300) for n in range(15_000)),
    "numbers of two bytes": b"".join(struct.pack("<H", n % 300) for n in range(30_000)),
    "counters of a byte": bytes(range(256)) * 200,
    "floats": b"".join(struct.pack("<d", n / 7) for n in range(7_000)),
    "samples of sound": b"".join(struct.pack("<h", int(3000 * math.sin(n / 30))) for n in range(30_000)),
    "text": b"The quick brown fox jumps over the lazy dog.\r\n" * 1300,
    "text of two bytes a letter": ("The quick brown fox. " * 1400).encode("utf-16"),
}


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("direction", "<>")
@pytest.mark.parametrize("size", [4, 1448])
def test_bytes_with_a_pattern_are_only_data(kind: str, direction: str, size: int) -> None:
    data = PATTERNS[kind][: 60 * size]
    said = [(direction, data[start : start + size]) for start in range(0, len(data), size)]
    for begins in (True, False):
        assert {found.name for _, found in read(*said, begins=(begins, begins), port=8080)} == {"data"}


# Each gets longer and longer, and the cost of a byte must stay the same.
ENDLESS = {
    "a head without an end": lambda n: [(">", b"GET / HTTP/1.1\r\n"), *((">", b"a") for _ in range(n))],
    "requests in one segment": lambda n: [(">", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * n)],
    "responses in one segment": lambda n: [("<", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx" * n)],
    "small chunks": lambda n: [("<", EVENT_HEAD + b"1\r\n\n\r\n" * n)],
    "an event without an end": lambda n: [("<", EVENT_HEAD), *(("<", b"2\r\ndd\r\n") for _ in range(n))],
    "CONTINUATION without an end": lambda n: [
        (">", PREFACE + frame(1, 0, 1)), *((">", frame(9, 0, 1, b"\x82")) for _ in range(n)),
    ],
    "a message of gRPC without an end": lambda n: [
        (">", PREFACE + frame(1, 4, 1, b"\x83" + GRPC) + frame(0, 0, 1, b"\0\x7f\0\0\0")),
        *((">", frame(0, 0, 1, b"x")) for _ in range(n)),
    ],
    "frames of one byte each segment": lambda n: [
        (">", UPGRADE), ("<", SWITCH % DEFLATE), ("<", b"\x82\x7e\xff\xff"), *(("<", b"x") for _ in range(n)),
    ],
    "gaps": lambda n: [item for _ in range(n) for item in ((">", b"GET"), (">", None), ("<", b"\0\1"), ("<", None))],
    "unknown bytes of one side before the other": lambda n: [
        *((">", b"\0") for _ in range(n)), *(("<", b"\0") for _ in range(n)),
    ],
    "a bomb in permessage-deflate": lambda n: [
        (">", UPGRADE), ("<", SWITCH % DEFLATE), ("<", bytes.fromhex("c107f248cdc9c90700")),
        *(("<", b"\xc1\x0a\xec\xc1\x01\x01\0\0\0\x80\x90\xfe") for _ in range(n)),
    ],
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("kind", ENDLESS)
def test_the_work_for_a_byte_stays_the_same(kind: str) -> None:
    few, many = ENDLESS[kind](200), ENDLESS[kind](1600)
    stream_protocols()  # imported now
    check_work(lambda: read(*few), lambda: read(*many))
