"""Judges the exercises of the section "Server-sent events", and makes its hidden trace."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import AsgiServer

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080
MOST = 400  # lines of a judged stream: more than its events, comments and empty lines together


def events_app(stream: Callable[[str], Any]) -> Starlette:
    """Answers with what ``stream`` makes of the request's Last-Event-ID."""

    def answer(request: Request) -> StreamingResponse:
        last_id = request.headers.get("last-event-id", "")
        return StreamingResponse(stream(last_id), media_type="text/event-stream")

    return Starlette(routes=[Route("/events", answer)])


# A stream with two events, for the hidden trace


@recorded
def two_events(lab: Lab) -> Captured:
    """A client that has event 6 asks for what follows: event 7, a comment, event 8."""

    async def stream(last_id: str) -> AsyncIterator[str]:
        for part in ("id: 7\ndata: home 2:1\n\n", ": still here\n\n", "id: 8\ndata: home 3:1\n\n"):
            await asyncio.sleep(0.06)  # the time from one to the next
            yield part

    with AsgiServer(lab.server, events_app(stream), port=PORT), lab.capture() as capture, lab.client:
        connection = HTTPConnection("server.lab", PORT, timeout=5)
        connection.request("GET", "/events", headers={"Last-Event-ID": "6"})
        connection.getresponse().read()
        connection.close()
    return capture


# Exercise 1


def parse(lines: Iterator[bytes]) -> Iterator[tuple[str, str, str]]:
    """Identifier, type and data of each event, as HTML has it (9.2.6), from lines of a stream."""
    last, kind, data = "", "", list[str]()
    for line in lines:
        text = line.decode().removesuffix("\n").removesuffix("\r")
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if not text:
            if data:
                yield last, kind or "message", "\n".join(data)
            kind, data = "", []
        elif name == "id":
            last = value
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)


def _written(random_: random.Random, end: str) -> list[str]:
    """Some events as a server may write them, in a random order but for the last, which no blank line ends."""
    parts = [
        f"id: {random_.randrange(100)}{end}data: home 1:0",
        "data: a second line follows" + end + "data: ",
        ": a comment: with a colon",
        "data:no space, and: a colon",
        "data:  two spaces, and – a dash, 1½ ⚽",
        "event: penalty" + end + f"data: {random_.randrange(1000)}",
        f"retry: 3000{end}id: {random_.randrange(100, 200)}",
        "event: nothing",
        "data",
        f"unknown: field{end}data: known",
    ]
    random_.shuffle(parts)
    # The last one has no data of its own, so that an identifier has to be kept for it.
    return [*parts, "data: has the identifier of an earlier one", "data: unfinished"]


def _lines(content: bytes) -> Iterator[bytes]:
    """Those that are complete."""
    return iter(content.split(b"\n")[:-1])


class _Pieces:
    """A stream in pieces, for a reader that gives each event as soon as it is complete."""

    def __init__(self, content: bytes, cuts: list[int]) -> None:
        self.content = content
        self.ends = [*sorted({cut for cut in cuts if 0 < cut < len(content)}), len(content)]
        self.given = 0  # events, by the reader

    def __iter__(self) -> Iterator[bytes]:
        begin = 0
        for end in self.ends:
            due = len(list(parse(_lines(self.content[:begin]))))
            if self.given < due:
                raise Wrong(
                    f"{due} events were complete, yours had given {self.given} and read on: a stream has no end"
                )
            yield self.content[begin:end]
            begin = end


def _judge_messages(messages: Callable[..., Any]) -> str:
    random_ = random.Random()
    for end, cuts in (("\n", 0), ("\r\n", 0), ("\n", 30), ("\r\n", 60), ("\n", 1000)):
        content = (end * 2).join(_written(random_, end)).encode()
        wanted = list(parse(_lines(content)))
        pieces = _Pieces(content, random_.choices(range(len(content)), k=cuts))
        how = f"a stream in {len(pieces.ends)} pieces, its lines ending with {end!r}"
        for event in messages(iter(pieces)):
            place = pieces.given
            pieces.given += 1
            if place == len(wanted):
                raise Wrong(f"{how}: it has {len(wanted)} events, and yours gave {event!r} besides")
            if event != wanted[place]:
                raise Wrong(f"{how}: event {place + 1} is {wanted[place]!r}, and yours gave {event!r}")
        if pieces.given < len(wanted):
            raise Wrong(f"{how}: it has {len(wanted)} events, and yours gave {pieces.given}")
    return "The same events, however the stream was cut."


MESSAGES = TEXT.exercise("messages", _judge_messages)


# Exercise 2


