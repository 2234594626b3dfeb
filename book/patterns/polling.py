"""Judges the exercises of the section "Polling", and makes its hidden trace."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from statistics import fmean
from typing import Any

import h11

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response
from labkit.servers.hosts import HostLike
from labkit.servers.threaded import ThreadedServer

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080


def busiest(moments: Sequence[float], width: float) -> int:
    """How many of these moments lie in the fullest span of this width."""
    ordered = sorted(moments)
    return max((sum(first <= each < first + width for each in ordered) for first in ordered), default=0)


# Two polls, for the hidden trace


@recorded
def two_polls(lab: Lab) -> Captured:
    """One client asks twice over a connection, the second time with the tag that it was given."""

    def answer(request: Request) -> Response:
        if request.header("if-none-match") == '"3"':
            return Response(304, (("etag", '"3"'),))
        return Response(200, (("etag", '"3"'),), b'[{"number": 3, "text": "away 2:1"}]')

    with HttpServer(lab.server, answer, port=PORT), lab.capture() as capture, lab.client:
        connection = HTTPConnection("server.lab", PORT, timeout=5)
        for fields in ({}, {"If-None-Match": '"3"'}):
            connection.request("GET", "/events?after=2", headers=fields)
            connection.getresponse().read()
        connection.close()
    return capture


# Exercise 1


class MoodyServer(ThreadedServer):
    """Answers requests for events as its script says, and closes the connection after each.

    Args:
        host: where it listens.
        script: one word for each request: "events", "none", "busy" (503, Retry-After) or "cut" (no response); then
            always "events".
        batch: how many events a response has.
        retry_s: in Retry-After, seconds.

    Attributes:
        asked: the number behind which each request asked for events.
    """

    def __init__(self, host: HostLike, script: Sequence[str], batch: int, retry_s: int) -> None:
        super().__init__(host, 0, scheme="http", name=None, backlog=16)
        self.asked: list[int] = []
        self._script = iter(script)
        self._batch, self._retry_s = batch, retry_s
        self._start()

    def _converse(self, connection: socket.socket, peer: str) -> None:
        http = h11.Connection(h11.SERVER)
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(connection.recv(65536))
        assert isinstance(event, h11.Request)
        after = int(event.target.rpartition(b"=")[2])
        self.asked.append(after)
        mood = next(self._script, "events")
        if mood == "cut":
            return
        status, fields, body = 200, [("Connection", "close")], b""
        if mood == "busy":
            status = 503
            fields.append(("Retry-After", str(self._retry_s)))
        elif mood == "events":
            body = b",".join(b"%d" % number for number in range(after + 1, after + 1 + self._batch))
        fields.append(("Content-Length", str(len(body))))
        for part in (h11.Response(status_code=status, headers=fields), h11.Data(data=body), h11.EndOfMessage()):
            connection.sendall(http.send(part) or b"")


def _judge_follow(follow: Callable[..., Any]) -> str:
    random_ = random.Random()
    script = ["none", "busy", "cut", "events", "none", "cut", "busy", "events"]
    random_.shuffle(script)
    batch, retry_s = random_.randrange(2, 6), random_.randrange(3, 9)
    count = batch * 4
    slept: list[float] = []  # since the latest request
    owed, why, had = 0.0, "", 0

    def sleep(seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 0:
            raise Wrong(f"sleep({seconds!r}): give seconds")
        slept.append(seconds)

    def ask(after: int) -> tuple[int, dict[str, str], list[int]]:
        nonlocal owed, why, had
        if after != had:
            raise Wrong(f"yours asked for the events behind {after!r} when it had all up to {had}")
        if len(server.asked) > 100:
            raise Wrong(f"100 requests, and no end: {count} events were to be had in a tenth of that")
        if sum(slept) < owed:
            raise Wrong(f"{why}, and yours asked again after {sum(slept):g} s of sleep: wait")
        slept.clear()
        owed, why = 1e-9, "the connection was lost"  # until there is a response
        with lab.client:
            connection = HTTPConnection("server.lab", server.port, timeout=5)
            try:
                connection.request("GET", f"/events?after={after}")
                response = connection.getresponse()
                numbers = [int(number) for number in response.read().split(b",") if number]
            except HTTPException as exc:
                raise ConnectionError("the connection ended before the response") from exc
            finally:
                connection.close()
        if response.status == 503:
            owed, why = float(response.headers["Retry-After"]), f"the server asked for a pause of {retry_s} s"
        elif numbers:
            owed, had = 0.0, numbers[-1]
        else:
            why = "there was nothing new"
        return response.status, dict(response.headers), numbers

    with Lab(rtt_ms=RTT_MS) as lab, MoodyServer(lab.server, script, batch, retry_s) as server:
        try:
            given = list(follow(ask, sleep, count))
        except (OSError, ValueError, KeyError) as exc:
            raise Wrong(
                f"your client ended with {describe(exc)}: a lost connection and a 503 are part of its life"
            ) from exc
        asked = len(server.asked)
    if given != list(range(1, count + 1)):
        raise Wrong(f"events 1 to {count} were to come, each once and in their order; yours were {given}")
    return f"{asked} requests, and each of {count} events came once."


FOLLOW = TEXT.exercise("follow", _judge_follow, deadline_s=15.0)


# Exercise 2

BASE_S, CAP_S = 1.0, 60.0
CLIENTS = 300
TRIED = 12


def _judge_pauses(pauses: Callable[..., Iterator[Any]]) -> str:
    fleet = [list(itertools.islice(pauses(random.Random(seed), BASE_S, CAP_S), TRIED)) for seed in range(CLIENTS)]
    for each in fleet:
        if len(each) < TRIED:
            raise Wrong(f"after {len(each)} attempts there was no pause any more: a server may be gone for an hour")
        for pause in each:
            if isinstance(pause, bool) or not isinstance(pause, (int, float)) or not 0 <= pause <= CAP_S:
                raise Wrong(f"a pause of {pause!r}: give seconds from 0 to {CAP_S:g}")
    means = [fmean(each[attempt] for each in fleet) for attempt in range(TRIED)]
    if means[0] > 2 * BASE_S:
        raise Wrong(f"the first pause is {means[0]:.1f} s on average: begin with {BASE_S:g} s, most failures are short")
    if means[4] < 6 * means[0]:
        raise Wrong(f"pause 5 is {means[4]:.1f} s on average, and pause 1 {means[0]:.1f} s: double it each time")
    if means[-1] < CAP_S / 4:
        raise Wrong(f"pause {TRIED} is {means[-1]:.1f} s on average: grow up to {CAP_S:g} s")
    third = [sum(each[:3]) for each in fleet]
    together = busiest(third, BASE_S)
    if together > CLIENTS * 0.45:
        raise Wrong(
            f"{CLIENTS} clients failed at the same moment, and {together} of them made attempt 3 in the same second: "
            "they are still in step"
        )
    return f"{CLIENTS} clients failed at once, and {together} at most made attempt 3 within the same second."


PAUSES = TEXT.exercise("pauses", _judge_pauses)

EXERCISES = (FOLLOW, PAUSES)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two polls over one connection, with three blanks."""
    capture = two_polls(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("HTTP/1.1 200", "round trip", "connecting takes one, and then?"),
            Blank("HTTP/1.1 304", "round trip", "the second question leaves when the first answer is there"),
            Blank("HTTP/1.1 304", "what", "nothing has happened since: the tag is still the server's"),
        ],
        tier=capture.tier,
    )
