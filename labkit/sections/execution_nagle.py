"""What the section "Nagle's algorithm" asks: two exercises with their judges, the hidden trace, the quiz.

``exchanges`` is also what the notebook reads its captures with.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.capture.captured import Captured
from labkit.capture.headers import decode
from labkit.capture.messages import Dissected
from labkit.handshakes.phases import begins, connections, steps
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import serving

RTT_MS = 10
WAIT_S = 1.5
FULL_SEGMENT = 1448  # bytes of payload, see "Communication basics"
TIMER_MS = 30.0  # an ACK that was kept for so long waited for a timer: Linux has 40 ms at least, an immediate one 0
TOO_LATE_MS = 120.0  # a corked request leaves after 200 ms, others when they are written


# What a capture says about requests and responses on one connection.

_Step = tuple[Dissected, int]


@dataclass(frozen=True)
class Exchange:
    """One request and its response, as the wire saw them.

    Attributes:
        segments: bytes of payload in each segment of the request.
        round_trips: from its first segment to the response, counted by cause and effect: a timer adds nothing.
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
    (first, began), (last, _) = request[0], request[-1]
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
        total_ms=(answered_ns - first.transit.time_ns) / 1e6,
        gap_ms=(last.transit.time_ns - first.transit.time_ns) / 1e6,
        after_ack=last is not first and last.transit.time_ns >= ack_ns,
        bare_ack=not ack.payload,
        ack_kept_ms=(ack.transit.time_ns - at_server_ns) / 1e6,
        served_ms=(response[0][0].transit.time_ns - (last.transit.received_ns or last.transit.time_ns)) / 1e6,
        answered_ns=answered_ns,
    )


def _seq(packet: Dissected) -> int:
    header = decode(packet.transit.data).tcp
    return header.seq if header else 0


def _ack(packet: Dissected) -> int:
    header = decode(packet.transit.data).tcp
    return header.ack if header else 0


# The server and the client of the notebook, as far as judges need them.

HEAD = b"POST / HTTP/1.1\r\nHost: server.lab\r\nContent-Length: 20\r\n\r\n"
BODY = b"twenty bytes of body"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


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
    with lab.client, socket.create_connection(("server.lab", 8443), timeout=WAIT_S) as connection:
        yield connection


# Exercise 1


def _judge_one_segment(send_request: Callable[..., Any]) -> str:
    requests = [_pair("/first", 20), _pair("/second", 20), _pair("/third", 4000)]
    sizes = [len(head) + len(body) for head, body in requests]
    received: list[bytes] = []
    returned_ns = []
    with Lab(rtt_ms=RTT_MS) as lab:
        with lab.capture() as capture, serving(lab.server, _serve, sizes, received), _connection(lab) as connection:
            for number, (head, body) in enumerate(requests, 1):
                send_request(connection, head, body)
                returned_ns.append(time.time_ns())
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    answer = b""
                if not answer:
                    raise Wrong(f"request {number} has no response: the server still waits for bytes of it")
        found = exchanges(capture, 8443)
    for number, ((head, body), read) in enumerate(zip(requests, received, strict=False), 1):
        if read != head + body:
            raise Wrong(f"the server read {read[:40]!r}… as request {number}: send the head, then the body, unchanged")
    for number, (exchange, size) in enumerate(zip(found, sizes, strict=True), 1):
        needed = math.ceil(size / FULL_SEGMENT)
        if exchange.stalled:
            raise Wrong(
                f"request {number} waited for the server's timer: its last segment left {exchange.gap_ms:.0f} ms after "
                "its first, when an ACK had come"
            )
        if len(exchange.segments) > needed and exchange.after_ack:
            raise Wrong(f"request {number} left in {len(exchange.segments)} segments, the last one only after an ACK")
        if len(exchange.segments) > needed:
            raise Wrong(
                f"request {number} has {size} bytes and left in {len(exchange.segments)} segments of "
                f"{', '.join(map(str, exchange.segments))} bytes, without a wait: {needed} would do"
            )
    late_ms = [
        (_sent_ns(capture, number) - returned) / 1e6 for number, returned in enumerate(returned_ns) if number < 2
    ]
    if max(late_ms) > TOO_LATE_MS:
        raise Wrong(
            f"a request left {max(late_ms):.0f} ms after send_request had returned: "
            "something still holds it back. Is the socket still corked?"
        )
    return f"Each request left at once and in as few segments as it needs: {', '.join(_counts(found))}."


def _sent_ns(capture: Captured, number: int) -> int:
    """When the first segment of a request left, counted from 0."""
    heads = [p for p in capture.messages if p.from_client and any(m.name.startswith("POST") for m in p.messages)]
    return heads[number].transit.time_ns


def _counts(found: Sequence[Exchange]) -> list[str]:
    return [f"{sum(exchange.segments)} bytes in {len(exchange.segments)}" for exchange in found]


