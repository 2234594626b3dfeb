"""What the section "TCP + TLS 1.2" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.https.reading import messages_of
from book.learn.judging import least, serving, watch_nodelay
from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected
from labkit.capture.tls_session import Hello
from labkit.errors import MeasurementFailed
from labkit.handshakes import measure_once
from labkit.handshakes.phases import Timeline, begins, connections, evidence, timeline
from labkit.lab import Lab
from labkit.servers import HttpServer

TEXT = Text(__file__)

# Long enough that the pause of a busy machine seldom looks like a round trip.
RTT_MS = 40
WAIT_S = 5.0


def hellos(capture: Captured) -> list[Dissected]:
    """The packets with a ClientHello: its copies where one was lost."""
    return [packet for packet in capture.messages if any(m.name == "ClientHello" for m in packet.messages)]


def hello(capture: Captured, name: str) -> Hello:
    """What stands in the hello of this name, "ClientHello" or "ServerHello"."""
    return next(message for _, message in messages_of(capture) if message.name == name).hello


def protection(capture: Captured, name: str) -> str:
    """Of the first message of this name: "encrypted", "in the clear", or "-" where there is none."""
    levels = [message.level for _, message in messages_of(capture) if message.name == name]
    return "-" if not levels else "encrypted" if levels[0] else "in the clear"


# Exercise 1


def _judge_fetch_twice(fetch_twice: Callable[..., Any]) -> str:
    if (second := least(lambda: _second_fetch(fetch_twice), 3)) > 3:
        raise Wrong(f"the second connection was resumed, but took {second} round trips: {_HELD}")
    return f"{second} round trips with the ticket, and no certificate. The full handshake before it took one more."


_HELD = (
    "after its Finished the client waited for an acknowledgment before it sent the request. Which algorithm holds "
    "small writes back?"
)


def _second_fetch(fetch_twice: Callable[..., Any]) -> int:
    """Round trips of the second of two requests. Raises Wrong for what no repetition can change."""
    with Lab(rtt_ms=RTT_MS) as lab, HttpServer(lab.server, tls="1.2") as server:
        context = lab.authority.client_context(versions=["1.2"])
        nodelay = watch_nodelay(context)
        with lab.capture() as capture, lab.client:
            fetch_twice(("server.lab", server.port), context)
        opened = [group for group in connections(capture.messages) if begins(group[0])]
    if len(opened) != 2:
        raise Wrong(f"{len(opened)} connection(s) were opened, two are needed: close the first and open a second")
    try:
        _, second = (timeline(group) for group in opened)
    except MeasurementFailed as exc:
        raise Wrong(str(exc)) from exc
    if evidence(second)["certificate_sent"]:
        raise Wrong(
            "the second connection brought a certificate, so its handshake was a full one "
            f"({_total(second)} round trips): its ClientHello has to offer the session of the first"
        )
    total = _total(second)
    if total > 3 and nodelay[-1:] == [False]:
        raise Wrong(f"the second connection was resumed, but took {total} round trips: {_HELD}")
    if nodelay[-1:] == [False] and not lab.can("kernel"):
        raise Wrong(
            "the second connection was resumed and took three round trips, but only because no kernel is between the "
            "hosts of this tier. With one it takes four: its request is a small write behind a small write, Finished. "
            "Which algorithm holds small writes back?"
        )
    return total


def _total(line: Timeline) -> int:
    return sum(line.whole_rtts().values())


FETCH_TWICE = TEXT.exercise("fetch_twice", _judge_fetch_twice, deadline_s=10.0)


# Exercise 2

NAMES = ("orders.shop.lab", "invoices.shop.lab")


def _judge_eavesdrop(eavesdrop: Callable[[bytes], Any]) -> str:
    found = {version: eavesdrop(_server_stream(version)) for version in ("1.2", "1.3")}
    read = found["1.2"]
    if not isinstance(read, (list, tuple, set)) or sorted(map(str, read)) != sorted(NAMES):
        raise Wrong(
            f"from a TLS 1.2 handshake it read {read!r:.100}: the certificate in these bytes names "
            f"{' and '.join(NAMES)}, in the clear"
        )
    if found["1.3"]:
        raise Wrong(
            f"from a TLS 1.3 handshake it returned {found['1.3']!r:.100}: there the certificate is encrypted, so there "
            "is nothing to read and [] to return"
        )
    return f"You read {' and '.join(NAMES)} without any key. In TLS 1.3 there was nothing to read."


def _server_stream(version: str) -> bytes:
    """What a server of NAMES sends in a handshake, as somebody on the path sees it."""
    with Lab(rtt_ms=RTT_MS) as lab:
        context = lab.authority.server_context(*NAMES, versions=[version])
        with lab.capture() as capture, serving(lab.server, _serve_once, context), lab.client:
            with socket.create_connection(("server.lab", 8443), timeout=WAIT_S) as connection:
                client = lab.authority.client_context(versions=[version])
                with client.wrap_socket(connection, server_hostname=NAMES[0]) as tls:
                    tls.recv(1)
        (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    # What a kernel has sent again because its acknowledgment was late does not stand twice in the stream.
    mine = [packet for packet in packets if not packet.from_client and not packet.retransmission]
    return b"".join(packet.headers.payload for packet in mine)


def _serve_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    with context.wrap_socket(connection, server_side=True) as tls:
        tls.sendall(b"x")


EAVESDROP = TEXT.exercise("eavesdrop", _judge_eavesdrop, deadline_s=10.0)

EXERCISES = (FETCH_TWICE, EAVESDROP)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A full handshake with TLS 1.2 and a request on this lab, with four blanks."""
    run = measure_once(lab, "tls1.2").runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank(
                "ClientKeyExchange", "what", "with which message does the client give its share of the key exchange?"
            ),
            Blank("ServerHelloDone", "seq", "these are the server's first bytes, and the SYN-ACK took number 0"),
            Blank("NewSessionTicket", "from", "who encrypts tickets, and keeps the key to open them again?"),
            Blank("GET /", "round trip", "count the answers that the client had to wait for before it may ask"),
        ],
    )