class Source:
    """Where a learner's stream takes its events from. Nothing happens for a while in front of some of them.

    Args:
        texts: of the events, which are numbered from 1.
        quiet: the numbers behind which it is silent once.
    """

    def __init__(self, texts: list[str], quiet: set[int]) -> None:
        self.texts, self.quiet = texts, set(quiet)
        self.silences = 0

    def after(self, number: int) -> list[tuple[int, str]] | None:
        """Up to three events behind a number; none where nothing happened; None behind the last."""
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(self.texts):
            raise Wrong(f"after({number!r}): give the number of the last event that was sent, 0 for none")
        if number in self.quiet:
            self.quiet.remove(number)
            self.silences += 1
            return []
        if number == len(self.texts):
            return None
        return list(enumerate(self.texts, 1))[number : number + 1 + number % 3]


def _judge_stream(stream: Callable[..., Any]) -> str:
    random_ = random.Random()
    texts = ["home 1:0", "two\nlines", "", " a space in front", "id: 99\ndata: of another", "ends with a break\n"]
    texts += [f"home {number}:0" for number in range(7, random_.randrange(12, 18))]
    random_.shuffle(texts)
    raised: dict[str, Exception] = {}

    def served(last_id: str) -> Iterator[Any]:
        name, _, last_id = last_id.partition("/")
        try:
            yield from stream(last_id, sources[name].after)
        except Exception as exc:
            raised[name] = exc
            raise

    def follow(name: str, first_id: str, leaves: list[int]) -> None:
        """Read a stream to its end, and come back after each of these many events."""
        last_id, heard = first_id, 0
        lines: list[bytes] = []
        for leave in [*leaves, MOST]:
            with lab.client, contextlib.closing(HTTPConnection("server.lab", server.port, timeout=60)) as connection:
                fields = {"Last-Event-ID": f"{name}/{last_id}".encode("latin-1")}
                connection.request("GET", "/events", headers=fields)
                for number, _, data in parse(_noted(connection.getresponse(), lines)):
                    heard += 1
                    if heard > len(texts) or data != texts[heard - 1]:
                        raise Wrong(_differs(heard, texts, data, last_id))
                    if number != str(heard):
                        raise Wrong(f"event {heard} came with the id {number!r}: what would its client ask for later?")
                    last_id = number
                    if heard == leave:
                        break
        if heard < len(texts) and name not in raised:
            raise Wrong(f"the stream ended after {heard} of {len(texts)} events, and after() had more")
        comments, silences = sum(line.startswith(b":") for line in lines), sources[name].silences
        if not leaves and comments < silences and name not in raised:
            raise Wrong(f"nothing happened {silences} times, and {comments} comments came: is the stream alive?")

    def follow_all() -> None:
        with ThreadPoolExecutor() as pool:
            followers = {name: pool.submit(follow, name, *plan) for name, plan in plans.items()}
        for name, exc in raised.items():
            said = str(exc) if isinstance(exc, Wrong) else f"your stream raised {describe(exc)}"
            raise Wrong(f"a client sent {plans[name][0]!r} as its Last-Event-ID: {said}") from exc
        for follower in followers.values():
            follower.result()

    places = range(len(texts))
    plans: dict[str, tuple[str, list[int]]] = {
        "stays": ("", []),
        "returns": ("", sorted(random_.sample(places[1:], 4))),
        **{f"stranger {number}": (last_id, []) for number, last_id in enumerate(("abc", "²", "1.5", "-1"))},
    }
    sources = {name: Source(texts, {0, *random_.sample(places, 5)}) for name in plans}
    with Lab(rtt_ms=RTT_MS) as lab, AsgiServer(lab.server, events_app(served), port=0) as server:
        follow_all()
    return f"{len(texts)} events came once to each of {len(plans)} clients, one of which was away four times."


def _noted(lines: Any, into: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        into.append(line)
        if len(into) > MOST:
            raise Wrong(f"{MOST} lines, and no end: return when after() gives None")
        yield line


def _differs(place: int, texts: list[str], data: str, last_id: str) -> str:
    if place > 1 and data == texts[0] and data not in texts[1:place]:
        return f"a client that has event {place - 1} (Last-Event-ID: {last_id}) was sent the first one again"
    wanted = repr(texts[place - 1]) if place <= len(texts) else "no further event"
    return f"event {place} is {wanted}, and the client read {data!r}"


STREAM = TEXT.exercise("stream", _judge_stream, deadline_s=15.0)

EXERCISES = (MESSAGES, STREAM)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """One stream with two events, with three blanks."""
    capture = two_events(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("GET /events HTTP/1.1", "round trip", "connecting takes one, and then?"),
            Blank("event message, id 8", "seq", "each byte of the stream counts, those of the comment as well"),
            Blank("comment", "what", "it begins with a colon, and no program is told of it"),
        ],
        tier=capture.tier,
    )
