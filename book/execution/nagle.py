"""What the section "Nagle's algorithm" asks: two exercises with their judges, the hidden trace, the quiz.

``exchanges`` is also what the notebook reads its captures with.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import socket
import struct
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import Deadline, describe
from book.learn.judging import serving
from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections, steps
from labkit.lab import Lab

TEXT = Text(__file__)

RTT_MS = 10
WAIT_S = 2.0
RUNS = 3  # of an answer that looks wrong: what a busy machine has added is gone in one of them
FULL_SEGMENT = 1448  # bytes of payload, see "Communication basics"
# An ACK that was kept for so long waited for a timer: Linux has 40 ms at least, and an immediate one leaves in the very
# call that brings the segment in, whatever else the machine does.
TIMER_MS = 30.0
SIOCOUTQNSD = 0x894B  # include/uapi/linux/sockios.h: bytes written that have not been sent


# What a capture says about requests and responses on one connection.

_Step = tuple[Dissected, int]


@dataclass(frozen=True)
class Exchange:
    """One request and its response, as the wire saw them.

    Attributes:
        segments: bytes of payload in each segment of the request.
        round_trips: from its first segment to the response, counted by cause and effect: a timer adds nothing.
        gap_round_trips: the same from its first segment to its last.
        total_ms: from its first segment to the arrival of the response.
        gap_ms: from the leaving of its first segment to that of its last.
        after_ack: whether the last segment left only after an acknowledgment of the first had arrived.
        bare_ack: whether that acknowledgment carried no data.
        ack_kept_ms: how long the first segment was at the server before an acknowledgment of it left.
        served_ms: from the arrival of its last segment at the server to the leaving of the response.
        answered_ns: when the response had arrived, nanoseconds since 1970.
    """

    segments: tuple[int, ...]
    round_trips: int
    gap_round_trips: int
    total_ms: float
    gap_ms: float
    after_ack: bool
    bare_ack: bool
    ack_kept_ms: float
    served_ms: float
    answered_ns: int

    @property
    def stalled(self) -> bool:
        """Whether it waited for the server's timer: held back by Nagle's algorithm, for an ACK that was delayed."""
        return self.after_ack and self.ack_kept_ms > TIMER_MS


def exchanges(capture: Captured, port: int = 8080) -> list[Exchange]:
    """The requests of the one connection to this port that was opened in a capture, in their order."""
    mine = [group for group in connections(capture.messages) if group[0].flow.server_port == port and begins(group[0])]
    if not mine:
        return []
    packets = [(p, s) for p, s in zip(mine[0], steps(mine[0]), strict=True) if not p.retransmission]
    found: list[Exchange] = []
    request: list[_Step] = []
    response: list[_Step] = []
    for packet in packets:
        if packet[0].payload and packet[0].from_client:
            if response:
                found.append(_exchange(packets, request, response))
                request, response = [], []
            request.append(packet)
        elif packet[0].payload and request:
            response.append(packet)
    if response:
        found.append(_exchange(packets, request, response))
    return found


def _exchange(packets: Sequence[_Step], request: Sequence[_Step], response: Sequence[_Step]) -> Exchange:
    (first, began), (last, left) = request[0], request[-1]
    answer, ended = response[-1]
    end = _seq(first) + first.payload
    # The server's first packet that acknowledges the whole first segment.
    ack = next(p for p, _ in packets if not p.from_client and (_ack(p) - end) % 2**32 < 2**31)
    ack_ns = ack.transit.received_ns or ack.transit.time_ns
    at_server_ns = first.transit.received_ns or first.transit.time_ns
    answered_ns = answer.transit.received_ns or answer.transit.time_ns
    return Exchange(
        segments=tuple(packet.payload for packet, _ in request),
        round_trips=(ended - began + 1) // 2,
        gap_round_trips=(left - began) // 2,
        total_ms=(answered_ns - first.transit.time_ns) / 1e6,
        gap_ms=(last.transit.time_ns - first.transit.time_ns) / 1e6,
        after_ack=last is not first and last.transit.time_ns >= ack_ns,
        bare_ack=not ack.payload,
        ack_kept_ms=(ack.transit.time_ns - at_server_ns) / 1e6,
        served_ms=(response[0][0].transit.time_ns - (last.transit.received_ns or last.transit.time_ns)) / 1e6,
        answered_ns=answered_ns,
    )


def sent_together(capture: Captured) -> int:
    """How many segments of data a client sent at most before anything came back. What leaves with a FIN is no part.

    To close a connection ends Nagle's algorithm: the last bytes leave with the FIN (``tcp_send_fin``).
    """
    together = Counter(
        (number, step)
        for number, packets in enumerate(connections(capture.messages))
        for packet, step in zip(packets, steps(packets), strict=True)
        if packet.from_client and packet.payload and not packet.flags & {"SYN", "FIN"} and not packet.retransmission
    )
    return max(together.values(), default=0)


def data_of(capture: Captured) -> list[Dissected]:
    """The segments with data that a client sent, without copies."""
    sent = [packet for packet in capture.messages if packet.from_client and packet.payload]
    return [packet for packet in sent if not packet.retransmission]


def _seq(packet: Dissected) -> int:
    header = packet.headers.tcp
    return header.seq if header else 0


def _ack(packet: Dissected) -> int:
    header = packet.headers.tcp
    return header.ack if header else 0


# The server and the client of the notebook, as far as judges need them.

HEAD = b"POST / HTTP/1.1\r\nHost: server.lab\r\nContent-Length: 20\r\n\r\n"
BODY = b"twenty bytes of body"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


@contextlib.contextmanager
def conversation(lab: Lab, serve: Callable[..., object], *arguments: Any) -> Iterator[socket.socket]:
    """A connection of the lab's client to a server that runs in a thread, and ends with the connection.

    Args:
        lab: the lab.
        serve: called with the listener and the arguments.
        arguments: what it takes besides.
    """
    with lab.server, socket.create_server((lab.server.ip, 8080)) as listener:
        server = threading.Thread(target=serve, args=(listener, *arguments), daemon=True)
        server.start()
        with lab.client, socket.create_connection((lab.server.ip, 8080)) as connection:
            yield connection
        server.join()


def ask_one_by_one(lab: Lab, port: int, request: bytes, count: int, end: bytes = RESPONSE[-3:]) -> None:
    """A client sends so many requests over one connection, each when the response before has ended.

    Args:
        lab: the lab.
        port: of the server.
        request: what it sends.
        count: how often.
        end: of a response.
    """
    with lab.client, socket.create_connection((lab.server.ip, port)) as connection:
        for _ in range(count):
            connection.sendall(request)
            response = b""
            while not response.endswith(end):
                response += connection.recv(65536)


def _pair(target: str, size: int) -> tuple[bytes, bytes]:
    head = f"POST {target} HTTP/1.1\r\nHost: server.lab\r\nContent-Length: {size}\r\n\r\n".encode()
    return head, bytes(range(97, 123)) * (size // 26) + b"x" * (size % 26)


def _serve(listener: socket.socket, sizes: Sequence[int], received: list[bytes]) -> None:
    """Read requests of these sizes from one connection, and answer each."""
    connection, _ = listener.accept()
    with connection:
        for size in sizes:
            request = b""
            while len(request) < size:
                if not (data := connection.recv(65536)):
                    return
                request += data
            received.append(request)
            connection.sendall(RESPONSE)
        connection.recv(65536)


@contextlib.contextmanager
def _connection(lab: Lab) -> Iterator[socket.socket]:
    with lab.client, socket.create_connection(("server.lab", 8443), timeout=4 * WAIT_S) as connection:
        yield connection


def _bytes_in_queue(connection: socket.socket, which: int) -> int:
    """Of the send queue: those that were not sent (SIOCOUTQNSD), or not acknowledged (TIOCOUTQ); see tcp(7)."""
    return int(struct.unpack("i", fcntl.ioctl(connection, which, bytes(4)))[0])


def _read(lab: Lab, connection: socket.socket, count: int) -> bytes:
    """So many bytes of what the other side says, or fewer where it says no more.

    Raises:
        MeasurementFailed: nothing came, and that may be the machine's fault.
    """
    data = b""
    deadline = Deadline(WAIT_S, os.getpid())  # both sides are in this process
    connection.settimeout(WAIT_S / 4)
    while len(data) < count:
        try:
            more = connection.recv(count - len(data))
        except TimeoutError:
            late = deadline.overdue()
            if late is None:
                continue
            if late.outcome != "wrong" or not lab.wire.settle() or _bytes_in_queue(connection, termios.TIOCOUTQ):
                raise MeasurementFailed("a request or its response is still under way: the machine is busy") from None
            break
        except ConnectionError:
            break
        if not more:
            break
        data += more
    return data


# Exercise 1


class _Delayed(Exception):
    """A request left later, or in more segments, than it needs to, which a busy machine may do as well.

    Args:
        rank: how far a delay goes: of several runs the least one is the answer's own.
        reason: for the learner.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(reason)
        self.rank, self.reason = rank, reason


