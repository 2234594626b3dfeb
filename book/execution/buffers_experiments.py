"""What the section "Send and receive queues" measures with: writers, readers, subscribers, and what packets prove."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from book import recorded
from book.execution.clients import both_ends
from book.execution.kernel import unacknowledged, unsent
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.queues.history import ConnectionHistory, History
from labkit.waiting import wait_until

TRIES = 5


def write(client: socket.socket, size: int = 1_000_000) -> int:
    """Write until the kernel takes no more, and what it has sent is acknowledged. Returns how many bytes it took."""
    client.setblocking(False)
    written = 0

    def quiet() -> bool:
        nonlocal written
        with contextlib.suppress(BlockingIOError):  # EAGAIN: a blocking send would wait
            while written < size:
                written += client.send(bytes(min(65536, size - written)))
        return unacknowledged(client) == unsent(client)

    wait_until(quiet, what="an end of the writing")
    client.setblocking(True)
    return written


# Two limits


@recorded
def transfer(lab: Lab, size: int, rcvbuf: int | None) -> tuple[History, int]:
    """So many bytes go to a peer that reads at once, and has this receive buffer, or one that grows.

    Returns:
        the writer's queues; bytes that were sent beyond the window.
    """
    for _ in range(TRIES):  # once more, where this machine was too busy to look at the queues
        with lab.watch(8080, "client", connections=True) as sender, lab.capture() as capture:
            with both_ends(lab, rcvbuf=rcvbuf) as (client, server), read_along(server):
                client.sendall(bytes(size))
                client.shutdown(socket.SHUT_WR)
        if sampled_well(sender.history, capture):
            return sender.history, beyond_the_window(capture)
    raise MeasurementFailed(f"too few looks at the queues, {TRIES} times: run the cell again")


@contextlib.contextmanager
def read_along(server: socket.socket, kb_per_s: float | None = None) -> Iterator[None]:
    """A thread reads what a socket receives, at once or at a pace, to its end. The block waits for it."""

    def read() -> None:
        while server.recv(1000 if kb_per_s else 65536):
            time.sleep(1 / kb_per_s if kb_per_s else 0)

    reader = threading.Thread(target=read)
    reader.start()
    yield
    reader.join()


def beyond_the_window(capture: Captured) -> int:
    """Bytes that the client sent with no room for them in any window that had arrived by then."""
    edges, beyond = [], 0
    for transit, segment in zip(capture.transits, segments(capture, syns=True), strict=True):
        if transit.source == "server" and transit.received_ns:
            edges.append((transit.received_ns, segment["ack"] + segment["window"]))
        elif segment["bytes"]:
            edge = max(edge for arrived, edge in edges if arrived <= transit.time_ns)
            beyond = max(beyond, segment["seq"] + segment["bytes"] - edge)
    return beyond


def busiest(history: History) -> ConnectionHistory:
    """The connection with the most bytes in flight."""
    return max(history.connections.values(), key=lambda queues: queues.unacknowledged.peak)


def sampled_well(history: History, capture: Captured) -> bool:
    """Whether a watch on the client has seen nearly as much in flight as the packets show, and so was not held up."""
    seen = max((each.unacknowledged.peak for each in history.connections.values()), default=0)
    return seen > 0.8 * most_in_flight(capture)


def most_in_flight(capture: Captured) -> int:
    """The most bytes that the client had sent and knew no acknowledgment of, by the packets of its connection."""
    packets = [
        (packet.transit, header, packet.payload) for packet in capture.messages if (header := packet.headers.tcp)
    ]
    first = packets[0][1].seq
    heard, most = [(0, 1)], 0  # when an acknowledgment arrived, and of what
    for transit, header, payload in packets:
        if transit.source == "server" and transit.received_ns:
            heard.append((transit.received_ns, (header.ack - first) % 2**32))
        elif payload:
            known = max(ack for arrived_ns, ack in heard if arrived_ns <= transit.time_ns)
            most = max(most, (header.seq - first) % 2**32 + payload - known)
    return most


# The segments of one connection


def segments(capture: Captured, syns: bool = False) -> Iterator[dict[str, Any]]:
    """Who sent what: sequence and acknowledgment number from 0, payload, window in bytes.

    Args:
        capture: of one connection, with its SYN.
        syns: whether the segments with SYN are told, too.
    """
    first: dict[str, int] = {}
    scale: dict[str, int] = {}
    packets = capture.packets
    for packet in packets:
        tcp, sender = packet["TCP"], packet.sniffed_on
        if tcp.flags.S:
            first[sender] = tcp.seq
            scale[sender] = dict(tcp.options).get("WScale", 0)
            if not syns:
                continue
        other = "server" if sender == "client" else "client"
        yield {
            "ms": float(packet.time - packets[0].time) * 1000,
            "from": sender,
            "seq": (tcp.seq - first[sender]) % 2**32,
            "ack": (tcp.ack - first.get(other, tcp.ack)) % 2**32,
            "bytes": len(tcp.payload),
            "window": tcp.window << (0 if tcp.flags.S else scale[sender]),
        }


def kind(segment: dict[str, Any], full: dict[str, Any]) -> str:
    """What a segment is in the story of a full receive queue, whose first window of 0 stands in ``full``."""
    if segment["from"] == "server":
        return "ACK, the window is open" if segment["window"] else "ACK, window 0"
    if segment["bytes"]:
        return "data"
    return f"probe: 0 bytes, one number below the next: {segment['seq'] == full['ack'] - 1}"


# A reader with a pace


@recorded
def slow_reader(lab: Lab, kb_per_s: int, rcvbuf: int, sndbuf: int) -> tuple[float, History, History]:
    """60 kB go to a server that reads steadily.

    Returns:
        when sendall returned, as a share of the time that the reading took; the queues of both ends.
    """
    with (
        lab.watch(8080, "client", connections=True) as sender,
        lab.watch(8080, connections=True) as receiver,
        both_ends(lab, rcvbuf=rcvbuf, sndbuf=sndbuf) as (client, server),
    ):
        begin = time.monotonic()
        with read_along(server, kb_per_s):
            client.sendall(bytes(60_000))
            returned_s = time.monotonic() - begin
            client.shutdown(socket.SHUT_WR)
        read_s = time.monotonic() - begin
    return returned_s / read_s, sender.history, receiver.history


# A server with three clients


class Subscriber:
    """A client that counts what it reads; a stuck one reads nothing."""

    def __init__(self, address: tuple[str, int], reads: bool) -> None:
        self.read = 0
        self.sock = socket.socket()
        if not reads:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(address)
        self.reader = threading.Thread(target=self._read_on if reads else lambda: None)
        self.reader.start()

    def _read_on(self) -> None:
        while data := self.sock.recv(65536):
            self.read += len(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # ends the reader's recv
        self.sock.close()


def news(count: int) -> Iterator[bytes]:
    """So many messages of 1000 bytes, one every 6 ms."""
    for number in range(count):
        yield b"%-999d\n" % number
        time.sleep(0.006)


@recorded
def to_three_clients(lab: Lab, publish: Callable[..., Any]) -> tuple[list[int], int, list[Any]]:
    """200 messages for three clients, of which the second is stuck.

    Args:
        lab: the lab.
        publish: sends messages to clients, until it is done or a client has gone.

    Returns:
        how many messages each client has when nothing moves any more; bytes in the send queue for the stuck one; what
        publish returned, in a list, which is empty where it did not return.
    """
    with contextlib.ExitStack() as stack, lab.server:
        listener = stack.enter_context(socket.create_server(("server.lab", 8081)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # inherited
        with lab.client:
            subscribers = [
                stack.enter_context(contextlib.closing(Subscriber(("server.lab", 8081), reads)))
                for reads in (True, False, True)
            ]
        clients = [stack.enter_context(listener.accept()[0]) for _ in subscribers]
        result: list[Any] = []

        def serve() -> None:
            with contextlib.suppress(ConnectionError):  # when the stuck client closes
                result.append(publish(clients, news(200)))

        server = threading.Thread(target=serve)
        server.start()
        _wait_until_nothing_moves(subscribers, server)
        counts = [subscriber.read // 1000 for subscriber in subscribers]
        queued = unacknowledged(clients[1])
        subscribers[1].close()
        server.join()
        for client in clients:
            client.close()
        for subscriber in subscribers:
            subscriber.reader.join()
    return counts, queued, result


def _wait_until_nothing_moves(subscribers: Sequence[Subscriber], server: threading.Thread) -> None:
    before: list[int] = []
    looks = 0
    while server.is_alive() and looks < 100:  # so many, 10 ms apart, and all the same
        now = [subscriber.read for subscriber in subscribers]
        before, looks = now, looks + 1 if now == before else 0
        time.sleep(0.01)
