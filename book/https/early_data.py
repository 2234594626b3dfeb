"""What the section "TLS 1.3 with 0-RTT" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.https.reading import messages_of, opened, timeline_of
from labkit.capture.captured import Captured
from labkit.errors import InvalidValue, MeasurementFailed
from labkit.handshakes import EarlyDataClient, measure_once
from labkit.handshakes.phases import evidence, steps
from labkit.lab import Lab
from labkit.servers import EarlyDataServer, HttpServer, Request, Response, Server

TEXT = Text(__file__)

RTT_MS = 10
PATIENCE_S = 3.0
KEYS = {
    "": "in the clear",
    "early": "early keys",
    "handshake": "handshake keys",
    "application": "application keys",
}


def said_by(sender: str, capture: Captured, last: str) -> Iterator[tuple[str, str]]:
    """What one side says on the connection that was opened last, in the order of sending.

    Args:
        sender: "client" or "server".
        capture: of the connection.
        last: the name of the message with which to end.

    Yields:
        the names of messages of TLS and HTTP, with the keys that protect them.
    """
    for packet, message in messages_of(capture):
        if packet.from_client != (sender == "client"):
            continue
        if message.protocol in ("TLS", "HTTP") and message.name != "ChangeCipherSpec":
            yield message.name, KEYS[message.level]
        if message.name == last:
            return


def said_over_http(capture: Captured) -> list[tuple[int, str, str, str]]:
    """Requests and responses of the connection: in which round trip, by whom, what, under which keys."""
    packets = opened(capture)
    return [
        ((step + 1) // 2, "client" if packet.from_client else "server", message.name.strip(), KEYS[message.level])
        for packet, step in zip(packets, steps(packets), strict=True)
        for message in packet.messages
        if message.protocol == "HTTP" and message.first == packet.index
    ]


def certificate_and_copies(capture: Captured) -> tuple[str, int]:
    """Whether the server sent its certificate, "yes" or "no", and how often the client sent its GET."""
    copies = sum(message.name.startswith("GET") for _, message in messages_of(capture))
    return ("yes" if evidence(timeline_of(capture))["certificate_sent"] else "no"), copies


@dataclass(frozen=True)
class Ticket:
    """What a NewSessionTicket says (RFC 8446, section 4.6.1).

    Attributes:
        lifetime_s: seconds for which the client may use it.
        size: bytes of the ticket itself, which the client brings back unread.
        most_early_data: bytes of early data that the server takes at most.
    """

    lifetime_s: int
    size: int
    most_early_data: int


def ticket_in(capture: Captured) -> Ticket:
    """The first ticket of the connection that was opened last.

    Raises:
        MeasurementFailed: no connection was opened, or the server gave no ticket.
    """
    for _, message in messages_of(capture):
        if message.name == "NewSessionTicket":
            body = message.data[4:]  # behind type and length
            nonce = body[8]
            size = int.from_bytes(body[9 + nonce : 11 + nonce], "big")
            extensions = body[13 + nonce + size :]  # one, early_data: type, length, number
            return Ticket(int.from_bytes(body[:4], "big"), size, int.from_bytes(extensions[4:8], "big"))
    raise MeasurementFailed("the server gave no ticket: look at the capture's ladder")


def _raised(server: Server) -> None:
    """Tell what the learner's handler raised, if it did: the client saw a 500 only."""
    for entry in server.log.of("error"):
        if entry.text.startswith("the handler"):
            raise Wrong(entry.text.replace("the handler", "your handler", 1))


# Exercise 1: too early.


