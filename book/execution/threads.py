"""What the section "When to use threads" asks: two exercises, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.backends import BACKEND, PORT, Backend
from book.learn.grading import describe
from book.learn.judging import in_time, running
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess

TEXT = Text(__file__)

RTT_MS = 10
PATIENCE_S = 8.0
SOON_S = 2.0  # what needs no wait of a program has come by then, unless the machine is busy


# Exercise 1

PLACES, CLIENTS = 2, 4


class _Backends:
    """What the learner's server asks: "prices" hangs until the judge lets it go. Counts who is in it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        if name not in ("prices", "orders"):
            raise ValueError(f"ask({name!r}): 'prices' or 'orders'")
        if name == "orders":
            return
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.go_on.wait()  # at the latest the end of the process ends it
        with self._lock:
            self.inside -= 1


def _status(lab: Lab, client: socket.socket, seconds: float = SOON_S) -> str:
    """Of the response: "200", "503", …; "no answer" where none comes or the connection ended without one.

    Raises:
        MeasurementFailed: none came in time, because the machine is busy.
    """

    def there() -> bool:
        return bool(select.select([client], [], [], 0)[0])

    if not lab.wire.settle():  # the request has arrived
        raise MeasurementFailed("a request is still under way: the machine is busy")
    # A response that has left by now is on the wire, or here.
    if not in_time(there, seconds) and lab.wire.settle() and not there():
        return "no answer"
    try:
        line = client.recv(4096).split(b"\r\n")[0].split()
    except TimeoutError:
        raise MeasurementFailed(f"a response did not arrive in {PATIENCE_S:g} s: the machine is busy") from None
    except OSError:
        line = []
    return line[1].decode("latin-1") if len(line) > 1 else "no answer"


def _judge_bulkhead(serve: Callable[..., Any]) -> str:
    backends = _Backends()
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as callers:
        with lab.server:
            listener = callers.enter_context(socket.create_server(("server.lab", PORT), backlog=16))
            callers.enter_context(running(serve, listener, backends))

        def call(path: bytes) -> socket.socket:
            with lab.client:
                client = callers.enter_context(socket.create_connection(("server.lab", PORT), timeout=PATIENCE_S))
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            return client

        prices = []
        for number in range(1, CLIENTS + 1):
            prices.append(call(b"/prices"))
            lab.wire.settle()
            if number <= PLACES and not in_time(lambda wanted=number: backends.inside >= wanted, SOON_S):  # type: ignore[misc]
                raise Wrong(
                    f"{number} clients asked for /prices, and {backends.inside} of their requests were in "
                    f'`ask("prices")` at the same time: {PLACES} may be, and nobody else was there'
                )
        health = _status(lab, call(b"/health"))
        if health != "200":
            raise Wrong(
                f'while `ask("prices")` hung, /health got {health}. It asks nobody: keep something free for it, '
                "however many ask for /prices"
            )
        orders = _status(lab, call(b"/orders"))
        if orders != "200":
            raise Wrong(
                f'while `ask("prices")` hung, /orders got {orders}, and nobody was in `ask("orders")`: each backend '
                "needs places of its own"
            )
        refused = [_status(lab, client) for client in prices[PLACES:]]
        if backends.most > PLACES:
            raise Wrong(
                f'{backends.most} requests were in `ask("prices")` at the same time: {PLACES} may be. A thousand '
                "clients would be a thousand threads that wait"
            )
        if set(refused) != {"503"}:
            raise Wrong(
                f'both places in `ask("prices")` were taken, and the next two clients got {" and ".join(refused)}: '
                "refuse them at once with 503, do not let them wait"
            )
        backends.go_on.set()
        served = [_status(lab, client) for client in prices[:PLACES]]
        if set(served) != {"200"}:
            raise Wrong(f"`ask` has returned, and who waited for it got {' and '.join(served)}: respond with 200")
        again: list[str] = []

        def given_back() -> bool:  # a moment after the response
            again.append(_status(lab, call(b"/prices")))
            return again[-1] == "200"

        if not in_time(given_back, SOON_S):
            raise Wrong(f"`ask` works again, and /prices got {again[-1]}: is each place given back?")
    return f"{PLACES} requests hung, 2 were refused at once, and /orders and /health did not notice."


BULKHEAD = TEXT.exercise("bulkhead", _judge_bulkhead, deadline_s=30.0)


