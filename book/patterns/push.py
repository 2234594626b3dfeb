"""Judges the exercises of the section "Push", and makes its hidden trace."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.learn.judging import in_time
from book.patterns.push_clients import Listener
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import AsgiServer

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080
URL = f"ws://server.lab:{PORT}"
WAIT_S = 4.0
LAST = "final"  # the match of the goal after a pause


# A connection on which the server speaks first, for the hidden trace


@recorded
def pushed_first(lab: Lab) -> Captured:
    """The upgrade, a message that nobody asked for, and the client's answer to it."""

    async def greet(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "home 1:0"})
        await receive()

    with AsgiServer(lab.server, greet, port=PORT), lab.capture() as capture, lab.client:
        with connect_websocket(f"{URL}/chat", compression=None) as client:
            client.recv(5)
            client.send("at last")
    return capture


# Exercise 1


class Scores:
    """A ticker over WebSockets: what each client is told goes through functions of the learner's.

    Args:
        newest: the learner's.

    Attributes:
        members: by the client's path, its `tell`.
        may_read: by path, an event: as long as it is not set, ``send`` waits, as it does on a connection that is full.
        loop: the server's.
        faults: what was raised in the learner's code.
    """

    def __init__(self, newest: Callable[..., Any]) -> None:
        self.newest = newest
        self.members: dict[str, Any] = {}
        self.may_read: dict[str, asyncio.Event] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.faults: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        self.loop = asyncio.get_running_loop()
        await receive()
        await send({"type": "websocket.accept"})
        may_read = asyncio.Event()
        may_read.set()

        async def send_score(match: str, score: str) -> None:
            await may_read.wait()
            await send({"type": "websocket.send", "text": f"{match} {score}"})

        async def write() -> None:
            try:
                await write_all()
                self.faults.append("your write returned: it goes on as long as the client is there")
            except OSError:
                pass  # the client has gone
            except Exception as exc:
                self.faults.append(f"your write raised {describe(exc)}")

        try:
            tell, write_all = self.newest(send_score)
        except Exception as exc:
            self.faults.append(f"your newest raised {describe(exc)}, or did not return two functions")
            return
        writer = asyncio.create_task(write())
        self.may_read[scope["path"]], self.members[scope["path"]] = may_read, tell
        while (await receive())["type"] == "websocket.receive":
            pass
        writer.cancel()

    def tell(self, match: str, score: str) -> None:
        """Called in the server's loop: a goal, for all who are there."""
        for tell in self.members.values():
            try:
                given = tell(match, score)
            except Exception as exc:
                self.faults.append(f"your tell raised {describe(exc)}")
                continue
            if inspect.iscoroutine(given):
                given.close()
                self.faults.append("your tell is a coroutine: the server calls it and goes on, nobody awaits it")

    def do(self, call: Callable[..., object], *args: object) -> None:
        """Run this in the server's loop. Raises Wrong where that does not come round."""
        done = threading.Event()

        def run() -> None:
            call(*args)
            done.set()

        assert self.loop is not None
        self.loop.call_soon_threadsafe(run)
        if not in_time(done.is_set, WAIT_S):
            raise Wrong("your code holds the server's event loop: nobody is served. Await something, or return")
        if self.faults:
            raise Wrong(self.faults[0])


