"""Judges the exercises of the section "Request–response", and makes its hidden trace."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.learn.judging import Enough, connected
from book.patterns.uploads import UploadServer
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080
MOST_CONNECTIONS = 100


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


class Stream:
    """Bytes that come in pieces, as a connection gives them.

    Args:
        content: all of them.
        cuts: where a piece ends, offsets.

    Attributes:
        given: how many bytes have been read.
        asked_at: how many had been read when it was asked for more, for the latest time.
    """

    def __init__(self, content: bytes, cuts: Iterable[int] = ()) -> None:
        self.content = content
        self.given = self.asked_at = 0
        self._ends = sorted({cut for cut in cuts if 0 < cut < len(content)}, reverse=True)

    def read(self, size: int) -> bytes:
        """As ``socket.recv``: what is there, at most so many bytes; b"" at the end."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise Wrong(f"read({size!r}): give a number of bytes")
        if not size:
            return b""
        self.asked_at = self.given
        while self._ends and self._ends[-1] <= self.given:
            self._ends.pop()
        end = self._ends[-1] if self._ends else len(self.content)
        piece = self.content[self.given : min(self.given + size, end)]
        self.given += len(piece)
        return piece


def _framed(payloads: Iterable[bytes]) -> bytes:
    return b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)


def _judge_framing(messages: Callable[..., Any]) -> str:
    random_ = random.Random()
    limit = random_.randrange(70_000, 130_000)
    payloads = [
        b"goal",
        b"",
        random_.randbytes(random_.randrange(300, 900)),
        b"line\nbreak",
        random_.randbytes(5000),
        b"",
    ]
    content = _framed(payloads)
    pieces = {
        "all at once": [],
        "a byte at a time": list(range(len(content))),
        "in pieces of random sizes": random_.sample(range(len(content)), 40),
    }
    for name, cuts in pieces.items():
        _compare(messages, limit, Stream(content, cuts), payloads, name)
    if list(messages(Stream(b"").read, limit)):
        raise Wrong("a stream without a byte has no message")
    _judge_ends(messages, limit, payloads)
    _judge_two(messages, limit, payloads)
    _judge_limit(messages, limit)
    return f"{len(payloads)} messages, however the stream was cut; a cut one and one that is too long are told."


def _compare(messages: Callable[..., Any], limit: int, stream: Stream, payloads: list[bytes], name: str) -> None:
    given: list[Any] = []
    end = 0
    try:
        for message in messages(stream.read, limit):
            given.append(message)
            if len(given) > len(payloads):
                break
            end += 4 + len(payloads[len(given) - 1])
            if given == payloads[: len(given)] and stream.asked_at >= end:
                raise Wrong(
                    f"message {len(given)} was complete, and yours read on before it gave it away: whoever waits for "
                    "an answer sends nothing more"
                )
    except EOFError:
        raise Wrong(
            f"the stream came {name} and whole, and yours raised EOFError: read may return less than you ask for, and "
            "a message may have 0 bytes"
        ) from None
    if given == payloads[: len(given)] and len(given) < len(payloads):
        raise Wrong(
            f"{len(payloads)} messages came {name}, and yours ended after {len(given)}. A message of 0 bytes is a "
            "message, too, and the next one comes after it"
        )
    if given == [payload for payload in payloads if payload]:
        raise Wrong("a message of 0 bytes is a message, too: yours left it out")
    if given != payloads:
        sizes = [len(message) if isinstance(message, bytes) else message for message in given]
        raise Wrong(
            f"messages of {', '.join(str(len(payload)) for payload in payloads)} bytes came {name}, and yours have "
            f"{', '.join(map(str, sizes)) or 'none'}: read may return less than you ask for"
        )


def _judge_ends(messages: Callable[..., Any], limit: int, payloads: list[bytes]) -> None:
    """Streams that end inside a message: in its length, behind it, before its last byte; in the first and in others."""
    content = _framed(payloads)
    for end in (2, 4, 7, 10, 14, len(content) - 3, len(content) - 5):
        whole = [payload for at, payload in enumerate(payloads) if len(_framed(payloads[: at + 1])) <= end]
        given: list[Any] = []
        try:
            given.extend(messages(Stream(content[:end]).read, limit))
        except EOFError:
            continue
        told = f"{len(whole)} whole messages came, then" if whole else "there was"
        raise Wrong(
            f"{told} a part of one, and the stream ended inside a message, after {end} bytes: yours gave {len(given)} "
            "messages and no error. Raise EOFError"
        )


