"""What the section "Socket sharding" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.shards import depth, inode
from book.learn.grading import Deadline, describe
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.queues.watch import Watch
from labkit.waiting import happens

TEXT = Text(__file__)

PORT = 8080
RTT_MS = 5
WAIT_S = 8.0
REQUEST = b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _call(lab: Lab) -> socket.socket:
    """A client whose SYN has left."""
    client = lab["client"].socket()
    client.setblocking(False)
    client.connect_ex((lab.server.ip, PORT))
    return client


def _open(lab: Lab) -> socket.socket:
    with lab.server:
        return socket.create_server((lab.server.ip, PORT), backlog=128, reuse_port=True)


# Exercise 1

CLIENTS = 64


def _shard(open_shard: Callable[..., Any], lab: Lab, times: str) -> socket.socket:
    """What one call of the learner's function returns, once it listens at the address."""
    address = (lab.server.ip, PORT)
    try:
        with lab.server:
            opened = open_shard(address)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        raise Wrong(
            f"the {times} call failed with EADDRINUSE: SO_REUSEPORT has to be set on every one of the sockets, and "
            "before bind"
        ) from exc
    if not isinstance(opened, socket.socket):
        raise Wrong(f"it returned {opened!r}: return the socket that listens")
    if opened.fileno() < 0:
        raise Wrong("the socket that it returned is closed: leave it open")
    if opened.getsockname()[:2] != address:
        raise Wrong(f"its socket is bound to {opened.getsockname()!r}: bind it to the address that you are given")
    if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise Wrong("its socket does not listen: without listen it has no queue, and no share of the connections")
    return opened