def _judge_newest(newest: Callable[..., Any]) -> str:
    random_ = random.Random()
    matches = [f"match{number}" for number in random_.sample(range(100), 4)]
    goals = dict.fromkeys([*matches, LAST], 0)
    slow_paths = "/slow", "/slower"
    scores = Scores(newest)

    def score(match: str) -> str:
        goals[match] += 1
        return f"{match} {goals[match]}:0"

    def goal(match: str) -> None:
        said.append(score(match))
        scores.do(scores.tell, *said[-1].split())
        if not in_time(lambda: len(fast.texts) >= len(said) or scores.faults, WAIT_S):
            raise Wrong(f"a client that reads has {len(fast.texts)} of {len(said)} scores, while another reads nothing")
        if scores.faults:
            raise Wrong(scores.faults[0])
        if fast.texts != said:
            raise Wrong(f"a client that keeps up was to get {said[-3:]} last, and got {fast.texts[-3:]}")

    said: list[str] = []
    with Lab(rtt_ms=RTT_MS) as lab, AsgiServer(lab.server, scores, port=PORT), contextlib.ExitStack() as stack:
        fast = stack.enter_context(Listener(lab.client, f"{URL}/fast"))
        slow = {path: stack.enter_context(Listener(lab.client, URL + path)) for path in slow_paths}
        if not in_time(lambda: len(scores.members) == 3 or scores.faults, WAIT_S):
            raise Wrong("your code holds the server's event loop: nobody is served. Await something, or return")
        goal(matches[0])
        for path in slow_paths:  # one after the other, and each a second time
            for _ in range(2):
                _judge_pause(scores, slow, path, goal, matches, goals, said, random_)
    return f"{len(said)} scores: all of them to who reads, and to who does not the newest of each match."


def _judge_pause(
    scores: Scores,
    slow: dict[str, Listener],
    path: str,
    goal: Callable[[str], None],
    matches: Sequence[str],
    goals: dict[str, int],
    said: Sequence[str],
    random_: random.Random,
) -> None:
    """One client reads nothing while there are goals, and then it does."""
    client, others = slow[path], [each for name, each in slow.items() if name != path]
    if not in_time(lambda: client.texts[-1:] == list(said[-1:]), WAIT_S):
        raise Wrong(f"a client that reads again was to get {said[-1]!r} last, and got {client.texts[-1:]}")
    had = len(client.texts)
    scores.do(scores.may_read[path].clear)
    order = random_.sample(list(matches), len(matches))
    # The first goes to send and waits there, and a newer one of that match behind the others.
    waiting = [*order, order[0], *random_.choices(order[1:], k=8), order[1]]
    goal(order[0])
    in_send = said[-1]
    for match in waiting[1:]:
        goal(match)
    scores.do(scores.may_read[path].set)
    goal(LAST)
    expected = [in_send, *(f"{match} {goals[match]}:0" for match in (*order[1:], order[0]))]
    in_time(lambda: said[-1] in client.texts and len(client.texts) > had + len(expected), 1.0)
    told = [text for text in client.texts[had:] if text != said[-1]]
    if len(told) > len(expected):
        raise Wrong(
            f"a client that read nothing during {len(waiting)} goals in {len(order)} matches got {len(told)} scores "
            "afterwards: of each match only the newest counts"
        )
    newest = {text.split()[0]: text for text in told}
    if stale := [match for match in order if newest.get(match) != f"{match} {goals[match]}:0"]:
        raise Wrong(
            f"a client that read nothing during {len(waiting)} goals was told {newest.get(stale[0], 'nothing')!r} "
            f"last of {stale[0]}, where the newest is {goals[stale[0]]}:0"
        )
    if told != expected:
        raise Wrong(
            f"scores waited in the order {', '.join(text.split()[0] for text in expected)}, and went out as "
            f"{', '.join(text.split()[0] for text in told)}: the match that has waited longest goes first"
        )
    if not in_time(lambda: all(each.texts[-1:] == list(said[-1:]) for each in others), WAIT_S):
        raise Wrong("a second client that reads was to get all scores, too, and did not: does each have its own?")


NEWEST = TEXT.exercise("newest", _judge_newest, deadline_s=30.0)


# Exercise 2

MOST_CONNECTIONS = 40