def _judge_two(messages: Callable[..., Any], limit: int, payloads: list[bytes]) -> None:
    """Two connections at the same time."""
    cuts = range(0, len(_framed(payloads)), 7)
    both = [payloads, payloads[::-1]]
    readers = [iter(messages(Stream(_framed(each), cuts).read, limit)) for each in both]
    given: list[list[Any]] = [[], []]
    try:
        for _ in payloads:
            for place, reader in enumerate(readers):
                given[place] += [next(reader, None)]
    except (EOFError, ValueError):
        given = []
    if given != both:
        raise Wrong("with two connections at the same time, the bytes of one get into the messages of the other")


def _judge_limit(messages: Callable[..., Any], limit: int) -> None:
    for size in (limit + 1, 2**31, 2**32 - 1):
        stream = Stream(_framed([b"goal"]) + size.to_bytes(4, "big") + bytes(limit + 1), [8])
        given: list[Any] = []
        try:
            for message in messages(stream.read, limit):
                given.append(message)
        except (ValueError, EOFError) as exc:
            if stream.asked_at >= 12 or isinstance(exc, EOFError):
                raise Wrong(
                    f"a length of {size} bytes, and {limit} are allowed: yours read on, {stream.given - 12} bytes. Its "
                    "length stands in the first 4: raise ValueError before you read more"
                ) from None
        else:
            raise Wrong(f"a length of {size} bytes was accepted with a limit of {limit}: raise ValueError")
        if given != [b"goal"]:
            raise Wrong("a good message came before the one that is too long: give it away first")
    for most in (limit, 3):
        try:
            at_limit = list(messages(Stream(_framed([bytes(most)])).read, most))
        except ValueError:
            at_limit = []
        if at_limit != [bytes(most)]:
            raise Wrong(f"a message of exactly {most} bytes is within a limit of {most}")


FRAMING = TEXT.exercise("framing", _judge_framing)


# Exercise 2


def _judge_resume(upload: Callable[..., Any]) -> str:
    random_ = random.Random()
    data = random_.randbytes(random_.randrange(60_000, 80_000))
    cuts = [random_.randrange(5_000, 9_000) for _ in range(5)]
    cuts.insert(random_.randrange(1, 5), 0)
    with Lab(rtt_ms=RTT_MS) as lab:
        received = _judge_upload(lab, upload, data, [*cuts, None], random_.randrange(2, 5))
        _judge_upload(lab, upload, random_.randbytes(random_.randrange(1, 2000)), [None], 0)
        _judge_upload(lab, upload, b"", [], 0)
    return f"Cut {len(cuts) + 2} times, and the server received {received} bytes: none twice."


def _judge_upload(lab: Lab, upload: Callable[..., Any], data: bytes, cuts: list[int | None], silent: int) -> int:
    """One upload to a server of its own. Returns how many bytes came."""
    with UploadServer(lab.server, cuts=cuts, silent=silent) as server:

        def connect() -> socket.socket:
            if server.refused or server.connections >= MOST_CONNECTIONS:
                raise Enough
            return connected(lab.client, server.port)

        gave_up = ""
        try:
            upload(connect, data)
        except (OSError, HTTPException) as exc:
            gave_up = describe(exc)
        except Enough:
            gave_up = f"{server.connections} connections"
        there = len(server.content)
    if server.refused:
        asked, had = server.refused[0]
        raise Wrong(
            f"the server has {had} bytes, and yours went on at {asked}: it answers 409. What was sent need not have "
            "arrived: ask the server"
        )
    if server.received > len(data):
        raise Wrong(f"the server received {server.received} bytes for {len(data)}: it said how many it had")
    if server.connections >= MOST_CONNECTIONS:
        raise Wrong(f"{MOST_CONNECTIONS} connections, and the server has {there} of {len(data)} bytes")
    if gave_up:
        raise Wrong(f"the connection was lost, and your upload gave up ({gave_up}): connect again")
    if server.content != data:
        raise Wrong(f"your upload returned, and the server has {there} of {len(data)} bytes")
    if server.told < len(data):
        raise Wrong("your upload returned, and no response had said that all is there: ask for the offset")
    return server.received


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