def _judge_open_shard(open_shard: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        shards = [stack.enter_context(_shard(open_shard, lab, times)) for times in ("first", "second")]
        if inode(shards[0]) == inode(shards[1]):
            raise Wrong("both calls returned the same socket: one queue, not two. Open a new socket each time")
        before = lab.server.counters if lab.can("kernel") else None
        for _ in range(CLIENTS):
            stack.enter_context(_call(lab))
        given: Counter[int] = Counter()
        deadline = time.monotonic() + WAIT_S
        for shard in shards:
            shard.setblocking(False)
        while given.total() < CLIENTS and time.monotonic() < deadline:
            for shard in select.select(shards, [], [], 0.1)[0]:
                with contextlib.suppress(BlockingIOError):
                    shard.accept()[0].close()
                    given[shards.index(shard)] += 1
        overflows = (lab.server.counters - before)["TcpExtListenOverflows"] if before else 0
    counts = [given[number] for number in range(2)]
    if sum(counts) < CLIENTS:
        missing = f"only {sum(counts)} of {CLIENTS} connections arrived in {WAIT_S:g} s"
        if overflows:
            raise Wrong(f"{missing}, and the kernel dropped {overflows} for want of room: make the queue longer")
        raise MeasurementFailed(f"{missing}: the machine is busy")
    if not all(counts) and before:
        raise Wrong(f"of {CLIENTS} connections the two got {counts[0]} and {counts[1]}: both should get some")
    return f"Both listen. Of {CLIENTS} connections they got {counts[0]} and {counts[1]}."


OPEN_SHARD = TEXT.exercise("open_shard", _judge_open_shard)


# Exercise 2

FEWEST = 3  # connections in the queue of the shard that retires
RETURN_S, LOOK_S = 3.0, 0.1


def _serve(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(WAIT_S)
        connection.recv(65536)
        connection.sendall(ANSWER)


def _fate(client: socket.socket) -> str:
    client.settimeout(WAIT_S / 2)
    try:
        return "answered" if client.recv(65536).startswith(b"HTTP/1.1 200") else "closed"
    except ConnectionResetError:
        return "reset"
    except OSError:
        return "still waits"


def _fill(lab: Lab, watch: Watch, old: socket.socket, new: socket.socket) -> list[socket.socket]:
    """Clients connect and ask until enough of them wait for the old shard. Returns these; the new one serves others."""
    clients: dict[tuple[str, int], socket.socket] = {}
    while depth(watch, old) < FEWEST:
        client = _call(lab)
        clients[client.getsockname()[:2]] = client
        if len(clients) > 200:
            raise MeasurementFailed("no client came to the shard that retires: try again")
        if not select.select([], [client], [], WAIT_S)[1]:
            raise MeasurementFailed("a client could not connect: try again")
        client.sendall(REQUEST)

        def there() -> bool:
            while select.select([new], [], [], 0)[0]:
                connection, peer = new.accept()
                _serve(connection)
                clients.pop(peer).close()
            return depth(watch, old) == len(clients)

        if not happens(there):
            raise MeasurementFailed("a connection came to neither of the shards: try again")
    # The last request is half a round trip behind its connection.
    happens(lambda: all(each.receive_queue.last for each in _of(watch, clients)))
    return list(clients.values())


def _of(watch: Watch, clients: dict[tuple[str, int], socket.socket]) -> list[Any]:
    seen = watch.so_far().connections
    return [seen[f"{ip}:{port}"] for ip, port in clients if f"{ip}:{port}" in seen]


def _run(retire: Callable[..., Any], listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """Call the learner's function in a thread. Raises Wrong where it raises or does not return.

    Raises:
        MeasurementFailed: it does not return, and has waited for a CPU most of the time.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            retire(listener, answer)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    deadline, late = Deadline(RETURN_S, os.getpid()), None
    while thread.is_alive() and late is None:
        thread.join(LOOK_S)
        late = deadline.overdue()
    if raised:
        raise Wrong(f"your function raised {describe(raised[0])}") from raised[0]
    if thread.is_alive() and late is not None:
        if late.outcome != "wrong":
            raise MeasurementFailed(late.reason)
        raise Wrong(
            "it has not returned, and the queue is empty: accept waits for a connection that nobody will make. Let it "
            "not block"
        )


def _judge_retire(retire: Callable[..., Any]) -> str:
    answered = 0

    def answer(connection: socket.socket) -> None:
        nonlocal answered
        _serve(connection)
        answered += 1

    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        watch = stack.enter_context(lab.watch(PORT, connections=True))
        old, new = (stack.enter_context(_open(lab)) for _ in range(2))
        clients = [stack.enter_context(client) for client in _fill(lab, watch, old, new)]
        _run(retire, old, answer)
        if old.fileno() >= 0:
            raise Wrong(
                f"it answered {answered} and returned, and the shard still listens: the kernel goes on to give it a "
                "share of the connections. Close it"
            )
        fates = Counter(map(_fate, clients))
        if fates["reset"]:
            raise Wrong(
                f"{len(clients)} clients waited in the queue: {fates['answered']} answered, {fates['reset']} reset. "
                "What is in the queue when the listener closes is lost: empty it first, all of it"
            )
        if fates["answered"] < len(clients):
            told = ", ".join(f"{count} {fate}" for fate, count in fates.items())
            if answered >= len(clients):
                raise MeasurementFailed(
                    f"all were handed to `answer`, and of the responses did not arrive in time: {told}"
                )
            raise Wrong(f"of {len(clients)} clients in the queue: {told}. Hand each connection to `answer`")
        _run(retire, stack.enter_context(_open(lab)), answer)
    return f"{len(clients)} clients waited for the shard that retired, all are answered, none is reset."


RETIRE = TEXT.exercise("retire", _judge_retire, needs="kernel")

EXERCISES = (OPEN_SHARD, RETIRE)


# The hidden trace


@recorded
def never_accepted(lab: Lab) -> Captured:
    """A client connects to one of two shards and asks; its shard is closed before anybody accepts."""
    with (
        contextlib.ExitStack() as stack,
        lab.watch(PORT, connections=True) as watch,
    ):
        shards = [stack.enter_context(_open(lab)) for _ in range(2)]
        with lab.capture() as capture:
            client = stack.enter_context(_call(lab))
            select.select([], [client], [], WAIT_S)
            client.sendall(REQUEST)

            def asked() -> bool:
                seen = watch.so_far()
                unread = [each.receive_queue.last for each in seen.connections.values()]
                return seen.accept_queue.last == 1 and any(unread)

            if not happens(asked):
                raise MeasurementFailed("the request did not arrive: run the cell again")
            for shard in shards:
                if depth(watch, shard):
                    shard.close()
            client.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError):
                client.recv(65536)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A connection in the queue of a shard that closes, live or recorded, with four blanks."""
    capture = never_accepted(lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "from", "who answers a SYN, when no program has called accept?"),
            Blank("GET /", "round trip", "the client may send as soon as it has the SYN-ACK"),
            Blank("RST", "seq", "how many bytes has the server sent so far? Its SYN took number 0"),
            Blank("RST", "what", "what does a client receive that the kernel has thrown out of a queue?"),
        ],
        tier=capture.tier,
    )


QUIZ = TEXT.quiz
