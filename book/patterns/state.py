"""Judges the exercises of the section "Stateful and stateless"."""

from __future__ import annotations

import random
import secrets
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.grading import describe
from book.patterns.sites import WORKER_PORT, Browser, Worker, at_once, cookies_of, exchange
from labkit import MeasurementFailed
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response

TEXT = Text(__file__)


# Exercise 1

LIFE_S = 900
NOW = 1_800_000_000
OCTETS = set(string.ascii_letters + string.digits + "!#$%&'()*+-./:<=>?@[]^_`{|}~")  # RFC 6265, section 4.1.1


def _pair(tokens: Callable[..., Any], *keys: bytes) -> tuple[Callable[..., Any], Callable[..., Any]]:
    made = tokens(list(keys), LIFE_S)
    if not isinstance(made, tuple) or len(made) != 2 or not all(map(callable, made)):
        raise Wrong(f"tokens(keys, life_s) gave {made!r}: return the two functions sign and verify")
    sign, verify = made

    def checked_sign(user: str, now: int) -> str:
        token = sign(user, now)
        if not isinstance(token, str) or not token or set(token) - OCTETS:
            raise Wrong(
                f"the token for {user!r} is {token!r}: a cookie's value is text of ASCII letters, digits and signs, "
                "without space, quote, comma, semicolon and backslash"
            )
        return token

    def checked_verify(token: str, now: int) -> Any:
        try:
            return verify(token, now)
        except Exception as exc:
            raise Wrong(
                f"verify raised {describe(exc)} for the text {token[:60]!r}: it may come from anybody, return None"
            ) from exc

    return checked_sign, checked_verify


def _changed(token: str) -> Iterator[tuple[str, str]]:
    """How it was changed, and what came of it."""
    for at, old in enumerate(token):
        for new in "A0f.":
            yield f"character {at + 1} changed from {old!r} to {new!r}", token[:at] + new + token[at + 1 :]
        yield f"character {at + 1} in the other case", token[:at] + old.swapcase() + token[at + 1 :]
        yield f"character {at + 1} taken out", token[:at] + token[at + 1 :]
        yield f"a 0 put in before character {at + 1}", token[:at] + "0" + token[at:]
        yield f"cut after {at} characters", token[:at]
        for to in range(len(token)):
            rest = token[:at] + token[at + 1 :]
            yield f"character {at + 1} moved to place {to + 1}", rest[:to] + old + rest[to:]
    for more in ("A", "=", "0", ".", "\n", " ", "\0"):
        yield f"{more!r} put behind it", token + more
        yield f"{more!r} put before it", more + token


def _compares(verify: Callable[..., Any], token: str) -> bool:
    """Whether it calls hmac.compare_digest, by whatever name."""
    called: list[str] = []

    def note(frame: object, event: str, argument: Any) -> None:
        if event == "c_call":
            called.append(getattr(argument, "__name__", ""))

    sys.setprofile(note)
    try:
        verify(token, NOW)
    finally:
        sys.setprofile(None)
    return any(name.endswith("compare_digest") for name in called)


def _judge_tokens(tokens: Callable[..., Any]) -> str:
    old_key, new_key, foreign = (secrets.token_bytes(32) for _ in range(3))
    sign, _ = _pair(tokens, old_key)
    _, verify = _pair(tokens, old_key)  # another worker
    random_name = "".join(random.choices(string.ascii_letters + "._-:|", k=random.randrange(8, 30)))
    for user in ("ann", "a.b.c", "", "jürgen ☂", 'x"; admin=1, \\', f"{NOW}.9", random_name):
        token = sign(user, NOW)
        for later in (0, LIFE_S - 1):
            if (said := verify(token, NOW + later)) != user:
                raise Wrong(
                    f"a token for {user!r} was given to another worker with the same key {later} s later: verify gave "
                    f"{said!r}: it lives {LIFE_S} s, and any worker can verify it"
                )
        for later in (LIFE_S, 10 * LIFE_S):
            if verify(token, NOW + later) is not None:
                raise Wrong(f"a token that lives {LIFE_S} s is still accepted after {later} s")
    _, foreign_verify = _pair(tokens, foreign)
    token = sign("user10", NOW)
    if foreign_verify(token, NOW) is not None:
        raise Wrong("a token was accepted that was signed with another key: anybody can make such a token")
    _judge_changes(verify, sign, token)
    for text in ("", ".", "..", "...", "a.b.c", "☂.☂.☂", "é" * 50, "%00", "A" * 5000, token.replace(".", "\u2024")):
        if text != token and verify(text, NOW) is not None:
            raise Wrong(f"{text[:20]!r} was accepted: it is no token of yours")
    _judge_rotation(tokens, old_key, new_key, token)
    if not _compares(verify, token):
        raise Wrong(
            "verify compares the signature with something that stops at the first difference, and so tells by its time "
            "how much of a forged one is right: use hmac.compare_digest"
        )
    count = sum(1 for _ in _changed(token))
    return f"{len(token)} characters, good for any worker with the key; none of {count} changed tokens was."


