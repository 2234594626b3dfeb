"""What the section "Welcome" asks: how exercises work, on the three packets of a TCP handshake."""

from __future__ import annotations

import socket
from collections.abc import Callable

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.judging import serving
from labkit.capture.captured import Captured
from labkit.lab import Lab

TEXT = Text(__file__)

TRACE_PORT = 8080
WAIT_S = 6.0  # a server that has not answered by then does not, however busy the machine is


def _connect(lab: Lab, port: int) -> Captured:
    """A client connects to a server that listens and no more, and goes."""
    lab.wire.settle()  # nothing of an earlier connection is on its way
    with lab.server, socket.create_server(("server.lab", port)), lab.capture() as capture:
        with lab.client, socket.create_connection(("server.lab", port)):
            pass
    return capture


@recorded
def handshake(lab: Lab, rtt_ms: int) -> Captured:
    """As in the notebook, and recorded there."""
    lab.set_link(rtt_ms=rtt_ms)
    return _connect(lab, 80)


@recorded
def trace(lab: Lab) -> Captured:
    """What the hidden trace shows."""
    return _connect(lab, TRACE_PORT)


def _judge_flags(answer: object) -> str:
    with Lab() as lab:
        capture = handshake(lab, 40)
    flags = str(capture.packets[1]["TCP"].flags)
    if not isinstance(answer, str) or set(answer.upper()) != set(flags):
        also = "it also acknowledges the client's SYN" if str(answer).upper() == "S" else "look at the second packet"
        raise Wrong(f"{answer!r} is not what the server's packet carries: {also}")
    return f"{flags}: SYN and ACK. One packet opens the server's direction and acknowledges the client's."


FLAGS = TEXT.exercise("flags", _judge_flags)


def _judge_greeting(greet: Callable[[socket.socket], object]) -> str:
    with Lab(rtt_ms=10) as lab:
        before = lab.server.counters if lab.can("kernel") else None
        with serving(lab.server, greet), lab.client:
            with socket.create_connection(("server.lab", 8443), timeout=WAIT_S) as client:
                received = b""
                try:
                    while data := client.recv(100):
                        received += data
                except TimeoutError:
                    if received != b"hello\n":
                        raise Wrong(
                            f"the client waited {WAIT_S:g} s and received {received!r}: send b'hello\\n'"
                        ) from None
                    raise Wrong("b'hello\\n' came, but not the end of the stream: close the connection") from None
                except ConnectionError as exc:
                    raise Wrong(f"the client's connection broke: {exc}") from None
        opened = None if before is None else (lab.server.counters - before)["TcpPassiveOpens"]
    if received != b"hello\n":
        raise Wrong(f"the client received {received!r}: send b'hello\\n', then close")
    counted = "" if opened is None else f"The server's kernel counted {opened} connection. "
    return f"{counted}The client received {received!r} and the end of the stream."


GREET = TEXT.exercise("greet", _judge_greeting)

EXERCISES = (FLAGS, GREET)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """One TCP handshake on this lab, or a recorded one, with three blanks."""
    capture = trace(lab)
    return TEXT.trace(
        [packet for packet in capture.messages if packet.flow.server_port == TRACE_PORT],
        [
            Blank("SYN-ACK", "from", "who answers a SYN?"),
            Blank("SYN-ACK", "round trip", "the first round trip begins with the SYN and ends with its answer"),
            Blank("FIN", "seq", "a SYN takes one number, and no data was sent after it"),
        ],
        tier=capture.tier,
    )
