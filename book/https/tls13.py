"""What the section "TCP + TLS 1.3" asks: three exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence

from book import Blank, HiddenTrace, Text, Wrong
from book.https.reading import messages_of
from book.learn.judging import least, serving, the_request, watch_nodelay
from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected
from labkit.handshakes import measure_once
from labkit.handshakes.phases import Timeline
from labkit.lab import Lab

TEXT = Text(__file__)

REQUEST = b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"
PATIENCE_S = 3.0
SEGMENT = 1448  # bytes of data in a full one, with time stamps
RECORD_HEADER = 5  # bytes of a TLS record's
# Long enough that the pause of a busy machine between two writes does not look like a round trip.
RTT_MS = 40.0


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one request over TLS and wait until the client has had enough, as a server with keep-alive does."""
    connection, _ = listener.accept()
    # A handshake that fails and a client that leaves without a word are the learner's to explain, not the server's.
    with contextlib.suppress(OSError), connection:
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(RESPONSE)
            tls.recv(1)


def fetch(context: ssl.SSLContext) -> None:
    """One request over TLS as it should be."""
    with socket.create_connection(("server.lab", 8443), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_hostname="server.lab") as tls:
            tls.sendall(REQUEST)
            tls.recv(65536)


def client_hellos(line: Timeline) -> int:
    """How many ClientHellos the client sent. One that fills two segments counts once."""
    return len({m.first for p in line.packets if p.from_client for m in p.messages if m.name == "ClientHello"})


def stream_of(packets: Sequence[Dissected], from_client: bool) -> bytes:
    """All that one side sent over a TCP connection, in order, as somebody between the two sees it."""
    pieces: dict[int, bytes] = {}
    for packet in packets:
        segment = packet.headers
        if packet.from_client == from_client and segment.payload and segment.tcp is not None:
            pieces.setdefault(segment.tcp.seq, segment.payload)
    return b"".join(pieces.values())


def server_says(capture: Captured, in_the_clear: bool) -> list[str]:
    """Names of the server's handshake messages, in order and each once: those in the clear, or the others."""
    names = [
        message.name
        for packet, message in messages_of(capture)
        if not packet.from_client and message.protocol == "TLS" and "Alert" not in message.name
        if (message.level == "") == in_the_clear
    ]
    return list(dict.fromkeys(names))