def _judge_one_segment(send_request: Callable[..., Any]) -> str:
    found: list[_Delayed] = []
    with Lab(rtt_ms=RTT_MS) as lab:
        while len(found) < RUNS:
            try:
                return _send_three(lab, send_request)
            except _Delayed as exc:
                found.append(exc)
    raise Wrong(min(found, key=lambda delayed: delayed.rank).reason)


def _send_three(lab: Lab, send_request: Callable[..., Any]) -> str:
    """Three requests over one connection. Raises Wrong, and _Delayed where another run may do better."""
    """The first two requests in two writes each, the third in one."""
    requests = [_pair("/first", 20), _pair("/second", 20), _pair("/third", 4000)]
    sizes = [len(head) + len(body) for head, body in requests]
    received: list[bytes] = []
    held = []
    with lab.capture() as capture, serving(lab.server, _serve, sizes, received), _connection(lab) as connection:
        for number, (head, body) in enumerate(requests, 1):
            send_request(connection, head, body)
            try:
                held.append(_bytes_in_queue(connection, SIOCOUTQNSD))
                answer = _read(lab, connection, len(RESPONSE))
            except OSError as exc:
                raise Wrong(f"request {number} has no response, the connection is gone: {describe(exc)}") from exc
            if not answer:
                raise Wrong(f"request {number} has no response: the server still waits for bytes of it")
    found = exchanges(capture, 8443)
    for number, ((head, body), read) in enumerate(zip(requests, received, strict=False), 1):
        if read != head + body:
            raise Wrong(f"the server read {read[:40]!r}… as request {number}: send the head, then the body, unchanged")
    if len(found) != len(sizes):
        raise MeasurementFailed(f"{len(found)} of {len(sizes)} requests can be told apart in the capture")
    for number, (exchange, size) in enumerate(zip(found, sizes, strict=True), 1):
        needed = math.ceil(size / FULL_SEGMENT)
        if exchange.stalled:
            raise _Delayed(
                2,
                f"request {number} waited for the server's timer: its last segment left {exchange.gap_ms:.0f} ms after "
                "its first, when an ACK had come",
            )
        if len(exchange.segments) > needed and exchange.after_ack:
            raise _Delayed(
                1, f"request {number} left in {len(exchange.segments)} segments, the last one only after an ACK"
            )
        if len(exchange.segments) > needed:
            raise _Delayed(
                0,
                f"request {number} has {size} bytes and left in {len(exchange.segments)} segments of "
                f"{', '.join(map(str, exchange.segments))} bytes, without a wait: {needed} would do",
            )
    for number, count in enumerate(held[:2], 1):  # of the third a congestion window could hold something back
        if count:
            raise _Delayed(
                0,
                f"{count} bytes of request {number} had not left when send_request had returned: "
                "something still holds them back. Is the socket still corked?",
            )
    return f"Each request left at once and in as few segments as it needs: {', '.join(_counts(found))}."