ONE_SEGMENT = Exercise(
    id="execution.nagle.one_segment",
    task=(
        "This client stalls. Repair `send_request(connection, head, body)`: the request leaves at once, and in as few "
        "segments as its bytes need. `connection` is a connected socket, `head` and `body` are bytes. The check sends "
        "three requests over one connection, the last with a body of 4,000 bytes, and looks at the packets."
    ),
    starter=("def send_request(connection, head, body):\n    connection.sendall(head)\n    connection.sendall(body)\n"),
    solution=("def send_request(connection, head, body):\n    connection.sendall(head + body)\n"),
    explanation=(
        "With one write the kernel sees the whole request before it cuts segments, and nothing small is in flight that "
        "it could wait for. sendmsg([head, body]) does the same without the copy, but may take a part of a large body "
        "only. A buffered writer with one flush, or TCP_CORK around the two writes, are right as well."
    ),
    hints=(
        "The kernel cuts segments at each write, as long as nothing holds them back. How many writes does a request "
        "need?",
        "TCP_NODELAY takes the wait away, and leaves two segments. Look for what makes one write of two.",
        "Bytes can be added: head + body.",
    ),
    mistakes=(
        Mistake(
            "import socket\n\n\n"
            "def send_request(connection, head, body):\n"
            "    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
            "    connection.sendall(head)\n"
            "    connection.sendall(body)\n",
            "without a wait: 1 would do",
        ),
        Mistake(
            "import socket\n\n\n"
            "def send_request(connection, head, body):\n"
            "    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)\n"
            "    connection.sendall(head)\n"
            "    connection.sendall(body)\n",
            "only after an ACK",
        ),
        Mistake(
            "import socket\n\n\n"
            "def send_request(connection, head, body):\n"
            "    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)\n"
            "    connection.sendall(head)\n"
            "    connection.sendall(body)\n",
            "Is the socket still corked?",
        ),
        Mistake(
            "def send_request(connection, head, body):\n    connection.sendall(head)\n",
            "request 1 has no response",
        ),
    ),
    judge=_judge_one_segment,
    needs="kernel",
)


# Exercise 2

STUBBORN_REQUESTS = 4


def _judge_patient(answer_all: Callable[..., Any]) -> str:
    size = len(HEAD + BODY)
    with Lab(rtt_ms=RTT_MS) as lab:
        before = lab.server.counters
        with lab.capture() as capture, serving(lab.server, answer_all, size, RESPONSE), _connection(lab) as connection:
            for number in range(1, STUBBORN_REQUESTS + 1):
                connection.sendall(HEAD)
                connection.sendall(BODY)
                answer = _read(connection, len(RESPONSE))
                if answer != RESPONSE:
                    raise Wrong(f"response {number} is {answer!r}, not the response: answer each whole request once")
        moved = lab.server.counters - before
        found = exchanges(capture, 8443)
        answered = sum(p.payload for p in capture.messages if not p.from_client) / len(RESPONSE)
    if answered > STUBBORN_REQUESTS:
        raise Wrong(f"{answered:g} responses to {STUBBORN_REQUESTS} requests: answer each whole request once")
    for number, exchange in enumerate(found, 1):
        if exchange.stalled:
            raise Wrong(
                f"request {number}: your kernel kept the ACK of its head for {exchange.ack_kept_ms:.0f} ms "
                f"(TcpExtDelayedACKs moved by {moved['TcpExtDelayedACKs']}), and the body waited for it. What made "
                "the kernel acknowledge at once does not last"
            )
    kept_ms = max(exchange.ack_kept_ms for exchange in found)
    return f"No ACK waited for the timer; the latest left {kept_ms:.1f} ms after the head had arrived."


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data


PATIENT = Exercise(
    id="execution.nagle.quick_server",
    task=(
        "This time the client is not yours: it writes head and body separately, and its `TCP_NODELAY` is off. Repair "
        "the server. `answer_all(listener, size, response)` accepts one connection, reads requests of `size` bytes "
        "until the client closes, and answers each with `response`. No request may wait for the timer of a delayed "
        "acknowledgment."
    ),
    starter=(
        "import socket\n\n\n"
        "def answer_all(listener, size, response):\n"
        "    connection, _ = listener.accept()\n"
        "    with connection:\n"
        "        read = 0\n"
        "        while data := connection.recv(65536):\n"
        "            read += len(data)\n"
        "            if read == size:\n"
        "                connection.sendall(response)\n"
        "                read = 0\n"
    ),
    solution=(
        "import socket\n\n\n"
        "def answer_all(listener, size, response):\n"
        "    connection, _ = listener.accept()\n"
        "    with connection:\n"
        "        read = 0\n"
        "        while True:\n"
        "            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)\n"
        "            data = connection.recv(65536)\n"
        "            if not data:\n"
        "                return\n"
        "            read += len(data)\n"
        "            if read == size:\n"
        "                connection.sendall(response)\n"
        "                read = 0\n"
    ),
    explanation=(
        "The ACK is the server's, so the server can send it sooner. TCP_QUICKACK leaves the interactive mode, and the "
        "next response enters it again: the option is set before each read. The round trip for the client's second "
        "segment remains, because that one is the client's to save."
    ),
    hints=(
        "Which kernel delays, and with which socket option does that kernel acknowledge at once?",
        "TCP_QUICKACK is not permanent (tcp(7)): a response brings the delay back.",
        "Set it in the loop, before each recv.",
    ),
    mistakes=(
        Mistake(
            "import socket\n\n\n"
            "def answer_all(listener, size, response):\n"
            "    connection, _ = listener.accept()\n"
            "    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)\n"
            "    with connection:\n"
            "        read = 0\n"
            "        while data := connection.recv(65536):\n"
            "            read += len(data)\n"
            "            if read == size:\n"
            "                connection.sendall(response)\n"
            "                read = 0\n",
            "does not last",
        ),
        Mistake(
            "import socket\n\n\n"
            "def answer_all(listener, size, response):\n"
            "    connection, _ = listener.accept()\n"
            "    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
            "    with connection:\n"
            "        read = 0\n"
            "        while data := connection.recv(65536):\n"
            "            read += len(data)\n"
            "            if read == size:\n"
            "                connection.sendall(response)\n"
            "                read = 0\n",
            "your kernel kept the ACK",
        ),
        Mistake(
            "def answer_all(listener, size, response):\n"
            "    connection, _ = listener.accept()\n"
            "    with connection:\n"
            "        while connection.recv(65536):\n"
            "            connection.sendall(response)\n",
            "answer each whole request once",
        ),
    ),
    judge=_judge_patient,
    needs="kernel",
)

