"""What the section "Communication basics" asks: three exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.https.production import judge_paid
from book.https.reading import to_last_byte
from book.learn.judging import least, serving
from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections, steps
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response

TEXT = Text(__file__)

# Long enough that the pause of a busy machine seldom looks like a round trip.
RTT_MS = 40
MOST_BYTES = 1_000_000
FIRST_FLIGHT = 10 * 1448  # bytes: the initial congestion window of full segments
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
WAIT_S = 5.0

# The server and the client of the notebook, where they stand to be read.


def _serve(listener: socket.socket) -> None:
    """Answer each request on one connection with as many bytes as its target says."""
    connection, _ = listener.accept()
    with connection:
        while request := connection.recv(65536):
            size = int(request.split()[1][1:])
            connection.sendall(HEAD % size + bytes(size))


def _fetch(connection: socket.socket, size: int) -> bytes:
    connection.sendall(b"GET /%d HTTP/1.1\r\nHost: server.lab\r\n\r\n" % size)
    with connection.makefile("rb") as response:
        length = 0
        while (line := response.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return response.read(length)


def segments(capture: Captured, rtt_ms: float) -> tuple[int, int, int]:
    """What the server sent with data: segments, how many of them later than the first flight, bytes in the fullest."""
    packets = [packet for packet in capture.messages if not packet.from_client and packet.payload]
    # Within a round trip no acknowledgment is back: these are the first flight.
    end_ns = packets[0].transit.time_ns + rtt_ms * 1e6
    later = sum(packet.transit.time_ns >= end_ns for packet in packets)
    return len(packets), later, max(packet.payload for packet in packets)


def cost_of_size(rtt_ms: float) -> Callable[[Captured], tuple[int, int]]:
    """What ``fewest`` counts in a capture of one response: round trips to its last byte, and segments sent later."""
    return lambda capture: (to_last_byte(capture), segments(capture, rtt_ms)[1])


def requests(capture: Captured) -> list[Dissected]:
    """What the client sent with data: the one request of a capture, and its copies."""
    return [packet for packet in capture.messages if packet.from_client and packet.payload]


def _opened(capture: Captured) -> list[list[Dissected]]:
    """The connections of a capture, those of before left out."""
    return [group for group in connections(capture.messages) if begins(group[0])]


def _round_trips(packets: Sequence[Dissected]) -> int:
    """From the client's first packet to the last byte of the server's last response."""
    return (
        max((s for p, s in zip(packets, steps(packets), strict=True) if not p.from_client and p.payload), default=0)
        // 2
    )


# Exercise 1


def _page(request: Request) -> Response:
    return Response(body=f"this is {request.target}".encode())


def _judge_fetch_all(fetch_all: Callable[..., Any]) -> str:
    targets = ["/first", "/second", "/third"]
    counted = least(lambda: _fetched_all(fetch_all, targets), 1 + len(targets))
    if counted > 1 + len(targets):
        raise Wrong(f"{counted} round trips on one connection: 1 to connect and 1 for each request are enough")
    if counted < 1 + len(targets):
        return f"{counted} round trips: you did not wait for answers before you asked on, pipelining (RFC 9112 §9.3.2)."
    return f"{counted} round trips: 1 to connect, {len(targets)} for the requests. With a connection each it is 6."


def _fetched_all(fetch_all: Callable[..., Any], targets: list[str]) -> int:
    """Round trips of the one connection that brought the bodies of all targets."""
    with Lab(rtt_ms=RTT_MS) as lab, HttpServer(lab.server, _page) as server:
        with lab.capture() as capture, lab.client:
            bodies = fetch_all(("server.lab", server.port), targets)
        asked = len(server.log.of("request"))
        opened = _opened(capture)
    expected = [b"this is " + target.encode() for target in targets]
    if len(opened) > 1:
        raise Wrong(f"it opened {len(opened)} connections: each one costs a round trip before its request can leave")
    if asked < len(targets):
        raise Wrong(f"the server read {asked} of {len(targets)} requests: did one of them say Connection: close?")
    try:
        same = [bytes(body) for body in bodies] == expected
    except TypeError:
        same = False
    if not same:
        raise Wrong(f"it returned {bodies!r:.60}: expected {expected!r}, the bodies without their heads")
    return _round_trips(opened[0])


FETCH_ALL = TEXT.exercise("fetch_all", _judge_fetch_all, deadline_s=10.0)


# Exercise 2


def _later(size: int) -> int:
    """Bytes of the response with a body of this size that the server could not send before an acknowledgment came."""
    return least(lambda: _after_first_flight(size), enough=max(0, len(HEAD % size) + size - FIRST_FLIGHT))


def _after_first_flight(size: int) -> int:
    """Bytes of one response that left a round trip after its first ones, or still later.

    No acknowledgment of them is back within a round trip, and no timer of the kernel's is that short. So what leaves in
    that time is what the window lets out, and a server that is held up can only leave more for later.
    """
    with Lab(rtt_ms=RTT_MS) as lab:
        with lab.capture() as capture, serving(lab.server, _serve), lab.client:
            with socket.create_connection(("server.lab", 8443), timeout=WAIT_S) as connection:
                if len(_fetch(connection, size)) != size:
                    raise MeasurementFailed(f"the response to GET /{size} came in short: try again")
        (packets,) = _opened(capture)
    data = [packet for packet in packets if not packet.from_client and packet.payload]
    end_ns = data[0].transit.time_ns + RTT_MS * 1e6
    return len(HEAD % size) + size - sum(packet.payload for packet in data if packet.transit.time_ns < end_ns)


def _judge_largest(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, int) or not 1 <= answer <= MOST_BYTES:
        raise Wrong(f"{answer!r}: give a whole number of bytes from 1 to {MOST_BYTES:,}")
    if _later(answer):
        raise Wrong(
            f"with a body of {answer:,} bytes the last byte comes after more than two round trips: how many bytes of "
            "yours does a full segment carry, and what else is in the first flight?"
        )
    if not (later := _later(answer + 1)):
        raise Wrong("with one byte more it still takes two round trips: there is room left in the first flight")
    return (
        f"Measured: with {answer:,} bytes all of the response leaves in the first flight. With {answer + 1:,}, {later} "
        "waits for an acknowledgment, and comes after three round trips."
    )


LARGEST = TEXT.exercise("largest", _judge_largest, needs="kernel")


# Exercise 3

PAID = TEXT.exercise("paid", judge_paid, deadline_s=10.0)

EXERCISES = (FETCH_ALL, LARGEST, PAID)

QUIZ = TEXT.quiz


@recorded
def trace(lab: Lab) -> Captured:
    """What the hidden trace shows: two requests over one connection."""
    with lab.capture() as capture, serving(lab.server, _serve, port=8080), lab.client:
        with socket.create_connection(("server.lab", 8080), timeout=WAIT_S) as connection:
            for size in (400, 4000):
                _fetch(connection, size)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests over one connection on this lab, or recorded ones, with four blanks."""
    capture = trace(lab)
    (packets,) = _opened(capture)
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "what", "how does a server answer a SYN?"),
            Blank(
                "GET /4000", "round trip", "count what the client waited for before: the SYN-ACK and the first response"
            ),
            Blank("GET /4000", "seq", "it follows the first request, and the payload column says how long that one is"),
            Blank("FIN", "from", "who has nothing more to send, and says so first?"),
        ],
        tier=capture.tier,
    )
