"""Judges the exercises of the section "TITLE", and makes its hidden trace."""

from __future__ import annotations

import socket
from collections.abc import Callable

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.judging import serving, the_request
from labkit.handshakes import measure
from labkit.lab import Lab

TEXT = Text(__file__)


def _judge_round_trips(answer: object) -> str:
    with Lab(rtt_ms=10) as lab:
        counted = measure(lab, "tcp", runs=1).whole_rtts
    if answer != counted:
        raise Wrong(f"{answer!r} is not what the packets of a request over TCP show: count SYN and SYN-ACK as one")
    return f"{counted}: one to connect, one for request and response."


ROUND_TRIPS = TEXT.exercise("round_trips", _judge_round_trips)


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


ANSWER = TEXT.exercise("answer", _judge_answer)

EXERCISES = (ROUND_TRIPS, ANSWER)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request over TCP on this lab, with three blanks."""
    run = measure(lab, "tcp", runs=1).runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank("SYN-ACK", "from", "who answers a SYN?"),
            Blank("GET /", "round trip", "the client waits for the SYN-ACK before it asks"),
            Blank("HTTP/1.1 200", "seq", "a SYN counts as one, so the first byte of data has the number after it"),
        ],
    )
