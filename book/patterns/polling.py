"""Judges the exercises of the section "Polling", and makes its hidden trace."""

from __future__ import annotations

import itertools
import math
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from statistics import fmean
from typing import Any

import h11

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.learn.judging import Enough, connected
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response
from labkit.servers.hosts import HostLike
from labkit.servers.threaded import ThreadedServer

TEXT = Text(__file__)

RTT_MS = 10
MOST_S = 60.0  # a client sleeps at a time, where the server does not ask for more
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
        script: one word for each request: "events", "none", "cut" (no response), or a number of seconds (503 with this
            Retry-After); then always "events".
        numbers: of all events that there are.
        batch: how many events a response has at most.

    Attributes:
        asked: the number behind which each request asked for events.
    """

    def __init__(self, host: HostLike, script: Sequence[str], numbers: Sequence[int], batch: int) -> None:
        super().__init__(host, 0, scheme="http", name=None, backlog=16)
        self.asked: list[int] = []
        self._script = iter(script)
        self._numbers, self._batch = numbers, batch
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
        if mood.isdigit():
            status = 503
            fields.append(("Retry-After", mood))
        elif mood == "events":
            new = [number for number in self._numbers if number > after]
            body = b",".join(b"%d" % number for number in new[: self._batch])
        fields.append(("Content-Length", str(len(body))))
        for part in (h11.Response(status_code=status, headers=fields), h11.Data(data=body), h11.EndOfMessage()):
            connection.sendall(http.send(part) or b"")


def _judge_follow(follow: Callable[..., Any]) -> str:
    random_ = random.Random()
    script = ["none", str(random_.randrange(3, 9)), "cut", "events", "none", "cut", "events", "events"]
    random_.shuffle(script)
    script.insert(random_.randrange(3), str(random_.randrange(100, 900)))
    batch = random_.randrange(3, 7)
    count = batch * 4 - random_.randrange(1, batch - 1)  # the last response has more than are wanted
    with Lab(rtt_ms=RTT_MS) as lab:
        asked = _judge_life(lab, follow, script, batch, count)
        _judge_life(lab, follow, script[::-1], 2, 5)
        _judge_life(lab, follow, ["events"], 3, 0)
    return f"{asked} requests, and each of {count} events came once."


def _judge_life(lab: Lab, follow: Callable[..., Any], script: Sequence[str], batch: int, count: int) -> int:
    """One life of a client, with a server of its own. Returns how many requests it made."""
    life = Life(count)
    random_ = random.Random()
    numbers = list(itertools.accumulate(random_.randrange(1, 4) for _ in range(count + 2 * batch)))
    with MoodyServer(lab.server, script, numbers, batch) as server:

        def ask(after: int) -> tuple[int, dict[str, str], list[int]]:
            life.asks(after)
            connection = HTTPConnection("server.lab", server.port)
            connection.sock = connected(lab.client, server.port)
            try:
                connection.request("GET", f"/events?after={after}")
                response = connection.getresponse()
                came = [int(number) for number in response.read().split(b",") if number]
            except TimeoutError as exc:
                raise MeasurementFailed("the lab's server did not answer in time: the machine is busy") from exc
            except HTTPException as exc:
                raise ConnectionError("the connection ended before the response") from exc
            finally:
                connection.close()
            life.hears(response.status, response.headers.get("Retry-After", "0"), came)
            return response.status, dict(response.headers), came

        raised: Exception | None = None
        given: Any = None
        try:
            given = follow(ask, life.sleeps, count)
        except (OSError, ValueError, KeyError) as exc:
            raised = exc
        except Enough:
            pass
        asked = len(server.asked)
    if life.fault:
        raise Wrong(life.fault)
    if raised:
        raise Wrong(
            f"your client ended with {describe(raised)}: a lost connection and a 503 are part of its life"
        ) from raised
    if isinstance(given, Iterator):
        raise Wrong("yours returned a generator: return the numbers, when you have them")
    if list(given or []) != numbers[:count] or life.had < max(numbers[:count], default=0):
        raise Wrong(
            f"the first {count} events had the numbers {numbers[:count]}, each was to come once and in their order; "
            f"yours were {given}, after {asked} requests"
        )
    return asked


class Life:
    """What a client does between its requests, and what it owes.

    Args:
        count: how many events it is to bring.

    Attributes:
        fault: the first thing that it did wrong, in words; "" where there is none.
    """

    def __init__(self, count: int) -> None:
        self.count, self.fault = count, ""
        self.asked = self.had = 0
        self._slept = 0.0  # since the latest request
        self._least, self._most, self._why = 0.0, MOST_S, "at the beginning"

    def sleeps(self, seconds: float) -> None:
        """As ``time.sleep``, and no time passes."""
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            self._wrong(f"sleep({seconds!r}): give seconds")
        self._slept += seconds

    def asks(self, after: int) -> None:
        """The client is about to ask."""
        self.asked += 1
        if after != self.had or isinstance(after, bool):
            self._wrong(f"yours asked for the events behind {after!r} when it had all up to {self.had}")
        if self.asked > 100:
            self._wrong(f"100 requests, and no end: {self.count} events were to be had in a tenth of that")
        if self._slept < self._least:
            self._wrong(f"{self._why}, and yours asked again after {self._slept:g} s of sleep: wait")
        if self._slept > self._most:
            self._wrong(f"{self._why}, and yours slept for {self._slept:g} s: its events are late by as much")
        # Until there is a response:
        self._slept, self._least, self._most, self._why = 0.0, 1.0, MOST_S, "the connection was lost"

    def hears(self, status: int, retry_after: str, came: list[int]) -> None:
        """A response has come."""
        if status == 503:
            self._least = float(retry_after)
            self._most, self._why = 2 * self._least + 5, f"the server asked for a pause of {retry_after} s"
        elif came:
            self._least, self.had, self._why = 0.0, came[-1], "events had come"
        else:
            self._why = "there was nothing new"

    def _wrong(self, fault: str) -> None:
        self.fault = self.fault or fault
        raise Enough


FOLLOW = TEXT.exercise("follow", _judge_follow, deadline_s=15.0)


# Exercise 2

CLIENTS = 300
DOUBLED = 5  # pauses before the cap is near
TRIED = 12
ENDLESS = 1500


def _judge_pauses(pauses: Callable[..., Iterator[Any]]) -> str:
    random_ = random.Random()
    together = 0
    for base in (1.0, random_.uniform(0.05, 0.3)):
        cap = base * random_.randrange(64, 90)
        together = max(together, _judge_fleet(pauses, base, cap))
    return f"{CLIENTS} clients failed at once, and {together} at most came back within the same moment."


def _judge_fleet(pauses: Callable[..., Iterator[Any]], base: float, cap: float) -> int:
    """A fleet that fails together. Returns how many at most got nearly the same pause, or came back together."""
    clients = [iter(pauses(random.Random(seed), base, cap)) for seed in range(CLIENTS)]
    # In turn, as they live: what they share shows.
    attempts = [[_next(client, attempt, cap) for client in clients] for attempt in range(TRIED)]
    for attempt in range(TRIED, ENDLESS):
        _next(clients[0], attempt, cap)
    told = f"with base {base:.2g} and cap {cap:.2g}, "
    means = [fmean(each) for each in attempts]
    most = 0
    for number, each in enumerate(attempts, 1):
        alike = busiest(each, means[number - 1] / 10)
        most = max(most, alike)
        if alike >= CLIENTS / 2:
            where = "at the cap, too, chance has to decide" if number > DOUBLED else "they are still in step"
            raise Wrong(
                f"{told}{CLIENTS} clients failed at the same moment, and {alike} of them got nearly the same pause "
                f"{number}: {where}"
            )
    if means[0] > 1.15 * base:
        raise Wrong(f"{told}the first pause is {means[0]:.2g} s on average: begin with base, most failures are short")
    grown = means[DOUBLED - 1] / max(means[0], 1e-9)
    steps = [later / max(sooner, 1e-9) for sooner, later in itertools.pairwise(means[:DOUBLED])]
    if not 12 < grown < 21 or not all(1.4 < step < 2.8 for step in steps):
        said = ", ".join(f"{mean:.2g}" for mean in means[:DOUBLED])
        raise Wrong(f"{told}the first pauses are {said} s on average: double it each time")
    if means[-1] < cap / 4:
        raise Wrong(f"{told}pause {TRIED} is {means[-1]:.2g} s on average: grow up to cap")
    for number in range(2, TRIED + 1):
        moments = [sum(each) for each in zip(*attempts[:number], strict=True)]
        alike = busiest(moments, means[number - 1] / 10)
        most = max(most, alike)
        if alike >= CLIENTS / 2:
            raise Wrong(f"{told}{alike} of {CLIENTS} clients made attempt {number} together: they are still in step")
    return most


def _next(client: Iterator[Any], attempt: int, cap: float) -> float:
    pause = next(client, None)
    if pause is None:
        raise Wrong(f"after {attempt} attempts there was no pause any more: a server may be gone for an hour")
    if isinstance(pause, bool) or not isinstance(pause, (int, float)) or not 0 <= pause <= cap:
        raise Wrong(f"a pause of {pause!r}: give seconds from 0 to cap, here {cap:g}")
    return pause


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