def _judge_changes(verify: Callable[..., Any], sign: Callable[..., Any], token: str) -> None:
    for how, text in _changed(token):
        if text != token and (said := verify(text, NOW)) is not None:
            raise Wrong(f"the token {token!r}, {how}, is accepted, as {said!r}: only what sign made is a token")
        if text != token and verify(text, NOW + 2 * LIFE_S) is not None:
            raise Wrong(f"the token {token!r}, {how}, is accepted after its end")
    others = [sign("admin1", NOW), sign("user10", NOW + 5)]
    for other in others:
        for at in range(1, min(len(token), len(other))):
            mixed = token[:at] + other[at:]
            if mixed not in (token, other) and verify(mixed, NOW) is not None:
                raise Wrong("the beginning of one token and the end of another are accepted together")


def _judge_rotation(tokens: Callable[..., Any], old_key: bytes, new_key: bytes, token: str) -> None:
    sign, verify = _pair(tokens, new_key, old_key)
    if verify(token, NOW) != "user10":
        raise Wrong("after the key was changed, a token of the old key is refused: all keys of the list verify")
    _, new_verify = _pair(tokens, new_key)
    fresh = sign("ann", NOW)
    if new_verify(fresh, NOW) != "ann":
        raise Wrong("with several keys a new token is not signed with the first: the old one can never be taken away")
    if new_verify(token, NOW) is not None:
        raise Wrong("the old key was taken away, and its token is still accepted")
    _judge_changes(verify, sign, fresh)


TOKENS = TEXT.exercise("tokens", _judge_tokens)


# Exercise 2

USERS = 30
HOSTS = ("one", "two", "three")
PATIENCE_S = 30.0


@dataclass
class Backend:
    """A worker as the balancer sees it.

    Attributes:
        name: of the worker, for the cookie.
        leaving: it is to be restarted soon: no new users.
        send: from request to response; ConnectionError where the worker is gone.
    """

    name: str
    leaving: bool
    send: Callable[[Request], Response]


def _handle(request: Request, sessions: dict[str, str]) -> Response:
    name = cookies_of(request).get("session", "")
    if request.target.startswith("/login/"):
        name = secrets.token_hex(8)
        sessions[name] = request.target
        return Response(204, (("set-cookie", f"session={name}; Path=/"), ("x-own", "kept")))
    if request.target == "/logout":
        sessions.pop(name, None)
        return Response(204)
    return Response.text("welcome") if name in sessions else Response.text("log in", 401)