EXERCISES = (ONE_SEGMENT, PATIENT)

QUIZ = Quiz(
    Question(
        "A client stalls for 40 ms with each request over a kept-alive connection. Which kernel runs the timer?",
        (
            Option(
                "The client's: Nagle's algorithm waits 40 ms for more bytes.",
                "Nagle's algorithm has no timer. It waits for an acknowledgment, or for a full segment.",
            ),
            Option(
                "The server's: it delays an acknowledgment in the hope of a response that carries it.",
                "And the response cannot come, because the server's program still waits for the rest of the request.",
                right=True,
            ),
            Option(
                "The client's: it is the retransmission time-out.",
                "Nothing is sent again: no segment was lost. The minimum of that timer is 200 ms on Linux.",
            ),
        ),
    ),
    Question(
        "A load test opens a new connection for each request and finds nothing. Production keeps its connections alive "
        "and stalls. Why?",
        (
            Option(
                "A new connection has Nagle's algorithm off.",
                "It is on from the start: in the first request, too, the body left only after an ACK.",
            ),
            Option(
                "At the start of a connection the receiver acknowledges at once; after a response it delays.",
                "The first request pays a round trip for Nagle's algorithm, and no timer.",
                right=True,
            ),
            Option(
                "The handshake's ACK releases the body.",
                "That ACK was sent before the head. What releases the body is the ACK of the head.",
            ),
        ),
    ),
    Question(
        "You may change one line of a client that sends head and body in two writes. Which saves the most?",
        (
            Option(
                "TCP_NODELAY on its socket.",
                "It saves the wait. The request is still two packets, each with its own headers.",
            ),
            Option("TCP_QUICKACK on its socket.", "It concerns the ACKs that the client sends. The server's are late."),
            Option(
                "One write of both.",
                "One segment: there is nothing in flight to wait for, and one packet less.",
                right=True,
            ),
        ),
    ),
)


# The trace


def _three_requests(lab: Lab) -> Captured:
    requests = [_pair("/first", 20), _pair("/second", 20), _pair("/third", 20)]
    sizes = [len(head) + len(body) for head, body in requests]
    with lab.capture() as capture, serving(lab.server, _serve, sizes, []), _connection(lab) as connection:
        for number, (head, body) in enumerate(requests):
            for part in (head, body) if number < 2 else (head + body,):
                connection.sendall(part)
            connection.recv(65536)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests in two writes and one in a single write, on this lab or recorded, with four blanks."""
    capture = lab.live_or_recorded("execution.nagle/trace", _three_requests, lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return HiddenTrace(
        "execution.nagle.trace",
        packets,
        [
            Blank("data", "round trip", "what did this segment wait for, although it was written with the head?"),
            Blank("data", "seq", "it follows the head, and the payload column says how long that one is"),
            Blank(
                "POST /third", "round trip", "each of the two before it took two: one for the head, one for the body"
            ),
            Blank("FIN", "round trip", "the third request left in one segment: how many round trips did it take?"),
        ],
        hints=(
            "A round trip begins when something of the one before has come back: here also a bare ACK, which is left "
            "out of this table.",
            "Connecting takes round trip 1, the head of the first request 2. Its body waits for the ACK of the head.",
            "Head 2, body 3; head 4, body 5; the third request 6. The client closes when that is answered.",
        ),
        explanation=(
            "Head and body are written together and travel in two round trips, because the body waits for the ACK of "
            "the head. The third request is one write, one segment and one round trip. The delay of the ACK is a time "
            "and no round trip, so this table does not show it: the ladder does."
        ),
        tier=capture.tier,
    )
