"""What the section "Welcome" asks: how exercises work, on the three packets of a TCP handshake."""

from __future__ import annotations

import socket
from collections.abc import Callable

from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import serving

WAIT_S = 6.0  # a server that has not answered by then does not, however busy the machine is


def _handshake(lab: Lab, port: int) -> Captured:
    """A client connects to a server that listens and no more, and goes."""
    lab.wire.settle()  # nothing of an earlier connection is on its way
    with lab.server, socket.create_server(("server.lab", port)), lab.capture() as capture:
        with lab.client, socket.create_connection(("server.lab", port)):
            pass
    return capture


def _judge_flags(answer: object) -> str:
    with Lab(rtt_ms=10) as lab:
        # Recorded under this key is the handshake of the notebook.
        capture = lab.live_or_recorded("introduction.welcome/handshake", _handshake, lab, 80)
    flags = str(capture.packets[1]["TCP"].flags)
    if not isinstance(answer, str) or set(answer.upper()) != set(flags):
        also = "it also acknowledges the client's SYN" if str(answer).upper() == "S" else "look at the second packet"
        raise Wrong(f"{answer!r} is not what the server's packet carries: {also}")
    return f"{flags}: SYN and ACK. One packet opens the server's direction and acknowledges the client's."


FLAGS = Exercise(
    id="introduction.welcome.flags",
    task=(
        "Which TCP flags does the server's packet of the handshake carry? Write them as scapy and tcpdump do, a\n"
        "letter each: `S` for SYN, `A` for ACK, `F` for FIN, `R` for RST, `P` for PSH."
    ),
    starter="flags = ...",
    solution='flags = "SA"',
    explanation="SYN opens the server's own direction of the stream, ACK answers the client's SYN (RFC 9293 §3.5).",
    hints=(
        "It is the second packet of the capture above.",
        "Each direction of a TCP connection is opened by a SYN, and each SYN is acknowledged.",
    ),
    mistakes=(
        Mistake('flags = "S"', "also acknowledges the client's SYN"),
        Mistake('flags = "A"', "look at the second packet"),
        Mistake("flags = 18", "look at the second packet"),
    ),
    judge=_judge_flags,
)


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


GREET = Exercise(
    id="introduction.welcome.greet",
    task=(
        'Write a server. `greet(listener)` gets a listening socket, accepts one connection, sends `b"hello\\n"`\n'
        "and closes the connection. It runs on a lab host of its own while a client connects to it."
    ),
    starter="def greet(listener):\n    return ...\n",
    solution=(
        "def greet(listener):\n    connection, _ = listener.accept()\n    with connection:\n"
        '        connection.sendall(b"hello\\n")\n'
    ),
    explanation="accept gives a new socket for the one connection. Closing it sends a FIN, the end of the stream.",
    hints=(
        "`listener.accept()` returns two values: a socket for the connection, and the client's address.",
        "A `with connection:` block closes the connection at its end.",
    ),
    mistakes=(
        Mistake("def greet(listener):\n    listener.sendall(b'hello\\n')\n", "your server raised"),
        Mistake(
            "def greet(listener):\n    connection, _ = listener.accept()\n    with connection:\n"
            "        connection.sendall(b'hello')\n",
            "send b'hello\\n'",
        ),
        Mistake(
            "kept = []\ndef greet(listener):\n"
            "    kept.append(listener.accept()[0])\n    kept[0].sendall(b'hello\\n')\n",
            "close the connection",
        ),
    ),
    judge=_judge_greeting,
)

EXERCISES = (FLAGS, GREET)

QUIZ = Quiz(
    Question(
        "Where does a packet of this book cross?",
        (
            Option("The internet.", "Nothing leaves this machine: the hosts are on it."),
            Option(
                "Your own kernel's network stack, and the wire.",
                "Each host has a stack of its own; on the tier loopback they share this machine's.",
                right=True,
            ),
            Option(
                "A simulation of TCP.",
                "The stack is the one that your servers use; only the distance is made by the wire.",
            ),
        ),
    ),
    Question(
        "Who completed the handshake on the server?",
        (
            Option("The program, by calling accept.", "There was no call of accept, and the handshake was complete."),
            Option("The kernel.", "A program only takes finished connections from it.", right=True),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """One TCP handshake on this lab, or a recorded one, with three blanks."""
    capture = lab.live_or_recorded("introduction.welcome/trace", _handshake, lab, 8080)
    return HiddenTrace(
        "introduction.welcome.trace",
        [packet for packet in capture.messages if packet.flow.server_port == 8080],
        [
            Blank("SYN-ACK", "from", "who answers a SYN?"),
            Blank("SYN-ACK", "round trip", "the first round trip begins with the SYN and ends with its answer"),
            Blank("FIN", "seq", "a SYN takes one number, and no data was sent after it"),
        ],
        hints=(
            "Each side numbers what it sends. Its SYN has number 0 here and takes one.",
            "The server sends the SYN-ACK in the first round trip; the FIN has the number after the SYN's.",
        ),
        explanation="The SYN-ACK ends the first round trip. Each SYN takes one sequence number (RFC 9293 §3.4).",
        tier=capture.tier,
    )
