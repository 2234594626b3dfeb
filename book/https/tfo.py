"""What the section "TFO + TLS 1.3" asks: three exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.https.reading import opened, round_trips, timeline_of
from book.learn.grading import describe
from book.learn.judging import least, watch_nodelay
from labkit.capture.captured import Captured
from labkit.capture.headers import ACK, SYN
from labkit.capture.messages import Dissected
from labkit.errors import MeasurementFailed
from labkit.handshakes import TcpClient, measure, measure_once
from labkit.handshakes.clients.base import open_tcp
from labkit.handshakes.phases import begins, connections, evidence, timeline
from labkit.lab import Lab
from labkit.recorded import recall
from labkit.servers import HttpServer

TEXT = Text(__file__)

RTT_MS = 10
WAIT_S = 6.0
PORT = 8443
REQUEST = b"GET / HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"


def in_words(capture: Captured) -> str:
    """What a connection's packets say, in words: data in the SYN, whether the server took it, round trips."""
    proof, total = evidence(timeline_of(capture)), round_trips(capture)
    if not proof["syn_payload_bytes"]:
        return f"no data in the SYN, {total} round trips"
    taken = "acknowledged" if proof["syn_payload_acknowledged"] == proof["syn_payload_bytes"] else "not acknowledged"
    return f"ClientHello in the SYN, {taken} by the SYN-ACK, {total} round trips"


def cookies(capture: Captured) -> list[bytes]:
    """The Fast Open cookies that packets carry, in their order; an empty one is a request for a cookie."""
    headers = [packet.headers.tcp for packet in opened(capture)]
    return [header.cookie for header in headers if header is not None and header.cookie is not None]


def syns(capture: Captured) -> list[Dissected]:
    """The client's SYNs of the connection that was opened last."""
    return [packet for packet in opened(capture) if packet.from_client and "SYN" in packet.flags]


def waited_s(capture: Captured) -> float:
    """Seconds from the client's first SYN to the second one."""
    sent, again = syns(capture)
    return (again.transit.time_ns - sent.transit.time_ns) / 1e9


def hello_in_syn(capture: Captured) -> tuple[str, str, str]:
    """How a ClientHello rode in the SYN, in words: its key shares, bytes in the SYN, whether all of it was there."""
    line = timeline_of(capture)
    message = next(message for message in line.packets[0].messages if message.name == "ClientHello")
    size = "1420" if evidence(line)["syn_payload_bytes"] == 1420 else "below 1420"
    return ", ".join(message.hello.key_shares), size, "whole" if message.last == message.first else "the first part"


def _last(capture: Captured) -> list[Dissected]:
    """The packets of the connection that was opened last."""
    opened = [group for group in connections(capture.messages) if begins(group[0])]
    if not opened:
        raise Wrong("no connection was captured: did your code connect?")
    return opened[-1]


# Exercise 1