def _judge_too_early(answer: Callable[..., Any]) -> str:
    sold: list[str] = []

    def handler(request: Request) -> Response:
        response: Response = answer(request, sold)
        return response

    with Lab(rtt_ms=RTT_MS) as lab:
        with EarlyDataServer(lab.server, handler, replay_protection=False) as server:
            client = EarlyDataClient(lab.client, server)
            ordinary = client.fetch("/late", "POST")
            _raised(server)
            if ordinary.status == 425:
                raise Wrong("a POST after the handshake got 425: nobody can replay it, so it is not too early")
            if ordinary.status != 201 or sold != ["/late"]:
                raise Wrong(f"a POST after the handshake: status {ordinary.status}, sold {sold}; it is to be sold, 201")
            reading = client.fetch("/prices")
            if reading.status != 200:
                raise Wrong(f"a GET in early data got {reading.status}: it changes nothing, so it may come early")
            early = client.fetch("/early", "POST")
            client.replay()
            _raised(server)
            if "/early" in sold:
                raise Wrong(
                    f"an early POST was sold, and somebody replayed it: {sold.count('/early')} times in all. "
                    "request.facts tells what came early"
                )
            if early.status != 425:
                raise Wrong(f"an early POST got {early.status}: only 425 tells the client to try again later")
        # The origin behind a proxy: what reaches it is plain HTTP.
        with HttpServer(lab.server, handler, port=8080) as origin, lab.client:
            proxy = http.client.HTTPConnection("server.lab", origin.port, timeout=PATIENCE_S)
            proxy.request("POST", "/proxied", headers={"Early-Data": "1"})
            status = proxy.getresponse().status
            proxy.close()
            _raised(origin)
            if status != 425:
                raise Wrong(
                    f"a POST with the header Early-Data: 1 got {status}: the proxy that took it in early data says so "
                    "(RFC 8470 §5.1)"
                )
    return "Early purchases are sent back, reading may come early, and the proxy's word counts."


TOO_EARLY = TEXT.exercise("too_early", _judge_too_early)


# Exercise 2: once, whatever comes.


def _judge_once(answer: Callable[..., Any]) -> str:
    answers: dict[Any, Any] = {}
    charged: list[bytes] = []

    def sell(order: bytes) -> str:
        if not isinstance(order, bytes):
            raise InvalidValue(f"sell({order!r}): give it the order, request.body")
        charged.append(order)
        return f"receipt {len(charged)}\n"

    def handler(request: Request) -> Response:
        if request.method == "GET":
            return Response.text("prices\n")
        response: Response = answer(request, answers, sell)
        return response

    with Lab(rtt_ms=RTT_MS) as lab, EarlyDataServer(lab.server, handler, replay_protection=False) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch("/prices")  # brings the ticket
        first = client.fetch("/buy", "POST", b"order 1")
        _raised(server)
        if charged != [b"order 1"] or first.status != 201:
            raise Wrong(f"an early order got {first.status}, charged {len(charged)} times: sell it once and answer 201")
        client.replay()
        _raised(server)
        if len(charged) > 1:
            raise Wrong("a replay, from another port, was charged again: what do both copies have in common?")
        again = EarlyDataClient(lab.client, server).fetch("/buy", "POST", b"order 1")
        if len(charged) > 1:
            raise Wrong("the client sent its order again after the handshake, and was charged again")
        if (again.status, again.body) != (first.status, first.body):
            raise Wrong(
                f"the client sent its order again and got {again.status} {again.body!r}, first it was {first.status} "
                f"{first.body!r}: whoever has lost the first answer needs that one"
            )
        client.fetch("/buy", "POST", b"order 2")
        _raised(server)
        if charged != [b"order 1", b"order 2"]:
            raise Wrong("a second order, for the same thing, was not sold: the same target is not the same order")
    return "One charge for each order, however often it comes, and the same receipt."


ONCE = TEXT.exercise("once", _judge_once)

EXERCISES = (TOO_EARLY, ONCE)

QUIZ = TEXT.quiz


@recorded
def trace(lab: Lab) -> Captured:
    """What the hidden trace shows. What stands in one segment with what, and so the numbers, is the kernel's doing."""
    return measure_once(lab, "tls1.3-0rtt").capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request in early data on this lab, or a recorded one, with four blanks."""
    capture = trace(lab)
    return TEXT.trace(
        timeline_of(capture).packets,
        [
            Blank("GET /", "round trip", "the request does not wait for anything that TLS says"),
            Blank("HTTP/1.1 200", "seq", "add up what the server has sent before it, and its SYN"),
            Blank("EndOfEarlyData", "what", "with it the client says that the next bytes use other keys"),
            Blank("NewSessionTicket", "round trip", "the server sends it when it has the client's Finished"),
        ],
        tier=capture.tier,
    )
