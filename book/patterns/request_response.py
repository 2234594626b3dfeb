"""Judges the exercises of the section "Request–response", and makes its hidden trace."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.patterns.uploads import UploadServer
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080
MOST_CONNECTIONS = 20


# One connection with several requests, for the hidden trace


@recorded
def three_requests(lab: Lab) -> Captured:
    """Two requests in one write, then one in two writes, to a server that answers each with its target."""
    two = b"".join(b"GET /%s HTTP/1.1\r\nHost: server.lab\r\n\r\n" % name for name in (b"home", b"away"))
    head, body = b"POST /score HTTP/1.1\r\nHost: server.lab\r\nContent-Length: 4\r\n\r\n", b"2:1\n"

    def echo(request: Request) -> Response:
        return Response(200, body=request.target.encode())

    with HttpServer(lab.server, echo, port=PORT), lab.capture() as capture:
        with lab.client, socket.create_connection(("server.lab", PORT), timeout=5) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            for writes, responses in (((two,), 2), ((head, body), 3)):
                for write in writes:
                    client.sendall(write)
                while received.count(b"HTTP/1.1 200") < responses:
                    received += client.recv(65536)
    return capture


# Exercise 1

LIMIT = 100_000


class Stream:
    """Bytes that come in pieces, as a connection gives them.

    Args:
        content: all of them.
        cuts: where a piece ends, offsets.
    """

    def __init__(self, content: bytes, cuts: Iterable[int]) -> None:
        self.left = content
        self._ends = sorted({len(content) - cut for cut in cuts if 0 < cut < len(content)} | {0}, reverse=True)
        self.asked = 0

    def read(self, size: int) -> bytes:
        """As ``socket.recv``: what is there, at most so many bytes; b"" at the end."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise Wrong(
                f"read({size!r}): ask for one byte or more. A message may be empty: is there something to read?"
            )
        self.asked += 1
        end = next(end for end in self._ends if end < len(self.left) or end == 0)
        piece = self.left[: min(size, len(self.left) - end)]
        self.left = self.left[len(piece) :]
        return piece


def _framed(payloads: Iterable[bytes]) -> bytes:
    return b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)


def _judge_framing(messages: Callable[..., Any]) -> str:
    random_ = random.Random()
    payloads = [b"goal", b"", random_.randbytes(random_.randrange(300, 900)), b"line\nbreak", random_.randbytes(5000)]
    content = _framed(payloads)
    pieces = {
        "all at once": [],
        "a byte at a time": list(range(len(content))),
        "in pieces of random sizes": random_.sample(range(len(content)), 40),
    }
    for name, cuts in pieces.items():
        try:
            given = list(messages(Stream(content, cuts).read, LIMIT))
        except EOFError:
            raise Wrong(
                f"the stream came {name} and whole, and yours raised EOFError: read may return less than you ask for"
            ) from None
        if given in (payloads[:1], [payload for payload in payloads if payload]):
            raise Wrong("a message of 0 bytes is a message, too, and the next one comes after it")
        if given != payloads:
            sizes = [len(message) if isinstance(message, bytes) else message for message in given]
            raise Wrong(
                f"messages of {', '.join(str(len(payload)) for payload in payloads)} bytes came {name}, and yours have "
                f"{', '.join(map(str, sizes)) or 'none'}: read may return less than you ask for"
            )
    if list(messages(Stream(b"", []).read, LIMIT)):
        raise Wrong("a stream without a byte has no message")
    for end in (2, 4, len(content) - 1):
        try:
            given = list(messages(Stream(content[:end], []).read, LIMIT))
        except EOFError:
            continue
        raise Wrong(
            f"the stream ended after {end} bytes, inside a message, and yours gave {len(given)} messages and no error: "
            "raise EOFError"
        )
    _judge_limit(messages)
    return f"{len(payloads)} messages, however the stream was cut; a cut one and one that is too long are told."


def _judge_limit(messages: Callable[..., Any]) -> None:
    stream = Stream((LIMIT + 1).to_bytes(4, "big") + bytes(LIMIT + 1), [])
    try:
        list(messages(stream.read, LIMIT))
    except ValueError:
        taken = 4 + LIMIT + 1 - len(stream.left)
        if taken > 4:
            raise Wrong(
                f"a message over the limit is refused after {taken} bytes: its length stands in the first 4"
            ) from None
    else:
        raise Wrong(f"a length of {LIMIT + 1} bytes was accepted with a limit of {LIMIT}: raise ValueError")
    at_limit = list(messages(Stream(_framed([bytes(LIMIT)]), []).read, LIMIT))
    if at_limit != [bytes(LIMIT)]:
        raise Wrong(f"a message of exactly {LIMIT} bytes is within the limit")


FRAMING = TEXT.exercise("framing", _judge_framing)


# Exercise 2


def _judge_resume(upload: Callable[..., Any]) -> str:
    random_ = random.Random()
    data = random_.randbytes(random_.randrange(30_000, 50_000))
    cuts = [random_.randrange(5_000, 9_000), random_.randrange(6_000, 9_000), None]
    with Lab(rtt_ms=RTT_MS) as lab, UploadServer(lab.server, cuts=cuts) as server:

        def connect() -> socket.socket:
            if server.connections >= MOST_CONNECTIONS:
                raise Wrong(
                    f"{MOST_CONNECTIONS} connections, and the server has {len(server.content)} of {len(data)} bytes"
                )
            with lab.client:
                return socket.create_connection(("server.lab", server.port), timeout=5)

        gave_up = ""
        try:
            upload(connect, data)
        except (OSError, HTTPException) as exc:
            gave_up = describe(exc)
    if server.refused:
        asked, there = server.refused[0]
        raise Wrong(
            f"the server has {there} bytes, and yours went on at {asked}: it answers 409. What was sent need not have "
            "arrived: ask the server"
        )
    if gave_up:
        raise Wrong(f"the connection was lost, and your upload gave up ({gave_up}): connect again")
    if server.received > len(data):
        raise Wrong(f"the server received {server.received} bytes for {len(data)}: it said how many it had")
    if server.content != data:
        raise Wrong(f"your upload returned, and the server has {len(server.content)} of {len(data)} bytes")
    if server.told < len(data):
        raise Wrong("your upload returned, and no response had said that all is there: ask for the offset")
    return f"Cut {len(cuts)} times, and the server received {server.received} bytes: none twice."


RESUME = TEXT.exercise("resume", _judge_resume, deadline_s=15.0)

EXERCISES = (FRAMING, RESUME)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests in one segment, then one in two, with three blanks."""
    capture = three_requests(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("GET /away", "round trip", "did the client wait for anything between its first two requests?"),
            Blank("POST /score", "round trip", "it waited for the responses to the first two"),
            Blank("POST /score", "seq", "a SYN counts as one; two requests came before, each as long as the other"),
        ],
        tier=capture.tier,
    )
