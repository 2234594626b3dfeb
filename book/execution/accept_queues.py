"""What the section "SYN and accept queues" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.network.host import Counters
from labkit.queues.diag import LISTEN, NETLINK_SOCK_DIAG, ask, request
from labkit.queues.watch import Watch
from labkit.waiting import happens, wait_until

TEXT = Text(__file__)

PORT = 8080
RTT_MS = 10
WAIT_S = 8.0
TRIES = 5
SLOW_MS = 100  # for one round trip: whoever takes that for no answer is misled by the machine
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _new_client(lab: Lab) -> socket.socket:
    client = lab["client"].socket()
    client.setblocking(False)
    return client


def _call(lab: Lab, client: socket.socket) -> None:
    """Begin to connect: the SYN leaves."""
    client.connect_ex((lab.server.ip, PORT))


def _connected(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError:
        return False
    return True


def _refused(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, 0)  # an error is told in any case, and stays
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _listen(lab: Lab, backlog: int) -> socket.socket:
    with lab.server:
        return socket.create_server((lab.server.ip, PORT), backlog=backlog)


def _count(watch: Watch, name: str) -> int:
    return watch.so_far().counters.get(f"TcpExt{name}", 0)


def _queued(lab: Lab) -> int:
    """Connections in the accept queue, asked for now: what a watch has sampled may be of a moment ago."""
    with lab.server.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        return sum(entry.receive_queue for entry in ask(netlink, request(states=1 << LISTEN, port=PORT)))


def _slowest_ms(capture: Captured) -> float:
    """The longest that a client waited for the answer to its SYN, milliseconds; 0 where none was answered."""
    waits = [0.0]
    for group in connections(capture.messages):
        answers = (p.transit.received_ns for p in group if p.label.startswith("SYN-ACK"))
        came_ns = next((moment for moment in answers if moment), None)
        if begins(group[0]) and came_ns:
            waits.append((came_ns - group[0].transit.time_ns) / 1e6)
    return max(waits)


# What the experiments need on a busy machine


def call_all(lab: Lab, clients: Sequence[socket.socket]) -> None:
    """Let clients begin to connect at the same moment: all SYNs are on their way before the first one arrives.

    Raises:
        MeasurementFailed: this process was held up in between.
    """
    began = time.monotonic()
    for client in clients:
        _call(lab, client)
    if time.monotonic() - began > lab.rtt_ms / 2000:
        raise MeasurementFailed(f"{len(clients)} clients did not call at the same moment: is the machine busy?")


def check_sent_once(lab: Lab, before: Counters) -> None:
    """Raises MeasurementFailed where a client's timer has sent a SYN again since its host's counters were read."""
    if again := (lab.client.counters - before)["TcpExtTCPSynRetrans"]:
        raise MeasurementFailed(f"{again} SYNs were sent again, after a second: is the machine busy?")


def steadily(run: Callable[..., Any], lab: Lab, *args: Any, once: bool = True) -> Any:
    """Make a run; again where the machine was held up, and the run is not what it should be.

    Args:
        run: called with the lab and args; raises MeasurementFailed where it was held up.
        lab, args: for the run.
        once: whether each SYN has to be sent once only.

    Returns:
        what the run returns. Raises MeasurementFailed where it was held up each time.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(MeasurementFailed):
            return _run_once(run, lab, *args, once=once)
    return _run_once(run, lab, *args, once=once)


def _run_once(run: Callable[..., Any], lab: Lab, *args: Any, once: bool) -> Any:
    before = lab.client.counters
    result = run(lab, *args)
    if once:
        check_sent_once(lab, before)
    return result


# Exercise 1


def _judge_capacity(accept_capacity: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, _listen(lab, 5):
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
            connection.sendall(ANSWER)


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
        _listen(lab, BACKLOG) as listener,
        lab.watch(PORT) as watch,
        contextlib.ExitStack() as callers,
    ):
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        clients = []
        patience_s = PATIENCE_S
        for number in range(1, CLIENTS + 1):
            client = callers.enter_context(_new_client(lab))
            clients.append(client)
            _call(lab, client)

            def decided(client: socket.socket = client) -> bool:
                return _connected(client) or _refused(client) or bool(raised) or _count(watch, "ListenDrops") > 0

            wait_until(decided)
            if raised:
                raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
            if _refused(client):
                raise Wrong(f"client {number} was refused: your function has closed the listener")
            if _connected(client):
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


def _seventh(lab: Lab) -> Captured:
    """Five clients fill the queue of a listener with backlog 4, two more come; then the server accepts again."""
    with (
        contextlib.ExitStack() as stack,
        _listen(lab, 4) as listener,
        lab.watch(PORT) as watch,
    ):

        def decided() -> int:
            seen = watch.so_far()
            return seen.accept_queue.last + seen.counters.get("TcpExtListenDrops", 0)

        def settle(clients: int) -> None:
            happens(lambda: decided() >= clients)

        *five, sixth, seventh = (stack.enter_context(_new_client(lab)) for _ in range(7))
        for client in five:
            _call(lab, client)
        settle(5)
        _call(lab, sixth)
        settle(6)
        with lab.capture() as capture:
            _call(lab, seventh)
            settle(7)
            mine = seventh.getsockname()
            listener.settimeout(WAIT_S)
            while True:
                connection, peer = listener.accept()
                stack.enter_context(connection)
                if peer == mine:
                    break
            seventh.settimeout(WAIT_S)
            seventh.sendall(b"GET /seventh HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            connection.sendall(ANSWER)
            seventh.recv(65536)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """What the SYN of client 7 goes through at a backlog of 4, live or recorded, with four blanks."""
    capture = lab.live_or_recorded("execution.accept_queues/trace", _seventh, lab)
    groups = [group for group in connections(capture.messages) if begins(group[0])]
    packets = max(groups, key=lambda group: sum(packet.payload for packet in group))
    return HiddenTrace(
        "execution.accept_queues.trace",
        packets,
        [
            Blank("SYN-ACK", "what", "there was room when the second SYN came: how does a server answer it?"),
            Blank("GET /seventh", "seq", "a SYN takes one number, and the second SYN was the first one again"),
            Blank("GET /seventh", "round trip", "a timer is no round trip: which answers had the client waited for?"),
            Blank("200 OK", "from", "who answers a request?"),
        ],
        hints=(
            "The first SYN found the accept queue full. No packet answers it: the client's timer sends it once more.",
            "The SYN has number 0, each time that it is sent. What comes next has number 1.",
            "Round trips are counted by cause and effect: the request waited for one answer, the SYN-ACK.",
        ),
        explanation=(
            "SYN, dropped without a word; after a second, by the client's timer, the same SYN again with the same "
            "number (RFC 6298 §2.1). By then the server accepts, so this one is answered. Two SYNs, one round trip, "
            "and more than a second that no host was busy in."
        ),
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
