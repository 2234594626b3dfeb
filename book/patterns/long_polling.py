"""Judges the exercises of the section "Long polling", and makes its hidden trace."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import warnings
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.learn.judging import in_time
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.servers import HttpServer, Request, Response

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080


def returned_at(capture: Captured, port: int = 80) -> list[float]:
    """When each request arrived that names an event: a client that has been answered, and is back. Seconds."""
    return [
        packet.transit.received_ns / 1e9
        for packet in capture.messages
        if packet.flow.server_port == port and packet.transit.received_ns is not None
        for message in packet.messages
        if message.first == packet.index and message.role == "request" and "after=0 " not in (message.start_line or "")
    ]


# Three held requests, for the hidden trace


@recorded
def three_waits(lab: Lab) -> Captured:
    """One event for a client that waits, three while it is on its way, and then none."""
    came = threading.Event()

    def answer(request: Request) -> Response:
        after = int(request.target.rpartition("=")[2])
        if after == 4:
            return Response(204)
        came.wait(0.2)  # nobody sets it: the time until the event
        return Response(200, body=b"[1]" if after == 0 else b"[2, 3, 4]")

    with HttpServer(lab.server, answer, port=PORT), lab.capture() as capture, lab.client:
        connection = HTTPConnection("server.lab", PORT, timeout=5)
        after = 0
        for _ in range(3):
            connection.request("GET", f"/events?after={after}")
            body = connection.getresponse().read()
            after = json.loads(body)[-1] if body else after
        connection.close()
    return capture


# Exercise 1

KEPT = 5
LONG_S = 10.0  # a server's hold, where an event comes
HOLD_S = 2.0  # where none comes
SOON_S = 1.5
MOST_LOOKS = 8


class Board:
    """The events of a server that keeps the last five.

    Attributes:
        changed: held while events are added, and told when they were.
        looks: how often ``numbers`` was read.
        between: called once, right after the next look.
    """

    def __init__(self, last: int = 0) -> None:
        self.changed = threading.Condition()
        self.looks = 0
        self.between: Callable[[], None] | None = None
        self._numbers = tuple(range(max(1, last - KEPT + 1), last + 1))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the events that are kept, at this moment."""
        self.looks += 1
        seen, between, self.between = self._numbers, self.between, None
        if between is not None:
            between()
        return seen

    def add(self, count: int = 1) -> None:
        """So many more, at once; the oldest go."""
        with self.changed:
            last = self._numbers[-1] if self._numbers else 0
            self._numbers = (*self._numbers, *range(last + 1, last + 1 + count))[-KEPT:]
            self.changed.notify_all()


class Holding:
    """A server that answers by the learner's function, and clients that ask it, each in a thread."""

    def __init__(self, host: Host, held: Callable[..., Any], board: Board) -> None:
        self.board, self.asked, self.raised = board, 0, list[BaseException]()
        self._held = held
        self._lock = threading.Lock()
        self.server = HttpServer(host, self._answer, port=0)

    def _answer(self, request: Request) -> Response:
        with self._lock:
            self.asked += 1
        try:
            given = self._held(self.board, int(request.target.rpartition("=")[2]), LONG_S)
            return Response(200, body=json.dumps(list(given)).encode())
        except LookupError as exc:
            if type(exc) is LookupError:
                return Response(410)
            self.raised.append(exc)
        except BaseException as exc:
            self.raised.append(exc)
        return Response(500)

    def ask(self, client: Host, number: int) -> list[Any]:
        """Ask in a thread. What is given fills with the answer: a list of numbers, or "gone"."""
        answer: list[Any] = []

        def run() -> None:
            connection = HTTPConnection("server.lab", self.server.port, timeout=20)
            # Where the learner's function hangs, the end of the lab ends the connection.
            with client, contextlib.suppress(OSError, HTTPException):
                connection.request("GET", f"/events?after={number}")
                response = connection.getresponse()
                body = response.read()
                failed = "gone" if response.status == 410 else "error"
                answer.append(json.loads(body) if response.status == 200 else failed)
            connection.close()

        asked, looks = self.asked, self.board.looks
        threading.Thread(target=run, daemon=True).start()
        if not in_time(lambda: self.asked > asked, 10):
            raise MeasurementFailed("a request did not reach the server in 10 s")
        if not in_time(lambda: self.board.looks > looks or self.raised, SOON_S):
            raise Wrong("a client asked, and yours did not look at board.numbers: what it wants may be there already")
        time.sleep(0.05)  # so that it waits, most likely; where it is about to, the judgement is the same
        return answer

    def expect(self, answer: list[Any], wanted: Any, story: str) -> None:
        """Raises Wrong where something else comes, or nothing."""
        came = in_time(lambda: answer or self.raised, SOON_S)
        if self.raised:
            raise Wrong(f"{story}, and yours raised {describe(self.raised[0])}") from self.raised[0]
        if not came:
            raise Wrong(f"{story}, and yours still waited {SOON_S:g} s later: the client should have had {wanted}")
        if answer[0] != wanted:
            raise Wrong(f"{story}: the client should have had {wanted}, and got {answer[0]}")