def _counts(found: Sequence[Exchange]) -> list[str]:
    return [f"{sum(exchange.segments)} bytes in {len(exchange.segments)}" for exchange in found]


ONE_SEGMENT = TEXT.exercise("one_segment", _judge_one_segment, needs="kernel")


# Exercise 2

STUBBORN_REQUESTS = 4


def _judge_patient(answer_all: Callable[..., Any]) -> str:
    always: set[int] | None = None  # requests that waited for the timer in each run
    late = 0
    with Lab(rtt_ms=RTT_MS) as lab:
        for _ in range(RUNS):
            found, fired = _stubborn_client(lab, answer_all)
            stalled = {number for number, each in enumerate(found, 1) if each.stalled} if fired else set()
            if not stalled and min(each.served_ms for each in found[:-1]) < TIMER_MS:
                kept_ms = max(each.ack_kept_ms for each in found)
                return f"No ACK waited for the timer; the latest left {kept_ms:.1f} ms after the head had arrived."
            late += not stalled
            always = stalled if always is None else always & stalled
    if late:
        raise MeasurementFailed(
            "each response left so late after its request that no kernel would take it for one that carries the ACK: "
            "the machine is busy, or the server sleeps"
        )
    if not always:
        raise MeasurementFailed(f"in {RUNS} runs another request waited for the timer each time: the machine is busy")
    number = min(always)
    raise Wrong(
        f"request {number}: your kernel kept the ACK of its head for {found[number - 1].ack_kept_ms:.0f} ms "
        f"(TcpExtDelayedACKs moved by {fired}), and the body waited for it. What made the kernel acknowledge at once "
        "does not last"
    )


