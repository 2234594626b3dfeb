"""What the section "SYN and accept queues" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.accept_queues_experiments import OK, settle
from book.execution.clients import PORT, call, is_connected, listen, new_clients
from book.execution.kernel import counted
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.queues.diag import LISTEN, NETLINK_SOCK_DIAG, ask, request
from labkit.waiting import happens, wait_until

TEXT = Text(__file__)

RTT_MS = 10
WAIT_S = 8.0
SLOW_MS = 100  # for one round trip: whoever takes that for no answer is misled by the machine


def _refused(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, 0)  # an error is told in any case, and stays
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _queued(lab: Lab) -> int:
    """Connections in the accept queue, asked for now: what a watch has sampled may be of a moment ago."""
    with lab.server.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        return sum(entry.receive_queue for entry in ask(netlink, request(states=1 << LISTEN, port=PORT)))


def _slowest_ms(capture: Captured) -> float:
    """The longest that a client waited for the answer to its SYN, milliseconds; 0 where none was answered."""
    waits = [0.0]
    for group in connections(capture.messages):
        answers = (p.transit.received_ns for p in group if {"SYN", "ACK"} <= p.flags)
        came_ns = next((moment for moment in answers if moment), None)
        if begins(group[0]) and came_ns:
            waits.append((came_ns - group[0].transit.time_ns) / 1e6)
    return max(waits)


# Exercise 1


def _judge_capacity(accept_capacity: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, listen(lab.server, backlog=5):
        with lab.watch(PORT) as watch, lab.capture() as capture:
            with lab.client:
                answer = accept_capacity((lab.server.ip, PORT))
            lab.wire.settle()
        seen = watch.history  # with a last look: nobody accepts, so whoever got in is still there
    held = seen.accept_queue.peak
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Wrong(f"it returned {answer!r}: give the number of connections as an int")
    if seen.counters.get("TcpExtSyncookiesRecv") and answer > held:
        raise Wrong(
            f"you say {answer}, and the server's accept queue held {held}: the SYN queue was full, so the others "
            "got SYN cookies and believe that they are connected. Let each client finish before the next one "
            "begins"
        )
    if not seen.counters.get("TcpExtListenDrops"):
        if (slowest_ms := _slowest_ms(capture)) > SLOW_MS:
            raise MeasurementFailed(f"a SYN was answered after {slowest_ms:.0f} ms instead of {RTT_MS}")
        raise Wrong(
            f"the server dropped nothing: its accept queue held {held} when you stopped, and there was room left"
        )
    if answer != held:
        raise Wrong(
            f"you say {answer}, and the server's accept queue held {held}: count the clients that got a connection"
        )
    return f"The server called listen(5), and {held} fit: found from outside."


CAPACITY = TEXT.exercise("capacity", _judge_capacity, needs="kernel")


# Exercise 2

CLIENTS = 10
BACKLOG = 2
PATIENCE_S = 3.0


class _Work:
    """Serves one connection, and takes as long as the judge wants: a backend that is slow."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            self.go_on.wait()
            connection.sendall(OK)


def _answered(client: socket.socket, deadline: float) -> bool:
    try:
        client.settimeout(max(0.01, deadline - time.monotonic()))
        return client.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _judge_keep_accepting(keep_accepting: Callable[..., Any]) -> str:
    raised: list[BaseException] = []
    work = _Work()

    def run() -> None:
        try:
            keep_accepting(listener, work, CLIENTS)
        except BaseException as exc:
            raised.append(exc)

    with (
        Lab(rtt_ms=RTT_MS) as lab,
        listen(lab.server, backlog=BACKLOG) as listener,
        lab.watch(PORT) as watch,
        contextlib.ExitStack() as callers,
    ):
        listener.settimeout(None)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        clients = []
        patience_s = PATIENCE_S
        for number in range(1, CLIENTS + 1):
            (client,) = new_clients(lab, 1, callers)
            clients.append(client)
            call(lab, client)

            def decided(client: socket.socket = client) -> bool:
                return is_connected(client) or _refused(client) or bool(raised) or counted(watch, "ListenDrops") > 0

            wait_until(decided)
            if raised:
                raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
            if _refused(client):
                raise Wrong(f"client {number} was refused: your function has closed the listener")
            if is_connected(client):
                client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            lab.wire.settle()  # the last ACK puts a connection into the queue, half a round trip after the client's own
            if not happens(lambda: not _queued(lab), patience_s):
                patience_s = 0.02  # nobody accepts: the others need not wait as long
        seen = watch.so_far()
        dropped, held = seen.counters.get("TcpExtListenDrops", 0), _queued(lab)
        if dropped:
            raise Wrong(
                f"while `work` was busy nobody accepted: {held} connections stood in the accept queue, and the "
                "kernel dropped what came after them"
            )
        if held:
            raise Wrong(
                f"while `work` was busy nobody accepted: the accept queue held {held} connections. A longer queue "
                "lets them wait, it does not serve them"
            )
        work.go_on.set()
        deadline = time.monotonic() + WAIT_S
        answers = sum(_answered(client, deadline) for client in clients)
        thread.join(WAIT_S / 2)
    if raised:
        raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
    if answers < CLIENTS:
        raise Wrong(f"{answers} of {CLIENTS} clients got a response: hand every connection to `work`")
    if thread.is_alive():
        raise Wrong(f"all {CLIENTS} clients are served, and your function has not returned")
    most = seen.accept_queue.peak
    return f"{CLIENTS} clients, listen({BACKLOG}), nothing dropped: at most {most} was seen in the accept queue."


KEEP_ACCEPTING = TEXT.exercise("keep_accepting", _judge_keep_accepting, deadline_s=20.0, needs="kernel")

EXERCISES = (CAPACITY, KEEP_ACCEPTING)


# The hidden trace


@recorded
def trace(lab: Lab) -> Captured:
    """Five clients fill the queue of a listener with backlog 4, two more come; then the server accepts again."""
    with (
        contextlib.ExitStack() as stack,
        listen(lab.server, backlog=4) as listener,
        lab.watch(PORT) as watch,
    ):
        *five, sixth, seventh = new_clients(lab, 7, stack)
        for client in five:
            call(lab, client)
        settle(watch, 5)
        call(lab, sixth)
        settle(watch, 6)
        with lab.capture() as capture:
            call(lab, seventh)
            settle(watch, 7)
            mine = seventh.getsockname()
            while True:
                connection, peer = listener.accept()
                stack.enter_context(connection)
                if peer == mine:
                    break
            seventh.settimeout(WAIT_S)
            seventh.sendall(b"GET /seventh HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            connection.sendall(OK)
            seventh.recv(65536)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """What the SYN of client 7 goes through at a backlog of 4, live or recorded, with four blanks."""
    capture = trace(lab)
    groups = [group for group in connections(capture.messages) if begins(group[0])]
    packets = max(groups, key=lambda group: sum(packet.payload for packet in group))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "what", "there was room when the second SYN came: how does a server answer it?"),
            Blank("GET /seventh", "seq", "a SYN takes one number, and the second SYN was the first one again"),
            Blank("GET /seventh", "round trip", "a timer is no round trip: which answers had the client waited for?"),
            Blank("200 OK", "from", "who answers a request?"),
        ],
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