def _judge_held(held: Callable[..., Any]) -> str:
    random_ = random.Random()
    last = random_.randrange(7, 40)
    with warnings.catch_warnings(), Lab(rtt_ms=RTT_MS) as lab:
        warnings.simplefilter("ignore", RuntimeWarning)  # a handler that hangs is told by the verdict
        server = Holding(lab.server, held, Board(last))
        story = f"events {last - 4} to {last} are kept"
        server.expect(server.ask(lab.client, last - 2), [last - 1, last], f"{story}, a client has {last - 2}")
        server.expect(
            server.ask(lab.client, last - 5), list(range(last - 4, last + 1)), f"{story}, a client has {last - 5}"
        )
        gone = f"{story}, and a client has {last - 6}: one that it needs is gone"
        server.expect(server.ask(lab.client, last - 6), "gone", gone)
        _judge_waiting(lab, held)
        _judge_race(lab, held)
        _judge_time_out(held)
    return "Nobody was forgotten: those who wait, those who come late, and one who came in between."


def _judge_waiting(lab: Lab, held: Callable[..., Any]) -> None:
    board = Board()
    server = Holding(lab.server, held, board)
    waiting = [server.ask(lab.client, number) for number in (0, 0, 1)]
    board.add()
    for answer in waiting[:2]:
        server.expect(answer, [1], "two clients waited for event 1, and it came")
    if in_time(lambda: waiting[2], 0.2):
        raise Wrong(
            f"a client with event 1 waited for the next. Event 1 came, and it was answered with {waiting[2][0]}"
        )
    board.add()
    server.expect(waiting[2], [2], "a client with event 1 waited on while event 1 came, and then event 2")
    late = server.ask(lab.client, 2)
    board.add(KEPT + 1)
    server.expect(late, "gone", f"a client waited for event 3, and {KEPT + 1} came at once: event 3 is gone already")


def _judge_race(lab: Lab, held: Callable[..., Any]) -> None:
    board = Board(3)
    server = Holding(lab.server, held, board)

    def between() -> None:
        thread = threading.Thread(target=board.add, daemon=True)
        thread.start()
        thread.join(0.3)  # it has to wait where the look was made under the lock

    board.between = between
    answer = server.ask(lab.client, 3)
    server.expect(answer, [4], "an event came between your look at board.numbers and your wait for board.changed")


def _judge_time_out(held: Callable[..., Any]) -> None:
    board, answer = Board(2), list[Any]()
    began = time.monotonic()
    ended = list[float]()

    def run() -> None:
        try:
            given = held(board, 2, HOLD_S)
            answer.append(given if given is None else list(given))
        except BaseException as exc:
            answer.append(exc)
        ended.append(time.monotonic() - began)

    threading.Thread(target=run, daemon=True).start()
    if not in_time(lambda: ended, HOLD_S + SOON_S):
        raise Wrong(f"nothing came for {HOLD_S:g} s, the longest time to wait, and yours waited on")
    if isinstance(answer[0], BaseException):
        raised = describe(answer[0])
        raise Wrong(f"nothing came for {HOLD_S:g} s, and yours raised {raised}: return an empty list") from answer[0]
    if answer[0] != []:
        raise Wrong(f"nothing came for {HOLD_S:g} s, and yours returned {answer[0]}: return an empty list")
    if ended[0] < HOLD_S * 0.9:
        raise Wrong(f"yours returned after {ended[0]:.2f} s without an event: wait for {HOLD_S:g} s")
    if board.looks > MOST_LOOKS:
        raise Wrong(
            f"yours looked at board.numbers {board.looks} times while nothing came: that is polling, inside the "
            "server. Wait for board.changed"
        )