class Cutting:
    """Sends numbered events, those behind ``after`` in the target, and ends each connection as its script says.

    Args:
        script: for each connection how many events it brings and how it ends, "close" (a close frame, 1012) or "cut";
            then connections bring all and stay.
        last: number of the last event.

    Attributes:
        asked: behind which number each connection asked for events.
        sent: up to which number all had been sent before that connection.
        open: connections that are.
    """

    def __init__(self, script: Sequence[tuple[int, str]], last: int) -> None:
        self.last = last
        self.asked: list[int] = []
        self.sent: list[int] = []
        self.open = 0
        self._latest = 0
        self._script = iter(script)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        after = int(scope["query_string"].rpartition(b"=")[2])
        self.asked.append(after)
        self.sent.append(self._latest)
        self.open += 1
        try:
            with contextlib.suppress(OSError):
                count, end = next(self._script, (self.last, "stay"))
                again = len(self.asked) % 2  # a server that starts again may know only a checkpoint before
                for number in range(max(1, after + 1 - again), min(self.last, after + count) + 1):
                    await send({"type": "websocket.send", "text": str(number)})
                    self._latest = max(self._latest, number)
                if end == "close":
                    await send({"type": "websocket.close", "code": 1012})
                while end == "stay" and (await receive())["type"] == "websocket.receive":
                    pass
        finally:
            self.open -= 1


def _judge_follow(follow: Callable[..., Any]) -> str:
    random_ = random.Random()
    script = [(random_.randrange(2, 6), "cut"), (random_.randrange(2, 6), "close"), (0, "cut"), (1, "cut")]
    script += [(0, "close"), (random_.randrange(2, 6), "cut")]
    down = iter([False, False, True, False, True])
    count = 30 + random_.randrange(5)
    server = Cutting(script, count + 5)
    attempts = 0

    def connect(after: object) -> ClientConnection:
        nonlocal attempts
        attempts += 1
        if isinstance(after, bool) or not isinstance(after, int) or after < 0:
            raise Wrong(f"connect({after!r}): give the number behind which you want the events, 0 for all")
        if attempts > MOST_CONNECTIONS:
            raise Wrong(f"{MOST_CONNECTIONS} connections, and no end: what had come need not come again")
        if next(down, False):
            raise ConnectionRefusedError("the server is down for a moment")
        with lab.client:
            return connect_websocket(f"{URL}/events?after={after}", compression=None, close_timeout=1)

    with Lab(rtt_ms=RTT_MS) as lab, AsgiServer(lab.server, server, port=PORT):
        try:
            given = list(follow(connect, count))
        except (OSError, ConnectionClosed) as exc:
            raise Wrong(f"your client ended with {describe(exc)}: it has to connect again") from exc
        if not in_time(lambda: not server.open, WAIT_S):
            raise Wrong(f"your client returned and left {server.open} connections open: close what you open")
    expected = list(range(1, count + 1))
    if sorted(set(given)) == expected and len(given) > count:
        twice = next(number for number in given if given.count(number) > 1)
        raise Wrong(f"event {twice} is in your list twice: a server may send again what you have")
    if given != expected:
        lost = sorted(set(expected) - set(given))
        raise Wrong(
            f"events 1 to {count} were to come in their order; missing: {lost[:5]}, and yours end with {given[-3:]}"
        )
    for after, had in zip(server.asked, server.sent, strict=True):
        if after < had:
            raise Wrong(f"yours asked for the events behind {after} when it had all up to {had}: ask for what is new")
    return f"{len(server.asked)} connections, {count} events, none missing and none twice."


FOLLOW = TEXT.exercise("follow", _judge_follow, deadline_s=20.0)

EXERCISES = (NEWEST, FOLLOW)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """An upgrade, and a message that the server sends first, with three blanks."""
    capture = pushed_first(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("101", "round trip", "it answers the request of the client, which waited for the SYN-ACK"),
            Blank("WebSocket text", "from", "this frame is not masked, and nobody had asked for it"),
            Blank("GET /chat", "seq", "a SYN counts as one, and nothing else was sent before"),
        ],
        tier=capture.tier,
    )