class _Farm:
    """Three workers behind the learner's balancer."""

    def __init__(self, lab: Lab, forward: Callable[..., Any]) -> None:
        self.lab, self.forward = lab, forward
        self.workers: dict[str, Worker] = {}
        self.backends: list[Backend] = []
        self.raised: list[BaseException] = []
        self.late = False
        self.browsers: list[Browser] = []
        for host in HOSTS:
            name = host[0] + secrets.token_hex(random.randrange(1, 4))
            self.workers[name] = Worker(getattr(lab, host), _handle, lambda host: {})
            self.backends.append(Backend(name, False, self._sender(host)))

    def _sender(self, host: str) -> Callable[[Request], Response]:
        def send(request: Request) -> Response:
            try:
                return exchange(self.lab.server, host, WORKER_PORT, request)
            except TimeoutError:
                self.late = True
                raise
            except OSError as exc:
                raise ConnectionError(f"{host} is gone") from exc

        return send

    def answer(self, request: Request) -> Response:
        """What the learner's balancer does with a request."""
        try:
            response = self.forward(request, random.sample(self.backends, len(self.backends)))
            if not isinstance(response, Response):
                raise TypeError(f"forward returned {response!r}: return a Response")
        except Exception as exc:
            self.raised.append(exc)
            return Response(500)
        return response

    def check(self, when: str) -> None:
        """Raises Wrong where the learner's balancer has raised."""
        if self.late:
            raise MeasurementFailed("a worker did not answer in time: the machine is busy")
        if self.raised:
            exc = self.raised[0]
            raise Wrong(f"{when}, and your balancer raised {describe(exc)}") from exc

    def newcomers(self, count: int) -> list[Browser]:
        """So many browsers that were never here."""
        browsers = [Browser(self.lab, self.lab.client) for _ in range(count)]
        self.browsers += browsers
        return browsers

    def all_ask(self, browsers: Sequence[Browser], *targets: str) -> list[int]:
        """All at the same time, each these targets in their order. Returns the statuses."""
        statuses: list[int] = []

        def use(browser: Browser) -> None:
            for target in targets:
                statuses.append(browser.ask(target))

        at_once(*(partial(use, browser) for browser in browsers), patience_s=PATIENCE_S)
        return statuses

    def users_of(self, name: str) -> int:
        return len(self.workers[name].sessions)

    def close(self) -> None:
        for browser in self.browsers:
            browser.close()
        for worker in self.workers.values():
            worker.stop()


def _logged_out(farm: _Farm, browsers: Sequence[Browser], when: str, *targets: str) -> None:
    statuses = farm.all_ask(browsers, *(targets or ("/me", "/me")))
    farm.check(when)
    bad = [status for status in statuses if status not in (200, 204)]
    if bad:
        raise Wrong(f"{when}: {len(bad)} of {len(statuses)} requests got {bad[0]}. Nobody may be logged out by that")


def _judge_drain(forward: Callable[..., Any]) -> str:
    with Lab(rtt_ms=2, hosts=list(HOSTS)) as lab:
        farm = _Farm(lab, forward)
        try:
            with HttpServer(lab.server, farm.answer, port=80):
                return _drained(farm)
        finally:
            farm.close()


def _drained(farm: _Farm) -> str:
    first = farm.newcomers(USERS)
    _logged_out(farm, first, f"{USERS} users logged in at once and asked twice", "/login/x", "/me", "/me")
    gone, crashed, last = farm.backends
    if not all(user.cookies.get("worker") in farm.workers for user in first):
        raise Wrong("a response has no Set-Cookie: worker=NAME with the name of the worker that gave it")
    counts = {name: farm.users_of(name) for name in farm.workers}
    if not all(counts.values()):
        raise Wrong(f"{USERS} users logged in, and the three workers have {sorted(counts.values())}: use all of them")
    _judge_cookies(farm, last)
    gone.leaving = True
    before = farm.users_of(gone.name)
    _logged_out(farm, first, "one worker was leaving, and its users and all others asked")
    second = farm.newcomers(USERS)
    _logged_out(farm, second, "one worker was leaving, and new users came", "/login/x", "/me", "/me")
    if (more := farm.users_of(gone.name) - before) > 0:
        raise Wrong(f"a worker was leaving, and {more} of {USERS} new users were sent there: it will never be empty")
    theirs = [user for user in first if user.cookies["worker"] == gone.name]
    farm.all_ask(theirs, "/logout")
    if left := farm.users_of(gone.name):
        raise Wrong(f"all users of the worker that is leaving have logged out, and it still has {left} sessions")
    farm.workers[gone.name].stop()
    stayed = [user for user in first if user not in theirs] + second
    _logged_out(farm, stayed, "the worker had no user any more and was ended")
    _logged_out(farm, theirs, "users came back whose cookie names a worker that is gone", "/login/x", "/me", "/me")
    gone.leaving = False  # nobody has told the balancer what comes now
    farm.workers[crashed.name].stop()
    everybody = [*stayed, *theirs]
    statuses = farm.all_ask(everybody, "/me")
    farm.check("a worker crashed")
    if strange := [status for status in statuses if status not in (200, 401)]:
        raise Wrong(f"two workers are gone, and {len(strange)} requests got {strange[0]}: ask the next one")
    if 200 not in statuses:
        raise Wrong("a worker crashed, and users of another one were logged out")
    _logged_out(farm, everybody, "a worker crashed, and its users logged in again", "/login/x", "/me", "/me")
    last.leaving = True
    _logged_out(farm, farm.newcomers(2), "the only worker that is left is leaving", "/login/x", "/me", "/me")
    farm.workers[last.name].stop()
    if (status := farm.newcomers(1)[0].ask("/me")) != 503 or farm.raised:
        raise Wrong(f"no worker is left, and the response was {status}: answer 503")
    return f"{before} users were on the worker that left, and nobody was logged out; after a crash all came back."


