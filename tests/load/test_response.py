"""Where a response ends, whatever the pieces are in which it comes."""

from __future__ import annotations

import pytest

from labkit.load.response import MOST_HEAD, Malformed, Response

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
TRAILER = CHUNKED[:-2] + b"Digest: none\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + SIZED


@pytest.mark.parametrize("data", [SIZED, CHUNKED, TRAILER, EMPTY, INTERIM])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_it_is_complete_with_its_last_byte(data: bytes, size: int) -> None:
    response = Response()
    *pieces, last = [data[start : start + size] for start in range(0, len(data), size)]
    assert not any(response.feed(piece) for piece in pieces)
    assert response.feed(last)
    assert 200 <= response.status < 300
    assert response.reusable
    assert response.sized == (data in (SIZED, INTERIM))


def test_the_close_ends_a_response_without_a_length_alone() -> None:
    for data, complete in [(b"HTTP/1.0 200 OK\r\n\r\nhello", True), (SIZED[:-1], False), (CHUNKED[:-2], False)]:
        response = Response()
        assert not response.feed(data)
        assert response.closed() == complete
        assert not response.reusable
    assert not Response().closed()


def test_head_has_no_body() -> None:
    assert Response(bodiless=True).feed(SIZED[:-5])


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nand more", False),
    ],
)
def test_whether_the_connection_can_be_used_again(head: bytes, reusable: bool) -> None:
    response = Response()
    assert response.feed(head)
    assert response.reusable == reusable


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\n",
        b"x" * (MOST_HEAD + 1),
    ],
)
def test_what_is_no_response(data: bytes) -> None:
    with pytest.raises(Malformed):
        Response().feed(data)
