"""Judges the exercises of the section "Synchronous and asynchronous workloads", and makes its hidden trace."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.learn.judging import in_time, killed_by_itself
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.servers import AsgiServer, HttpServer, Request, Response

TEXT = Text(__file__)

RTT_MS = 10
PORT = 8080
WAIT_S = 4.0  # of a CPU that is free for this process


# A job that is submitted, asked for twice, and fetched: for the hidden trace


@recorded
def a_job(lab: Lab) -> Captured:
    """A client submits a job, asks while it is in work, asks when it is done, and fetches the result."""
    asked = 0

    def answer(request: Request) -> Response:
        nonlocal asked
        if request.method == "POST":
            return Response(202, (("location", "/jobs/1"),))
        if request.target == "/jobs/1":
            asked += 1
            return Response(303, (("location", "/reports/1"),)) if asked == 2 else Response(200, body=b"working\n")
        return Response(200, body=b"report on match 1\n")

    with HttpServer(lab.server, answer, port=PORT), lab.capture() as capture, lab.client:
        connection = HTTPConnection("server.lab", PORT, timeout=5)
        for method, target in (("POST", "/reports"), *[("GET", "/jobs/1")] * 2, ("GET", "/reports/1")):
            connection.request(method, target)
            connection.getresponse().read()
        connection.close()
    return capture


# Exercise 1


class _Renderer:
    """An ordinary function that takes as long as the judge wants, and notes who is in it."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.begun: list[str] = []
        self.peak = 0
        self.failing: set[str] = set()
        self._gates: dict[str, threading.Event] = {}
        self._open = threading.Event()
        self._lock = threading.Lock()

    def _gate(self, target: str) -> threading.Event:
        return self._gates.setdefault(target, threading.Event())

    def render(self, target: str) -> str:
        with self._lock:
            gate = self._gate(target)
            self.inside.add(target)
            self.begun.append(target)
            self.peak = max(self.peak, len(self.inside))
            if self._open.is_set():
                gate.set()
        gate.wait(60)
        with self._lock:
            self.inside.discard(target)
        if target in self.failing:
            raise ValueError("no data for this match")
        return f"report of {target}"

    def release(self, *targets: str) -> None:
        with self._lock:
            for target in targets:
                self._gate(target).set()

    def close(self) -> None:
        """From now on nobody waits in render: no thread is left there, whatever the judge has found."""
        with self._lock:
            self._open.set()
            for gate in self._gates.values():
                gate.set()