def _stubborn_client(lab: Lab, answer_all: Callable[..., Any]) -> tuple[list[Exchange], int]:
    """Requests in two writes each over one connection, and how often the timer of the server's kernel sent an ACK."""
    size = len(HEAD + BODY)
    before = lab.server.counters
    with lab.capture() as capture, serving(lab.server, answer_all, size, RESPONSE), _connection(lab) as connection:
        for number in range(1, STUBBORN_REQUESTS + 1):
            with contextlib.suppress(ConnectionError):  # then there is no response, either
                connection.sendall(HEAD)
                connection.sendall(BODY)
            answer = _read(lab, connection, len(RESPONSE))
            if answer != RESPONSE:
                raise Wrong(f"response {number} is {answer!r}, not the response: answer each whole request once")
        connection.shutdown(socket.SHUT_WR)  # which is how the server learns that this was all
        if more := _read(lab, connection, 65536):
            answered = STUBBORN_REQUESTS + len(more) / len(RESPONSE)
            raise Wrong(f"{answered:g} responses to {STUBBORN_REQUESTS} requests: answer each whole request once")
    fired = (lab.server.counters - before)["TcpExtDelayedACKs"]
    found = exchanges(capture, 8443)
    if len(found) != STUBBORN_REQUESTS:
        raise MeasurementFailed(f"{len(found)} of {STUBBORN_REQUESTS} requests can be told apart in the capture")
    return found, fired


PATIENT = TEXT.exercise("quick_server", _judge_patient, needs="kernel")

EXERCISES = (ONE_SEGMENT, PATIENT)

QUIZ = TEXT.quiz


# The trace


@recorded
def three_requests(lab: Lab) -> Captured:
    """The first two requests in two writes each, the third in one."""
    requests = [_pair("/first", 20), _pair("/second", 20), _pair("/third", 20)]
    sizes = [len(head) + len(body) for head, body in requests]
    with lab.capture() as capture, serving(lab.server, _serve, sizes, []), _connection(lab) as connection:
        for number, (head, body) in enumerate(requests):
            for part in (head, body) if number < 2 else (head + body,):
                connection.sendall(part)
            _read(lab, connection, len(RESPONSE))
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests in two writes and one in a single write, on this lab or recorded, with four blanks."""
    capture = three_requests(lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("data", "round trip", "what did this segment wait for, although it was written with the head?"),
            Blank("data", "seq", "it follows the head, and the payload column says how long that one is"),
            Blank(
                "POST /third", "round trip", "each of the two before it took two: one for the head, one for the body"
            ),
            Blank("FIN", "round trip", "the third request left in one segment: how many round trips did it take?"),
        ],
        tier=capture.tier,
    )