# Exercise 2

THREADS = 8


class _Store:
    """A number that takes a moment to read, as one in a cache or on a disk does."""

    def __init__(self) -> None:
        self._value = 0

    def read(self) -> int:
        seen = self._value
        time.sleep(0.02)
        return seen

    def write(self, value: int) -> None:
        self._value = value

    @property
    def value(self) -> int:
        return self._value


def _judge_counter(handle: Callable[..., Any]) -> str:
    store, lock, together = _Store(), threading.Lock(), threading.Event()
    raised: list[BaseException] = []
    asked: list[int] = []
    late: list[MeasurementFailed] = []
    alone = SimpleNamespace(most=0, inside=0)
    guard = threading.Lock()

    def ask() -> None:
        asked.append(1)
        with guard:
            alone.inside += 1
            alone.most = max(alone.most, alone.inside)
            if alone.inside == THREADS:
                together.set()
        try:
            in_time(together.is_set, SOON_S)  # all of them have to be here at the same time
        except MeasurementFailed as exc:
            late.append(exc)
        together.set()  # or they cannot be: nobody else has to wait for it
        with guard:
            alone.inside -= 1

    def run() -> None:
        try:
            handle(store, ask, lock)
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    came_back = in_time(lambda: not any(thread.is_alive() for thread in threads), PATIENCE_S)
    if late:
        raise late[0]
    if raised:
        raise Wrong(f"your function raised {describe(raised[0])}") from raised[0]
    if not came_back:
        raise Wrong("a thread did not come back: is the lock given back on every way, and taken once?")
    if len(asked) != THREADS:
        raise Wrong(f"{THREADS} requests, and `ask` was called {len(asked)} times: each request asks once")
    if alone.most < THREADS:
        raise Wrong(
            f"{THREADS} threads, and at most {alone.most} was in `ask` at a time: whoever waits in it has your lock, "
            "and the others wait for that"
        )
    if store.value != THREADS:
        raise Wrong(
            f"{THREADS} requests, and the counter says {store.value}: between a thread's read and its write others "
            "have read the same number"
        )
    return f"{THREADS} threads were in `ask` at the same time, and the counter says {store.value}."


COUNTER = TEXT.exercise("counter", _judge_counter, deadline_s=25.0)

EXERCISES = (BULKHEAD, COUNTER)


# The hidden trace

BACKEND_DEADLINE_S = 0.25


@recorded
def ask_twice(lab: Lab) -> Captured:
    """One client, one connection: a request that waits for a backend that hangs, then one that does not need it."""

    def gives_up(address: tuple[str, int]) -> None:
        # Its requests wait for the backend, and not for ever. It is defined in here so that its process does not
        # import all that this module does.
        close = b"Content-Length: 0\r\n\r\n"
        listener = socket.create_server(address)
        while True:
            connection, _ = listener.accept()
            with connection:
                while request := connection.recv(4096):
                    response = b"HTTP/1.1 200 OK\r\n" + close
                    if request.startswith(b"GET /slow"):
                        try:
                            with socket.create_connection((address[0], BACKEND), timeout=BACKEND_DEADLINE_S) as backend:
                                backend.recv(1)
                        except TimeoutError:
                            response = b"HTTP/1.1 503 Service Unavailable\r\n" + close
                    connection.sendall(response)

    with Backend(lab), ServerProcess(lab.server, PORT, gives_up), lab.capture() as capture:
        with lab.client, socket.create_connection((lab.server.ip, PORT), timeout=PATIENCE_S) as client:
            for path in (b"/slow", b"/health"):
                client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: server.lab\r\n\r\n")
                client.recv(4096)
        lab.wire.settle()
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A connection on which a deadline runs out, live or recorded, with four blanks."""
    capture = ask_twice(lab)
    packets = next(
        group for group in connections(capture.messages) if begins(group[0]) and group[0].flow.server_port == PORT
    )
    return TEXT.trace(
        packets,
        [
            Blank("503", "round trip", "a deadline is a timer of the server: which packet does this one answer?"),
            Blank("GET /health", "seq", "a SYN takes one number, and the first request has 40 bytes"),
            Blank("GET /health", "round trip", "this client had to wait for one response before it asked again"),
            Blank("200 OK", "from", "the backend still hangs: who can answer without it?"),
        ],
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
