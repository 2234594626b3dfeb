"""What the section "Listener, acceptor, reader" asks: three exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Mapping
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.clients import PORT
from book.execution.kernel import unacknowledged, unread
from book.execution.workload import FAST
from book.learn.grading import describe
from book.learn.judging import running
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.queues.run_queue import state
from labkit.waiting import happens, wait_until

TEXT = Text(__file__)

RTT_MS = 10
WAIT_S = 8.0


# A connection whose server is stopped: used by the hidden trace and by exercise 1


def _stopped(lab: Lab) -> tuple[Captured, dict[str, int]]:
    """One client of a server that is stopped, and then goes on. Returns the packets, and the state while stopped."""
    from book.execution.patterns import thread_per_connection

    with (
        ServerProcess(lab.server, PORT, thread_per_connection) as server,
        contextlib.ExitStack() as stack,
        lab.watch(PORT, connections=True) as watch,
        lab.capture() as capture,
    ):
        stack.callback(os.kill, server.pid, signal.SIGCONT)  # a stopped process takes long to end
        os.kill(server.pid, signal.SIGSTOP)
        wait_until(lambda: state(server.pid) == "T")
        with lab.client, socket.create_connection((lab.server.ip, PORT), timeout=WAIT_S) as client:
            client.sendall(FAST)
            wait_until(lambda: unacknowledged(client) == 0)
            wait_until(lambda: unread(watch.so_far()) > 0 and watch.so_far().accept_queue.last > 0)
            seen = watch.so_far()
            frozen = {"accept queue": seen.accept_queue.last, "unread": unread(seen), "acknowledged": 1}
            os.kill(server.pid, signal.SIGCONT)
            client.recv(4096)
    return capture, frozen


def _accepted(lab: Lab) -> dict[str, int]:
    """One client of a server that accepts and never reads: the state once it has accepted."""

    def only_accepts(address: tuple[str, int]) -> None:  # in here, so that its process need not import this module
        listener = socket.create_server(address, backlog=128)
        accepted = []
        while True:
            accepted.append(listener.accept()[0])

    with ServerProcess(lab.server, PORT, only_accepts), lab.watch(PORT, connections=True) as watch:
        with lab.client, socket.create_connection((lab.server.ip, PORT), timeout=WAIT_S) as client:
            client.sendall(FAST)
            wait_until(lambda: unread(watch.so_far()) > 0 and watch.so_far().accept_queue.last == 0)
            seen = watch.so_far()
            return {"accept queue": seen.accept_queue.last, "unread": unread(seen)}


@recorded
def life(lab: Lab) -> tuple[Captured, dict[str, int], dict[str, int]]:
    """The life of one connection.

    Returns:
        the packets of a client whose server is stopped at first, the state while it was stopped, and the state of
        another server that has accepted and does not read.
    """
    return *_stopped(lab), _accepted(lab)


# Exercise 1

ROLES = ("kernel", "acceptor", "reader")
LIFE = {
    "the SYN is answered": "does the process have to run for it? Look at the stopped one",
    "the connection enters the accept queue": "the stopped process had a queue: who filled it?",
    "the request is acknowledged": "an acknowledgment says that bytes have arrived, and not that anybody read them",
    "the request enters the receive queue": "the stopped process had unread bytes: who put them there?",
    "the connection leaves the accept queue": "one of three system calls makes this queue shorter",
    "the request leaves the receive queue": "one of three system calls makes this queue shorter",
    "the response is written": "who knows what was asked?",
}


def _who(capture: Captured, stopped: Mapping[str, int], accepted: Mapping[str, int]) -> dict[str, str]:
    """Who did what: what happens while the process is stopped is the kernel's, what without a recv the acceptor's."""
    answered = any({"SYN", "ACK"} <= packet.flags for packet in capture.messages)
    if not (answered and all(stopped.values())) or accepted["accept queue"] or not accepted["unread"]:
        raise MeasurementFailed(f"unexpected: {stopped}, {accepted}")
    return _lives()


def _lives(**others: str) -> dict[str, str]:
    values = dict(zip(LIFE, ["kernel"] * 4 + ["acceptor"] + ["reader"] * 2, strict=True))
    for number, value in others.items():
        values[list(LIFE)[int(number[1:]) - 1]] = value
    return values


def _judge_life(answer: Any) -> str:
    if not isinstance(answer, Mapping):
        raise Wrong(f"{answer!r}: give a dictionary, event → 'kernel', 'acceptor' or 'reader'")
    if missing := [event for event in LIFE if event not in answer]:
        raise Wrong(f"the event {missing[0]!r} is missing")
    given = {event: who for event, who in answer.items() if who is not ... and event in LIFE}
    if strange := [who for who in given.values() if who not in ROLES]:
        raise Wrong(f"{strange[0]!r}: choose 'kernel', 'acceptor' or 'reader'")
    with Lab(rtt_ms=RTT_MS) as lab:
        who = _who(*life(lab))
    for event, why in LIFE.items():
        if event in given and given[event] != who[event]:
            raise Wrong(f"{event!r} is not the {given[event]}'s work: {why}")
    if still := [event for event in LIFE if event not in given]:
        raise Wrong(f"right so far; still open: {', '.join(still)}")
    return "Four of the seven events happened while the process was stopped, five before anybody read."


LIFE_OF_A_CONNECTION = TEXT.exercise("life", _judge_life)


# Exercise 2

SILENT, HONEST = 3, 3
PATIENCE_S = 2.0
TRIES = 3  # so often a client may wait that long: a busy machine does not hold up the server each time
GET = b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"


def _judge_no_hostage(serve: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as callers:
        server_side = lab.authority.server_context("server.lab")
        client_side = lab.authority.client_context()
        with lab.server:
            listener = callers.enter_context(socket.create_server(("server.lab", 8443), backlog=16))
            callers.enter_context(running(serve, listener, server_side))

        def silence() -> None:
            for _ in range(SILENT):
                callers.enter_context(socket.create_connection(("server.lab", 8443), timeout=WAIT_S))

        with lab.client:
            silence()
            for number in range(1, HONEST + 1):
                for _ in range(TRIES):
                    if _is_answered(client_side, number):
                        break
                    silence()  # a server that waited for the silent ones, and then gave them up, meets new ones
                else:
                    raise Wrong(
                        f"{SILENT} clients connected and said nothing. Then client {number} of {HONEST} began a "
                        f"handshake and had no answer within {PATIENCE_S:g} s, {TRIES} times: who in your server waits "
                        "for the silent ones?"
                    )
    return f"{SILENT} clients said nothing, and {HONEST} others had their responses meanwhile."


def _is_answered(context: ssl.SSLContext, number: int) -> bool:
    """One request over TLS: whether there was an answer in time. Raises Wrong for another one than 200."""
    try:
        with socket.create_connection(("server.lab", 8443), timeout=PATIENCE_S) as plain:
            with context.wrap_socket(plain, server_hostname="server.lab") as client:
                client.sendall(GET)
                response = client.recv(4096)
    except TimeoutError:
        return False
    except OSError as exc:
        raise Wrong(f"client {number} of {HONEST} met {describe(exc)}") from exc
    if not response.startswith(b"HTTP/1.1 200 "):
        raise Wrong(f"client {number} received {response[:40]!r}: a response begins with b'HTTP/1.1 200 OK'")
    return True


NO_HOSTAGE = TEXT.exercise("no_hostage", _judge_no_hostage, deadline_s=20.0)


# Exercise 3

DRIP_S = 0.05
DEADLINE_S = 0.4


def _judge_deadline(read_request: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as callers:
        with lab.server:
            listener = callers.enter_context(socket.create_server(("server.lab", PORT)))

        def pair() -> tuple[socket.socket, socket.socket]:
            with lab.client:
                client = callers.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))
            return client, callers.enter_context(listener.accept()[0])

        client, connection = pair()
        client.sendall(FAST[:20])
        wait_until(lambda: _is_unread(connection))
        sender = threading.Thread(target=_send_when_read, args=(client, FAST[20:], connection), daemon=True)
        sender.start()
        try:
            request = read_request(connection, WAIT_S)
        except TimeoutError as exc:
            raise Wrong(f"an honest client sent its request in two pieces, and you raised {describe(exc)}") from exc
        sender.join()
        if request != FAST:
            raise Wrong(f"an honest client sent {FAST!r} in two pieces, and you returned {request!r}")

        client, connection = pair()
        ended = threading.Event()
        dripped: list[int] = []
        dripper = threading.Thread(target=_drip, args=(client, connection, ended, dripped), daemon=True)
        dripper.start()
        try:
            got = read_request(connection, DEADLINE_S)
        except TimeoutError:
            got = None
        ended.set()
        dripper.join()
        if got is not None:
            raise Wrong(
                f"a client sent a byte every {1000 * DRIP_S:g} ms, and you waited for all of its {len(FAST)}, with "
                f"{DEADLINE_S:g} s as the deadline: does your time-out begin again with each byte?"
                if got == FAST
                else f"the time was over, and you returned {got!r}: raise TimeoutError"
            )
    return (
        f"A client that sent a byte every {1000 * DRIP_S:g} ms was given up after {len(dripped)} of {len(FAST)} bytes."
    )


def _is_unread(connection: socket.socket) -> bool:
    """Whether bytes lie in the receive queue; not in that of a socket that was closed."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    except (OSError, ValueError):
        return False
    return bool(count)