def _judge_cookies(farm: _Farm, backend: Backend) -> None:
    """Cookies as they come: others before and behind it, a name that ends alike, a worker that is none."""
    other = next(each.name for each in farm.backends if each is not backend)
    worker = farm.workers[backend.name]
    for text in (
        f"theme=dark; worker={backend.name}; lang=en",
        f"xworker={other}; worker={backend.name}",
        f"note=worker:{other}; worker={backend.name}",
        f"session=worker={other}; worker={backend.name}",
    ):
        for _ in range(3):
            before = worker.served
            response = farm.answer(Request("GET", "/login/y", (("cookie", text),)))
            farm.check(f"a request had the header Cookie: {text}")
            if worker.served == before:
                raise Wrong(f"Cookie: {text}: that client belongs to {backend.name}, and yours sent it elsewhere")
            if response.header("x-own") != "kept" or not any(
                name.lower() == "set-cookie" and value.startswith("session=") for name, value in response.headers
            ):
                raise Wrong("the worker's own header fields and its cookie belong to the client: keep them")
    for text in ("worker=nobody", "worker=", "worker", f"worker={backend.name}x", "worker=0; session=1"):
        response = farm.answer(Request("GET", "/me", (("cookie", text),)))
        farm.check(f"a request had the header Cookie: {text}")
        if response.status != 401:
            raise Wrong(f"Cookie: {text} names no worker, and the response was {response.status}: choose one")


DRAIN = TEXT.exercise("drain", _judge_drain, deadline_s=40.0)

EXERCISES = (TOKENS, DRAIN)

QUIZ = TEXT.quiz


# A worker and its store, for the hidden trace


def at_the_store(lab: Lab) -> Captured:
    """The client is a worker, the server the store: a session is read, written, and written again as if unchanged."""
    version = 1

    def store(request: Request) -> Response:
        nonlocal version
        tag = request.header("if-match")
        if request.method == "PUT" and tag != f'"{version}"':
            return Response(412)
        version += request.method == "PUT"
        return Response(200, (("etag", f'"{version}"'),))

    with HttpServer(lab.server, store, port=6379), lab.capture() as capture, lab.client:
        connection = HTTPConnection(lab.server.fqdn, 6379, timeout=20)
        for method, fields in (("GET", {}), ("PUT", {"If-Match": '"1"'}), ("PUT", {"If-Match": '"1"'})):
            connection.request(method, "/ann", headers=fields)
            connection.getresponse().read()
        connection.close()
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A worker reads and writes a session, with three blanks."""
    capture = at_the_store(lab)
    return TEXT.trace(
        capture.messages,
        [
            Blank("GET /ann", "round trip", "the connection has to be there first"),
            Blank("PUT /ann", "round trip", "it says which version was read, so it waits for the answer to that"),
            Blank("HTTP/1.1 412", "what", "the version was 1 when it was read. What is it after the first PUT?"),
        ],
        tier=capture.tier,
    )
