"""What the section "TITLE" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import socket
from collections.abc import Callable

from labkit.handshakes import measure
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import serving, the_request


def _judge_round_trips(answer: object) -> str:
    with Lab(rtt_ms=10) as lab:
        counted = measure(lab, "tcp", runs=1).whole_rtts
    if answer != counted:
        raise Wrong(f"{answer!r} is not what the packets of a request over TCP show: count SYN and SYN-ACK as one")
    return f"{counted}: one to connect, one for request and response."


ROUND_TRIPS = Exercise(
    id="template.section.round_trips",
    task="How many round trips pass from the client's first packet to the first byte of the response? Give the number.",
    starter="round_trips = ...",
    solution="round_trips = 2",
    explanation="One for SYN and SYN-ACK, one for request and response (RFC 9293 §3.5).",
    hints=(
        "Look at the ladder: which packets does the client wait for?",
        "It waits for the SYN-ACK, and then for the response.",
    ),
    mistakes=(
        Mistake("round_trips = 1", "count SYN and SYN-ACK as one"),
        Mistake("round_trips = 3", "count SYN and SYN-ACK as one"),
    ),
    judge=_judge_round_trips,
)


def _judge_answer(serve: Callable[[socket.socket], object]) -> str:
    with Lab(rtt_ms=10) as lab:
        with lab.capture() as capture, serving(lab.server, serve), lab.client:
            with socket.create_connection(("server.lab", 8443), timeout=3) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n")
                try:
                    response = client.recv(65536)
                except TimeoutError:
                    raise Wrong("the client waited 3 s for a response: does your server send one?") from None
                except ConnectionError:
                    response = b""  # closed with the request unread, which resets the connection
        if not response.startswith(b"HTTP/1.1 200 "):
            raise Wrong(f"the client received {response[:40]!r}: a response begins with b'HTTP/1.1 200 OK'")
        line = the_request(capture)
    return f"The response was there after {sum(line.whole_rtts().values())} round trips."


ANSWER = Exercise(
    id="template.section.answer",
    task="Write `serve(listener)`: accept one connection, read the request, answer it with `200 OK`, and close.",
    starter="def serve(listener):\n    return ...\n",
    solution=(
        "def serve(listener):\n"
        "    connection, _ = listener.accept()\n"
        "    with connection:\n"
        "        connection.recv(65536)\n"
        '        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nhi\\n")\n'
    ),
    explanation="accept takes a connection that the kernel has completed; what is sent on it is the response.",
    hints=(
        "accept returns a new socket for the one connection, and the address of its client.",
        "The response is a status line, headers, an empty line and the body, with \\r\\n after each line.",
    ),
    mistakes=(
        Mistake("def serve(listener):\n    listener.accept()[0].close()\n", "a response begins with"),
        Mistake(
            "def serve(listener):\n    connection, _ = listener.accept()\n"
            "    with connection:\n        connection.recv(9)\n        connection.sendall('HTTP/1.1 200 OK')\n",
            "your server raised TypeError",
        ),
    ),
    judge=_judge_answer,
)

EXERCISES = (ROUND_TRIPS, ANSWER)

QUIZ = Quiz(
    Question(
        "Who completes TCP's handshake on the server?",
        (
            Option("The program, when it calls accept.", "accept only takes a connection that is complete already."),
            Option("The kernel.", "The program learns of it from accept, later.", right=True),
        ),
    ),
    Question(
        "When may the client send its request?",
        (
            Option("As soon as the SYN-ACK is there.", "Its ACK and the request may leave together.", right=True),
            Option("When the server has its ACK.", "The client does not wait for that: nothing answers a bare ACK."),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request over TCP on this lab, with three blanks."""
    run = measure(lab, "tcp", runs=1).runs[-1]
    return HiddenTrace(
        "template.section.trace",
        run.timeline.packets,
        [
            Blank("SYN-ACK", "from", "who answers a SYN?"),
            Blank("GET /", "round trip", "the client waits for the SYN-ACK before it asks"),
            Blank("HTTP/1.1 200", "seq", "a SYN counts as one, so the first byte of data has the number after it"),
        ],
        hints=(
            "Each side counts its own bytes, and its SYN as the one before them.",
            "The request leaves in the second round trip, and the response is the server's first data.",
        ),
        explanation="The SYN takes number 0 of each side, so data begins with 1 (RFC 9293 §3.4).",
    )
