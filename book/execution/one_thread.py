"""What the section "One thread does all" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.clients import PORT
from book.execution.kernel import unacknowledged, unread
from book.execution.workload import FAST, SLOW
from book.learn.grading import describe
from book.learn.judging import running
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.waiting import wait_until

TEXT = Text(__file__)

RTT_MS = 10
WAIT_S = 8.0

# Exercise 1

PATIENCE_S = 5.0
SPIN_S = 0.6
LEAST_SPIN = 0.05  # of a core, which a busy machine gives, too: an idle loop has less than a hundredth


def _receive(client: socket.socket, otherwise: str) -> bytes:
    """A response. Raises Wrong with these words where none comes in time."""
    client.settimeout(PATIENCE_S)
    try:
        response = client.recv(4096)
    except TimeoutError:
        raise Wrong(otherwise) from None
    except OSError as exc:
        raise Wrong(f"{otherwise} ({describe(exc)})") from exc
    if not response.startswith(b"HTTP/1.1 200 "):
        raise Wrong(f"a client received {response[:40]!r}: a response begins with b'HTTP/1.1 200 OK'")
    return response


def _judge_pieces(serve: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as callers:
        before = set(threading.enumerate())
        with lab.server:
            listener = callers.enter_context(socket.create_server(("server.lab", PORT), backlog=16))
            callers.enter_context(running(serve, listener))

        def new_client() -> socket.socket:
            with lab.client:
                return callers.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))

        first, second = new_client(), new_client()
        first.sendall(FAST[:20])
        time.sleep(0.1)  # the half of a request has a turn of its own
        second.sendall(FAST)
        _receive(second, "one client has sent half of a request, and another one, with a whole one, gets no response")
        first.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            raise Wrong(f"half of a request was answered with {first.recv(4096)[:20]!r}: keep it until the rest comes")
        first.sendall(FAST[20:])
        _receive(first, "the other half of the request came, and there is no response: is the first half lost?")
        others = [
            thread
            for thread in set(threading.enumerate()) - before
            if thread.name != "your server" and not thread.name.startswith("labkit")
        ]
        if others:
            raise Wrong(f"your server has {len(others)} thread(s) besides the loop's: one is to do all")
        second.sendall(FAST)
        _receive(second, "the second request on a connection has no response: keep the connection until it is closed")
        first.close()
        time.sleep(0.1)  # the end of the connection arrives
        cpu_s = time.process_time()
        time.sleep(SPIN_S)
        if time.process_time() - cpu_s > LEAST_SPIN * SPIN_S:
            raise Wrong(
                "a client has gone, and your loop turns without a pause: its socket stays readable until you "
                "unregister and close it"
            )
        second.sendall(FAST)
        _receive(second, "after one client has gone, the other one gets no response")
    return "Two clients, requests in pieces, one thread, and the loop rests when nothing is ready."


PIECES = TEXT.exercise("pieces", _judge_pieces)


# Exercise 2

FAST_CLIENTS = 5


class _Query:
    """A blocking call, as of a database's driver: it returns when the judge lets it."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> bytes:
        self.began.set()
        self.go_on.wait(WAIT_S)
        return b"42 rows"


def _serve_asyncio(ip: str, respond: Callable[..., Awaitable[object]], query: _Query, there: threading.Event) -> None:
    raised: list[BaseException] = []

    async def main() -> None:
        failed = asyncio.Event()

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await respond(reader, writer, query)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client has gone
            except Exception as exc:
                raised.append(exc)
                failed.set()
            finally:
                writer.close()

        async with await asyncio.start_server(guarded, ip, PORT):
            there.set()
            await failed.wait()

    asyncio.run(main())
    raise raised[0]


def _judge_hand_over(respond: Callable[..., Any]) -> str:
    query, there = _Query(), threading.Event()
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as callers:
        with lab.server:
            callers.enter_context(running(_serve_asyncio, lab.server.ip, respond, query, there))
        if not there.wait(WAIT_S):
            raise MeasurementFailed("the loop did not begin in time: try again")

        def ask(request: bytes) -> socket.socket:
            with lab.client:
                client = callers.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))
            client.sendall(request)
            return client

        slow = ask(SLOW)
        if not query.began.wait(PATIENCE_S):
            raise Wrong("a client asked for /slow, and query was not called")
        for number in range(1, FAST_CLIENTS + 1):
            _receive(
                ask(FAST),
                f"while query waited, client {number} of {FAST_CLIENTS} asked for /fast and got no response: the loop "
                "has one thread, and query had it",
            )
        query.go_on.set()
        response = _receive(slow, "query has returned, and the client that asked for /slow gets no response")
    if b"42 rows" not in response:
        raise Wrong(f"the response to /slow is {response!r}: its body is what query returned")
    return f"{FAST_CLIENTS} clients were answered while the blocking call waited."


HAND_OVER = TEXT.exercise("hand_over", _judge_hand_over)

EXERCISES = (PIECES, HAND_OVER)


# The hidden trace

FIRST = b"GET /first HTTP/1.1\r\nHost: server.lab\r\n\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: server.lab\r\n\r\n"


@recorded
def trace(lab: Lab) -> Captured:
    """A client that comes while the only thread is busy with another one's slow request."""

    def slow_loop(address: tuple[str, int]) -> None:  # in here, so that its process need not import this module
        from book.execution import patterns, workload

        workload.WAIT_S = 0.2
        patterns.one_thread(address)

    with (
        contextlib.ExitStack() as callers,
        ServerProcess(lab.server, PORT, slow_loop),
        lab.watch(PORT, connections=True) as watch,
    ):

        def new_client() -> socket.socket:
            with lab.client:
                return callers.enter_context(socket.create_connection((lab.server.ip, PORT), timeout=WAIT_S))

        other = new_client()
        other.sendall(SLOW)
        wait_until(lambda: unacknowledged(other) == 0 and unread(watch.so_far()) == 0)
        with lab.capture() as capture:
            with new_client() as client:
                for request in (FIRST, SECOND):
                    client.sendall(request)
                    client.recv(4096)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests of a client that comes while the loop is busy, live or recorded, with four blanks."""
    capture = trace(lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "what", "the server's only thread is busy: who answers a SYN, and with what?"),
            Blank("HTTP/1.1 200", "round trip", "the wait for a busy thread is time: is it a round trip?"),
            Blank("GET /second", "round trip", "what had the client to wait for before it sent this?"),
            Blank("GET /second", "seq", "count the client's SYN as one, and then the bytes of its first request"),
        ],
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