class _Clients:
    """Requests over connections of their own, each in a thread, and what came of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.answers: dict[str, tuple[int, str] | BaseException] = {}

    def ask(self, name: str, target: str) -> None:
        threading.Thread(target=self._ask, args=(name, target), daemon=True).start()

    def _ask(self, name: str, target: str) -> None:
        try:
            with self.lab.client, contextlib.closing(HTTPConnection("server.lab", PORT, timeout=30)) as connection:
                connection.request("GET", target)
                response = connection.getresponse()
                self.answers[name] = response.status, response.read().decode()
        except (OSError, HTTPException) as exc:
            self.answers[name] = exc


def _judge_repair(handler: Callable[..., Any]) -> str:
    places = random.randrange(2, 5)
    names = [f"/reports/{number}" for number in random.sample(range(100, 1000), places + 2)]
    first, late = names[:places], names[places:]
    renderer = _Renderer()
    entered: list[str] = []
    raised: list[BaseException] = []
    answer = handler(renderer.render, places)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        entered.append(scope["path"])
        try:
            status, text = await answer(scope["path"])
            body = str(text).encode()
        except Exception as exc:
            raised.append(exc)
            status, body = 500, b"raised"
        fields = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    def check(name: str, expected: tuple[int, str], otherwise: str) -> None:
        if not in_time(lambda: name in clients.answers or raised, WAIT_S):
            raise Wrong(otherwise)
        if raised:
            raise Wrong(f"your answer raised {describe(raised[0])}") from raised[0]
        given = clients.answers[name]
        if isinstance(given, BaseException):
            raise MeasurementFailed(f"a client got no answer: {describe(given)}")
        if given != expected:
            raise Wrong(f"the answer to {name} was {given}, expected {expected}")

    with Lab(rtt_ms=RTT_MS) as lab, AsgiServer(lab.server, app, port=PORT), contextlib.closing(renderer):
        clients = _Clients(lab)
        clients.ask(first[0], first[0])
        if not in_time(lambda: renderer.inside or raised, WAIT_S):
            raise Wrong("a report was asked for, and render was never called")
        clients.ask("score", "/score")
        blocked = "one report is in work, and /score has no answer: the loop's thread is with the report"
        check("score", (200, "home 1:0"), blocked)
        for name in first[1:]:
            clients.ask(name, name)
        if not in_time(lambda: len(renderer.inside) == places or raised, WAIT_S):
            raise Wrong(
                f"{places} reports were asked for, {len(renderer.inside)} of them in work: there are {places} places"
            )
        for name in late:
            clients.ask(name, name)
        if not in_time(lambda: set(late) <= set(entered), WAIT_S):
            raise Wrong(
                "all places are taken, and no further request is read: who waits for a place must not keep the loop"
            )
        clients.ask("score again", "/score")
        check(
            "score again", (200, "home 1:0"), "all places are taken, and /score has no answer: who waits for a place?"
        )
        if in_time(lambda: renderer.peak > places, 0.3):
            raise Wrong(f"{renderer.peak} reports were in work at the same time, with {places} places")
        renderer.failing.add(first[0])
        renderer.release(first[0])
        check(first[0], (500, "failed"), "render raised, and its client has no answer")
        if not in_time(lambda: len(renderer.begun) > places, WAIT_S):
            raise Wrong("a report failed, and its place was not given to the next one that waits")
        renderer.close()
        for name in names[1:]:
            check(name, (200, f"report of {name}"), f"all reports are rendered, and {name} has no answer")
    if renderer.peak > places:
        raise Wrong(f"{renderer.peak} reports were in work at the same time, with {places} places")
    if len(renderer.begun) != len(names):
        raise Wrong(f"{len(names)} reports were asked for, and render was called {len(renderer.begun)} times")
    return f"The score was answered with {places} of {places} places taken, and never more than {places} were."


REPAIR = TEXT.exercise("repair", _judge_repair, deadline_s=30.0)


# Exercise 2

Functions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _taken(given: Any) -> tuple[int, int, str]:
    if not isinstance(given, tuple) or len(given) != 3:
        raise Wrong(f"take returned {given!r:.60}, and a job was there: expected (id, attempt, body)")
    return given


def _killed_with_a_job(jobs: Callable[..., Functions], path: str, now: float) -> bool:
    """Take a job in a process that is killed as soon as it has it. Whether it came so far."""

    def take() -> None:
        if jobs(path)[1](now) is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    return killed_by_itself(take, 10)


def _judge_jobs(jobs: Callable[..., Functions]) -> str:
    with TemporaryDirectory() as folder:
        _one_by_one(jobs, str(Path(folder) / "jobs.db"))
        count = _two_at_once(jobs, str(Path(folder) / "more.db"))
    return (
        f"A killed worker's job came back once, a slow worker was refused, and {count} takers at once had {count} jobs."
    )


def _one_by_one(jobs: Callable[..., Functions], path: str) -> None:
    submit, take, finish, status = jobs(path)
    if (given := take(0)) is not None:
        raise Wrong(f"take gave {given!r:.60} of an empty queue: expected None")
    bodies = ["home", "", "home", f"match {random.randrange(1000)}"]
    ids = [submit(body) for body in bodies]
    if len(set(ids)) != len(bodies):
        raise Wrong(f"{len(bodies)} jobs were submitted, and their ids are {ids}: one id for each")
    if (said := status(ids[0])) != "waiting":
        raise Wrong(f"the status of a job that nobody has taken is {said!r}: expected 'waiting'")
    if not _killed_with_a_job(jobs, path, 100):
        raise Wrong("take found no job in another process: where are those that were submitted?")
    submit, take, finish, status = jobs(path)  # the server was restarted as well
    given = [_taken(take(110)) for _ in bodies[1:]]
    if (fourth := take(129)) is not None:
        raise Wrong(f"{fourth!r:.60} was taken twice within 30 s, or never submitted")
    left = set(ids) - {each[0] for each in given}
    if len(left) != 1:
        raise Wrong(f"jobs {ids} were submitted, one is in work elsewhere, and take gave {[each[0] for each in given]}")
    (lost,) = left
    if Counter(each[2] for each in given) != Counter(bodies) - Counter([bodies[ids.index(lost)]]):
        raise Wrong(f"the bodies {bodies} were submitted, and those taken were {[each[2] for each in given]}")
    for id, attempt, _ in given[1:]:
        if attempt != 1 or status(id) != "working" or finish(id, attempt, f"done {id}") is not True:
            raise Wrong(f"job {id} was taken once, is 'working' and can be finished by attempt 1: yours says otherwise")
    again = take(131)
    if again is None:
        raise Wrong("its worker was killed 31 s ago, and nobody is given its job: it is lost")
    if again[:2] != (lost, 2):
        raise Wrong(f"take gave job {again[0]}, attempt {again[1]}: expected job {lost}, attempt 2")
    if finish(lost, 1, "late") is not False or status(lost) != "working":
        raise Wrong("the worker of attempt 1 was slow, not dead, and its finish counted although attempt 2 has the job")
    if finish(lost, 2, "") is not True or status(lost) != "":
        raise Wrong("attempt 2 finished with an empty result, which is one: expected True, and '' as the status")
    if finish(lost, 2, "twice") is not False or status(lost) != "":
        raise Wrong("a job was finished twice, and the second result counted")
    slow = given[0][0]
    if finish(slow, 1, "slow") is not True:
        raise Wrong("a lease had run out, nobody else had the job, and its finish was refused: attempt 1 is the latest")
    if (given_again := jobs(path)[1](10_000)) is not None:
        raise Wrong(f"all jobs are finished, and take gave {given_again!r:.60}")
    if [jobs(path)[3](id) for id in ids[1:]].count("working"):
        raise Wrong("results are gone after a restart")


def _two_at_once(jobs: Callable[..., Functions], path: str) -> int:
    """Takers that look at the same moment: the file is locked for writing until all of them have begun."""
    count = random.randrange(3, 6)
    submit = jobs(path)[0]
    for number in range(count):
        submit(f"job {number}")
    takers = [jobs(path)[1] for _ in range(count)]
    given: list[Any] = []

    def take(taker: Callable[..., Any]) -> None:
        try:
            given.append(taker(100))
        except Exception as exc:
            given.append(exc)

    threads = [threading.Thread(target=take, args=(taker,), daemon=True) for taker in takers]
    with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        for thread in threads:
            thread.start()
        in_time(lambda: len(given) == count, 0.3)
        database.execute("COMMIT")
    if not in_time(lambda: len(given) == count, 8.0):
        raise Wrong(f"{count} workers took a job at the same moment, and {count - len(given)} did not come back")
    for each in given:
        if isinstance(each, Exception):
            raise Wrong(f"workers took a job at the same moment, and take raised {describe(each)}") from each
    ids = [_taken(each)[0] for each in given]
    if len(set(ids)) != count:
        raise Wrong(f"{count} workers at the same moment, and take gave the same job to several: {sorted(ids)}")
    return count


JOBS = TEXT.exercise("jobs", _judge_jobs, deadline_s=30.0)

EXERCISES = (REPAIR, JOBS)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A job over one connection, from its submission to its result, with three blanks."""
    capture = a_job(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("HTTP/1.1 202", "round trip", "connecting takes one; does the server wait for the worker?"),
            Blank("HTTP/1.1 303", "what", "the job is done, and its result is elsewhere"),
            Blank("GET /reports/1", "round trip", "count what was answered before it"),
        ],
        tier=capture.tier,
    )