HELD = TEXT.exercise("held", _judge_held, deadline_s=25.0)


# Exercise 2

WAIT_S = 60
MOST_CUTS = 10


class Middle:
    """A server that holds requests, seen through a proxy with an idle limit. Its clock is the judge's.

    Args:
        made: when each event is made, seconds, in order.
        limit: of the proxy, seconds.
        lost: the requests, counted from 1, whose response is lost.
    """

    def __init__(self, made: list[float], limit: float, lost: set[int]) -> None:
        self.made, self.limit, self.lost = made, limit, lost
        self.now, self.had, self.requests, self.cuts = 0.0, 0, 0, 0
        self.owed = False  # a pause

    def sleep(self, seconds: float) -> None:
        """The client's pause."""
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 0:
            raise Wrong(f"sleep({seconds!r}): give seconds")
        if seconds and not self.owed:
            raise Wrong(f"yours slept for {seconds:g} s after a response: let the answer wait, not the client")
        self.now += seconds
        self.owed = self.owed and not seconds

    def ask(self, after: int, wait: float) -> tuple[int, list[int]]:
        """One request: when this returns, the clock shows the end of it."""
        self.requests += 1
        if self.requests > 40 * len(self.made):
            raise Wrong(f"{self.requests} requests, and no end: {len(self.made)} events were to be had")
        if after != self.had:
            raise Wrong(f"yours asked for the events behind {after!r} when it had all up to {self.had}")
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 < wait <= WAIT_S:
            raise Wrong(f"wait={wait!r}: give seconds, {WAIT_S} at most")
        if self.owed:
            raise Wrong("the connection was lost, and yours asked again without a pause")
        if wait < self.limit / 4:
            raise Wrong(
                f"yours asked for {wait:g} s where {self.limit:g} would pass: most of its requests come back empty"
            )
        coming = self.made[self.had] if self.had < len(self.made) else float("inf")
        held = min(wait, self.limit, max(0.0, coming - self.now))
        self.now += held
        if self.requests in self.lost:
            self.owed = True
            raise ConnectionError("the connection ended before the response")
        numbers = [number for number, at in enumerate(self.made, 1) if number > self.had and at <= self.now]
        if numbers:
            self.had = numbers[-1]
            return 200, numbers
        if wait <= self.limit:
            return 204, []
        self.cuts += 1
        if self.cuts > MOST_CUTS:
            raise Wrong(f"{self.cuts} times the proxy answered 504 after {self.limit:g} s: ask for a shorter wait")
        return 504, []


def _judge_listen(listen: Callable[..., Any]) -> str:
    random_ = random.Random()
    told = []
    for limit in (random_.uniform(4, 7), random_.uniform(36, 50), 90.0):
        made, at = list[float](), 0.0
        for gap in random_.sample([0.0, 0.0, 0.0, 3.0, 17.0, 40.0, 150.0, 200.0], 8):
            at += gap + random_.random() / 10
            made.append(at)
        middle = Middle(made, round(limit, 1), set(random_.sample(range(1, 8), 3)))
        try:
            given = list(listen(middle.ask, middle.sleep, len(made)))
        except (OSError, ValueError, IndexError, TypeError) as exc:
            raise Wrong(f"your client ended with {describe(exc)}: a lost connection is part of its life") from exc
        if given != list(range(1, len(made) + 1)):
            raise Wrong(f"events 1 to {len(made)} were to come, each once and in their order; yours were {given}")
        if middle.had != len(made):
            raise Wrong(
                f"yours returned events 1 to {len(made)}, and the server had sent only {middle.had}: ask for them"
            )
        told.append(f"{middle.limit:g} s: {middle.requests} requests, {middle.cuts} cut")
    return f"Each of {len(made)} events came once. Limit {'; '.join(told)}."


LISTEN = TEXT.exercise("listen", _judge_listen)

EXERCISES = (HELD, LISTEN)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Three held requests over one connection, with three blanks."""
    capture = three_waits(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("HTTP/1.1 200", "round trip", "how long something takes is not how many round trips it takes"),
            Blank("GET /events?after=4", "what", "the client names the last event that it has: count those that came"),
            Blank(
                "HTTP/1.1 204",
                "what",
                "nothing came in the time for which the server holds: there is a status for that",
            ),
        ],
        tier=capture.tier,
    )
