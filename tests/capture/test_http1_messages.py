"""HTTP/1 by messages: where a head ends, what belongs to which body, and what comes after it."""

from __future__ import annotations

import pytest
from dialogues import PREFACE, frame, labels, read

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def by_segment(data: bytes, size: int, direction: str) -> list[tuple[str, bytes]]:
    return [(direction, data[start : start + size]) for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_start_lines_and_heads_may_be_cut_anywhere(size: int) -> None:
    named = read(*by_segment(GET, size, ">"), *by_segment(OK, size, "<"))
    heads = [(direction, found) for direction, found in named if found.protocol == "HTTP"]
    assert labels(heads) == ["> GET / HTTP/1.1", "< HTTP/1.1 200 OK"]
    assert [(found.start, found.role, found.status) for _, found in heads] == [
        (0, "request", None),
        (0, "response", 200),
    ]
    assert heads[0][1].data == GET


def test_a_bare_line_feed_ends_a_line() -> None:
    named = read(
        (">", b"HEAD / HTTP/1.0\n\n"), ("<", b"HTTP/1.0 200 OK\nContent-Length: 5000\n\nHTTP/1.0 404 Nothing\n\n")
    )
    assert labels(named) == ["> HEAD / HTTP/1.0", "< HTTP/1.0 200 OK", "< HTTP/1.0 404 Nothing"]


def test_pipelined_responses_with_their_bodies_in_one_segment() -> None:
    chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"
    named = read(
        (">", GET * 4), ("<", OK + chunked + b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n")
    )
    assert labels(named)[4:] == [
        "< HTTP/1.1 200 OK", "< HTTP/1.1 201 Created", "< HTTP/1.1 204 No Content", "< HTTP/1.1 304 Not Modified",
    ]  # fmt: skip
    assert named[4][1].data.endswith(b"hi")


def test_a_body_that_looks_like_a_head_is_a_body() -> None:
    inner = OK * 3
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(inner)
    named = read((">", GET * 2), ("<", answer), ("<", inner), ("<", OK))
    assert labels(named)[2:] == ["< HTTP/1.1 200 OK", "< data", "< HTTP/1.1 200 OK"]


def test_interim_responses_answer_nothing_and_head_has_no_body() -> None:
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
    named = read(
        (">", head + GET),
        ("<", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        ("<", OK[:-2] + b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    )
    assert [found.status for _, found in named[2:]] == [103, 200, 100, 200]


def test_what_h11_refuses_is_named_all_the_same() -> None:
    """No Host, spaces in a field's name: servers refuse it, and it is on the wire."""
    odd = b"POST / HTTP/1.1\r\nBad Name: x\r\nContent-Length: 3\r\n\r\n"
    named = read(
        (">", odd + b"abc" + b"GET /next HTTP/1.1\r\n\r\n"), ("<", b"HTTP/1.1 400 \r\nContent-Length: x\r\n\r\n")
    )
    assert labels(named) == ["> POST / HTTP/1.1", "> GET /next HTTP/1.1", "< HTTP/1.1 400"]
    assert named[0][1].data == odd + b"abc"


def test_from_the_middle_of_a_body_on() -> None:
    named = read(("<", b"rest of a page"), (">", GET), ("<", OK), begins=(False, False))
    assert labels(named) == ["> GET / HTTP/1.1", "< data", "< HTTP/1.1 200 OK"]


def test_after_a_gap_heads_are_found_again() -> None:
    named = read((">", GET), ("<", OK[:-1]), ("<", None), ("<", b"part of a page"), (">", GET), ("<", OK))
    assert labels(named) == [
        "> GET / HTTP/1.1", "> GET / HTTP/1.1", "< HTTP/1.1 200 OK", "< data", "< HTTP/1.1 200 OK",
    ]  # fmt: skip


def test_a_tunnel_carries_whatever_is_said_in_it() -> None:
    connect = b"CONNECT y:80 HTTP/1.1\r\nHost: y\r\n\r\n"
    ping = frame(6, 0, 0, bytes(8))
    named = read(
        (">", connect), ("<", b"HTTP/1.1 200 OK\r\n\r\n"), (">", PREFACE + frame(4, 0, 0)), ("<", frame(4, 0, 0) + ping)
    )
    assert labels(named) == [
        "> CONNECT y:80 HTTP/1.1", "> connection preface", "> SETTINGS", "< HTTP/1.1 200 OK", "< SETTINGS", "< PING",
    ]  # fmt: skip


def test_an_upgrade_that_is_refused_leaves_http() -> None:
    asking = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert labels(read((">", asking), ("<", OK), (">", GET), ("<", OK))) == [
        "> GET / HTTP/1.1", "> GET / HTTP/1.1", "< HTTP/1.1 200 OK", "< HTTP/1.1 200 OK",
    ]  # fmt: skip


def test_an_upgrade_to_what_nobody_knows_is_data() -> None:
    asking = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
    assert labels(read((">", asking), ("<", switch + b"\0\1"), (">", b"\2\3"))) == [
        "> GET / HTTP/1.1", "> data", "< HTTP/1.1 101 Switching Protocols", "< data",
    ]  # fmt: skip


@pytest.mark.parametrize("port", [80, 50051, 5432])
def test_the_bytes_decide_wherever_the_port_lies(port: int) -> None:
    assert labels(read((">", GET), ("<", OK), port=port)) == ["> GET / HTTP/1.1", "< HTTP/1.1 200 OK"]
    assert labels(read((">", PREFACE), ("<", frame(4, 0, 0)), port=port)) == ["> connection preface", "< SETTINGS"]