def _judge_listener(open_listener: Callable[[tuple[str, int]], Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab:
        address = lab.server.ip, PORT
        with lab.server:
            listener = open_listener(address)
        if not isinstance(listener, socket.socket):
            raise Wrong(f"open_listener returned {listener!r:.60}: return the listening socket")
        with listener, _answering(listener):
            first, _ = _ask(lab, address)
            second, server_counters = _ask(lab, address)
        headers = (packet.headers.tcp for packet in first if not packet.from_client)
        synack = next(header for header in headers if header is not None and header.flags & SYN)
        if not synack.cookie:
            raise Wrong(
                "the client's SYN asked for a cookie, and your server's SYN-ACK brought none: this listener does not "
                "take data in a SYN. Which option turns that on, with which value, and on which socket?"
            )
        proof = evidence(timeline(second))
        if not 0 < proof["syn_payload_bytes"] == proof["syn_payload_acknowledged"]:
            raise Wrong(
                f"the second SYN carried {proof['syn_payload_bytes']} bytes, and the SYN-ACK acknowledged "
                f"{proof['syn_payload_acknowledged']} of them"
            )
    return (
        f"The second SYN carried {proof['syn_payload_bytes']} bytes, the SYN-ACK acknowledged them, and the server's "
        f"kernel counted TCPFastOpenPassive: {server_counters.get('TcpExtTCPFastOpenPassive', 0)}."
    )


@contextlib.contextmanager
def _answering(listener: socket.socket) -> Iterator[None]:
    """Answer whoever connects, until the end of the block. The listener is the learner's: nothing is sure of it."""
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # a time-out, a reset, or a socket that does not listen
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(WAIT_S)
                    connection.recv(65536)
                    connection.sendall(RESPONSE)
            ended.wait(0.001)

    listener.settimeout(0.05)
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _ask(lab: Lab, address: tuple[str, int]) -> tuple[list[Dissected], dict[str, int]]:
    """One request with Fast Open: its packets, and what the server's kernel counted meanwhile."""
    lab.wire.settle()
    before = lab.server.counters
    with lab.capture() as capture, open_tcp(lab.client, fast_open=True) as client:
        client.settimeout(WAIT_S)
        try:
            client.connect(address)
            client.sendall(REQUEST)
            client.recv(65536)
        except ConnectionRefusedError:
            raise Wrong(
                f"nobody listens on {address[0]}, port {address[1]}: bind to the address, then listen"
            ) from None
        except TimeoutError as exc:
            raise MeasurementFailed(f"a client got no answer in {WAIT_S:g} s: is the machine too busy?") from exc
        except OSError as exc:
            raise Wrong(f"a client that connected got no answer: {describe(exc)}") from exc
    return _last(capture), (lab.server.counters - before).changed()


OPEN_LISTENER = TEXT.exercise("open_listener", _judge_listener, deadline_s=15.0, needs="sysctls")


# Exercise 2


def _judge_fetch(fetch: Callable[..., Any]) -> str:
    if (total := least(lambda: _second_fetch(fetch), 2)) > 2:
        raise Wrong(f"the ClientHello rode in the SYN, but the request took {total} round trips: {_HELD}")
    return "The ClientHello rode in the SYN, the SYN-ACK acknowledged all of it, and the request took two round trips."


_HELD = "it waited until Finished was acknowledged. Which algorithm holds small writes back?"


def _second_fetch(fetch: Callable[..., Any]) -> int:
    """Round trips of the second of two requests. Raises Wrong for what no repetition can change."""
    # A longer round trip: a server that the machine holds up for a whole one makes three of two.
    with Lab(rtt_ms=8 * RTT_MS) as lab, HttpServer(lab.server, tls="1.3", fast_open=True) as server:
        # A small key share, so that the ClientHello fits into a SYN whatever OpenSSL this Python has.
        context = lab.authority.client_context(versions=["1.3"], group="prime256v1")
        nodelay = watch_nodelay(context)
        for _ in range(2):  # the first connection brings the cookie
            lab.wire.settle()
            with lab.capture() as capture, lab.client:
                response = fetch(("server.lab", server.port), context)
    if not isinstance(response, bytes) or not response.startswith(b"HTTP/1.1 200"):
        raise Wrong(f"fetch returned {response!r:.60}: return the response's bytes")
    try:
        line = timeline(_last(capture))
    except MeasurementFailed as exc:
        raise Wrong(str(exc)) from exc
    proof, total = evidence(line), sum(line.whole_rtts().values())
    if not proof["syn_payload_bytes"]:
        raise Wrong(
            f"the second connection's SYN carried no data, and the request took {total} round trips: connect must not "
            "send the SYN before there is something to put into it"
        )
    if total > 2 and nodelay[-1:] == [False]:
        raise Wrong(f"the ClientHello rode in the SYN, but the request took {total} round trips: {_HELD}")
    return total


FETCH = TEXT.exercise("fetch", _judge_fetch, deadline_s=15.0, needs="sysctls")


# Exercise 3

Seen = list[tuple[str, str, int, int]]


def _judge_diagnose(diagnose: Callable[[Seen], Any]) -> str:
    for what, expected, packets in _situations():
        if expected != "lost" and sum(flags == "S" for _, flags, _, _ in packets) != 1:
            raise MeasurementFailed(f"{what}: the wire was held up so long that the kernel sent the SYN again")
        said = diagnose(packets)
        if said != expected:
            begin = ", ".join(f"({sender}, {flags}, {data}, {ack})" for sender, flags, data, ack in packets[:4])
            raise Wrong(f"{what}: your answer is {said!r:.40}, and it is {expected!r}. The capture begins {begin}")
    return "All five captures, and each from its SYN and SYN-ACK alone."


def _situations() -> Iterator[tuple[str, str, Seen]]:
    """What happened in words, the verdict, the packets."""
    with Lab(rtt_ms=RTT_MS) as lab:
        yield from _live_situations(lab) if lab.can("sysctls") else _recorded_situations(lab)


def _live_situations(lab: Lab) -> Iterator[tuple[str, str, Seen]]:
    with HttpServer(lab.server, fast_open=True) as server:
        client = TcpClient(lab.client, server, fast_open=True)

        def captured(body: bytes = b"") -> Seen:
            lab.wire.settle()
            with lab.capture() as capture:
                client.fetch(method="POST" if body else "GET", body=body)
            return _seen(_last(capture))

        yield "a first connection, which fetches the cookie", "no data", captured()
        yield "a cookie that the server takes", "accepted", captured()
        yield (
            "a request longer than the SYN can hold, of which the server takes that part",
            "accepted",
            captured(b"x" * 3000),
        )
        lab.server.sysctl["net.ipv4.tcp_fastopen"] = "0"
        yield "a server that does not take data in a SYN any more", "refused", captured()
        lab.server.sysctl["net.ipv4.tcp_fastopen"] = "3"
        with lab.wire.drop(source="client", tcp_flags="S", payload=True):
            yield "a middlebox that drops SYNs with data", "lost", captured()


def _recorded_situations(lab: Lab) -> Iterator[tuple[str, str, Seen]]:
    """From the race, whose requests are plain HTTP, and from the notebook, whose captures have one connection each."""
    first, *_, last = (group for group in connections(measure(lab, "tfo").capture.messages) if begins(group[0]))
    yield "a first connection, which fetches the cookie", "no data", _seen(first)
    yield "a cookie that the server takes", "accepted", _seen(last)
    hello = recall("https.tfo/with_fast_open, 40, post-quantum, False, False", tier=lab.tier)
    yield "a request longer than the SYN can hold, of which the server takes that part", "accepted", _seen(_last(hello))
    turned_off = recall("https.tfo/turned_off", tier=lab.tier)
    yield "a server that does not take data in a SYN any more", "refused", _seen(_last(turned_off))
    dropped, _ = recall("https.tfo/behind_a_middlebox", tier=lab.tier)
    yield "a middlebox that drops SYNs with data", "lost", _seen(_last(dropped[0]))


def _seen(packets: Sequence[Dissected]) -> Seen:
    """What the learner gets of each packet: sender, flags, bytes of data, the client's bytes that it acknowledges."""
    found: Seen = []
    first: int | None = None
    for packet in packets:
        header = packet.headers.tcp
        assert header is not None
        first = header.seq if first is None else first
        flags = ("S" if header.flags & SYN else "") + ("A" if header.flags & ACK else "")
        acknowledged = 0 if packet.from_client else (header.ack - first - 1) % 2**32
        found.append(("client" if packet.from_client else "server", flags, packet.payload, acknowledged))
    return found


DIAGNOSE = TEXT.exercise("diagnose", _judge_diagnose, deadline_s=20.0)

EXERCISES = (OPEN_LISTENER, FETCH, DIAGNOSE)


QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request over TFO and TLS 1.3 on this lab, with four blanks."""
    measured = measure_once(lab, "tfo+tls1.3")
    return TEXT.trace(
        measured.runs[-1].timeline.packets,
        [
            Blank("ClientHello", "what", "which message of TLS does a client begin with?"),
            Blank("ServerHello", "round trip", "it answers the same packet as the SYN-ACK does"),
            Blank(
                "ChangeCipherSpec, Finished", "seq", "the SYN takes one number, and each byte of its data takes another"
            ),
            Blank(
                "GET /",
                "round trip",
                "the client's Finished and its request leave together, as soon as the server's is there",
            ),
        ],
        tier=measured.tier,
    )