def _send_when_read(client: socket.socket, piece: bytes, connection: socket.socket) -> None:
    """Else what came before and this could arrive as one."""
    happens(lambda: not _is_unread(connection), 2)
    with contextlib.suppress(OSError):
        client.sendall(piece)


def _drip(client: socket.socket, connection: socket.socket, ended: threading.Event, dripped: list[int]) -> None:
    """A byte, a pause, and the next one when that was read: a reader that is held up does not find them all there."""
    with contextlib.suppress(OSError):
        for number in range(len(FAST)):
            client.sendall(FAST[number : number + 1])
            dripped.append(number)
            if ended.wait(DRIP_S):
                return
            while _is_unread(connection):
                if ended.wait(DRIP_S):
                    return


DEADLINE = TEXT.exercise("deadline", _judge_deadline, deadline_s=15.0)

EXERCISES = (LIFE_OF_A_CONNECTION, NO_HOSTAGE, DEADLINE)


# The hidden trace


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A connection to a process that is stopped and goes on later, live or recorded, with four blanks."""
    capture, _, _ = life(lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "from", "the process was stopped: which host's kernel has the listener?"),
            Blank("GET /fast", "round trip", "what had the client to wait for before it sent its request?"),
            Blank("HTTP/1.1 200", "round trip", "a process that wakes up late adds time: does it add a round trip?"),
            Blank("HTTP/1.1 200", "seq", "a SYN counts as one, and the stopped process had sent nothing before"),
        ],
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