def key_shares(capture: Captured, name: str) -> tuple[str, int]:
    """What a hello says of key shares, and how many segments it needs.

    Args:
        capture: of one request.
        name: "ClientHello" or "ServerHello".
    """
    message = next(message for _, message in messages_of(capture) if message.name == name)
    return ", ".join(message.hello.key_shares), -(-(RECORD_HEADER + message.length) // SEGMENT)


# Exercise 1: three round trips.


def _judge_three(answer: Callable[[ssl.SSLContext], object]) -> str:
    if (total := least(lambda: _asked(answer), 3)) > 3:
        raise Wrong(f"{total} round trips: look for a packet that you wait for without need")
    return "Three round trips: Finished and request left together."


def _asked(answer: Callable[[ssl.SSLContext], object]) -> int:
    """Round trips of one request. Raises Wrong for what no repetition can change."""
    with Lab(rtt_ms=RTT_MS) as lab:
        server = lab.authority.server_context("server.lab", versions=["1.3"])
        context = lab.authority.client_context(versions=["1.3"])
        nodelay = watch_nodelay(context)
        with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
            response = answer(context)
        if not isinstance(response, bytes) or not response.startswith(b"HTTP/1.1 200 "):
            raise Wrong(
                f"ask_in_three returned {response!r:.60}: return the bytes of the response, b'HTTP/1.1 200 OK…'"
            )
        line = the_request(capture)
    whole = line.whole_rtts()
    total = sum(whole.values())
    if whole["tls"] > 1 and nodelay[-1:] == [False]:
        raise Wrong(
            f"{total} round trips. The request left one after the client's Finished: who holds it back until Finished "
            "is acknowledged?"
        )
    if nodelay[-1:] == [False] and not lab.can("kernel"):
        raise Wrong(
            "3 round trips, but only because no kernel is between the hosts of this tier. With one it is 4, and the "
            "request leaves one after the client's Finished: who holds it back until Finished is acknowledged?"
        )
    return total


THREE = TEXT.exercise("three", _judge_three)


# Exercise 2: what anybody can read.


def _judge_readable(answer: Callable[[bytes], object]) -> str:
    for version in ("1.2", "1.3"):
        with Lab(rtt_ms=10) as lab:
            server = lab.authority.server_context("server.lab", versions=[version])
            with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
                fetch(lab.authority.client_context())
            line = the_request(capture)
            clear = [
                m.data[0]
                for p in line.packets
                for m in p.messages
                if not p.from_client and m.protocol == "TLS" and m.level == "" and m.last == p.index
                if m.name != "ChangeCipherSpec"
            ]
            _compare(version, answer(stream_of(line.packets, from_client=False)), clear)
    return "TLS 1.2 shows hello, certificate, key exchange and ticket; TLS 1.3 shows the hello."


def _compare(version: str, given: object, clear: list[int]) -> None:
    where = f"TLS {version}"
    if not isinstance(given, list) or not all(isinstance(kind, int) for kind in given):
        raise Wrong(f"{where}: readable returned {given!r:.60}: return a list of numbers, such as [2, 11]")
    if given == clear:
        return
    if given and given[: len(clear)] == clear:
        raise Wrong(
            f"{where}: after {clear} you found {given[len(clear) :]}, in bytes that are encrypted: what is the last "
            "thing that the server says before it uses its keys?"
        )
    if 20 in given or given.count(22) > 1:
        raise Wrong(f"{where}: {given} are content types of records (RFC 8446 §5.1): look inside those of type 22")
    if given == clear[: len(given)]:
        raise Wrong(f"{where}: {given} is right but not all of it: {len(clear)} messages can be read without a key")
    raise Wrong(f"{where}: {given}, but in the clear stand {len(clear)} messages: check your lengths, 2 and 3 bytes")


READABLE = TEXT.exercise("readable", _judge_readable)


# Exercise 3: no HelloRetryRequest.


def _judge_group(answer: Callable[[ssl.SSLContext], object]) -> str:
    if (count := least(lambda: _tls_rtts(answer), 1)) != 1:
        raise Wrong(f"TLS took {count} round trips and not 1")
    return "One ClientHello, one round trip: the key share is for the group that the server takes."


def _tls_rtts(answer: Callable[[ssl.SSLContext], object]) -> int:
    """Round trips of TLS in one request. Raises Wrong for what no repetition can change."""
    with Lab(rtt_ms=RTT_MS) as lab:
        server = lab.authority.server_context("server.lab", versions=["1.3"])
        server.set_ecdh_curve("secp384r1")
        context = lab.authority.client_context()
        answer(context)
        with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
            try:
                fetch(context)
            except ssl.SSLError as exc:
                raise Wrong(
                    f"no handshake, {exc.reason}: client and server have no group or no version in common"
                ) from exc
        line = the_request(capture)
    if (hellos := client_hellos(line)) > 1:
        raise Wrong(f"the client sent {hellos} ClientHellos: the server still asks for a key share of another group")
    return line.whole_rtts()["tls"]


GROUP = TEXT.exercise("group", _judge_group)

EXERCISES = (THREE, READABLE, GROUP)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A full handshake with TLS 1.3 on this lab, with four blanks."""
    run = measure_once(lab, "tls1.3").runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank("ServerHello", "what", "it answers the ClientHello, and is the last that can be read without a key"),
            Blank("CertificateVerify", "from", "who has to prove that the certificate is its own?"),
            Blank(
                "GET /", "round trip", "it leaves together with the client's Finished: count what the client waited for"
            ),
            Blank("ClientHello", "seq", "a SYN counts as one byte, and it is the client's number 0"),
        ],
    )
