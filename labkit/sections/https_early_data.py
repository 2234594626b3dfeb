"""What the section "TLS 1.3 with 0-RTT" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

from labkit.capture.captured import Captured
from labkit.errors import InvalidValue
from labkit.handshakes import EarlyDataClient, measure_once
from labkit.handshakes.phases import begins, connections, timeline
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.servers import EarlyDataServer, HttpServer, Request, Response, Server

RTT_MS = 10
PATIENCE_S = 3.0


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


_HANDLER = (
    "from labkit.servers import Response\n\n\n"
    "def handle(request, sold):\n"
    "    early = {early}\n"
    "    if {refused}:\n"
    '        return Response.text("too early\\n", 425)\n'
    '    if request.method == "GET":\n'
    '        return Response.text("prices\\n")\n'
    "    sold.append(request.target)\n"
    '    return Response.text("sold\\n", 201)\n'
)
_EARLY = 'request.facts.get("early_data") or request.header("early-data") == "1"'

TOO_EARLY = Exercise(
    id="https.early_data.too_early",
    task=(
        "Write `handle(request, sold)`, the handler of a shop. It gets a `labkit.servers.Request` and returns a\n"
        "`Response`:\n\n"
        "- a `GET` is answered with 200, whenever it comes,\n"
        "- a `POST` that came in early data is not executed and answered with 425,\n"
        "- any other `POST` is executed: append `request.target` to the list `sold` and answer 201.\n\n"
        'The server notes in `request.facts["early_data"]` what it read as early data. The same handler also runs\n'
        "behind a proxy that speaks TLS for it. Such a proxy marks what it took in early data with the header\n"
        "`Early-Data: 1` (RFC 8470 §5.1)."
    ),
    starter="def handle(request, sold):\n    return ...\n",
    solution=_HANDLER.format(early=_EARLY, refused='early and request.method != "GET"'),
    explanation=(
        "Who replays a first flight cannot complete the handshake. So what comes after the handshake is no replay, "
        "and what comes before it may be one, whoever reads it first: this server or the proxy in front of it. 425 "
        "asks the client to send the same request again after the handshake (RFC 8470 §5.2)."
    ),
    hints=(
        "Two questions: did it come early, and may it happen twice?",
        'It came early if request.facts["early_data"] is true, or if request.header("early-data") is "1".',
        'Return Response.text("too early", 425) before anything is sold, but not for GET.',
    ),
    mistakes=(
        Mistake(_HANDLER.format(early="False", refused="early"), "somebody replayed it: 2 times in all"),
        Mistake(_HANDLER.format(early=_EARLY, refused="early"), "a GET in early data got 425"),
        Mistake(
            _HANDLER.format(early='request.facts["early_data"]', refused='early and request.method != "GET"').replace(
                'facts["early_data"]', 'facts.get("early_data")'
            ),
            "with the header Early-Data: 1 got 201",
        ),
        Mistake(
            _HANDLER.format(early="True", refused='request.method == "POST"'), "a POST after the handshake got 425"
        ),
    ),
    judge=_judge_too_early,
)


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


_ONCE = (
    "from labkit.servers import Response\n\n\n"
    "def handle_order(request, answers, sell):\n"
    "    order = {key}\n"
    "    if order not in answers:\n"
    "        answers[order] = Response.text(sell(request.body), 201)\n"
    "{otherwise}    return answers[order]\n"
)

ONCE = Exercise(
    id="https.early_data.once",
    task=(
        "The client puts an order number into the body of each `POST`: `order 1`. It keeps the number when it sends "
        "an\n"
        "order again, and takes a new one for a new order. Write `handle_order(request, answers, sell)`, so that an "
        "order\n"
        "is sold once, however often it comes and however it comes. `sell(order)` charges the customer and returns "
        "the text\n"
        "of a receipt; `answers` is a dictionary that outlives the request. Answer with 201 and the receipt. An order "
        "that\n"
        "comes again gets the receipt that it got before."
    ),
    starter="def handle_order(request, answers, sell):\n    return ...\n",
    solution=_ONCE.format(key="request.body", otherwise=""),
    explanation=(
        "The order number is an idempotency key: chosen by the client, the same in every copy. So it does not matter "
        "whether a copy is a replay of early data, a retry of the client or a retry of a proxy. Here one dictionary "
        "is enough. With several servers the keys belong into a database with a unique index, written in the "
        "transaction that sells."
    ),
    hints=(
        "What is the same in all copies of an order, and different in two orders?",
        "Remember the response under request.body, and look there before you sell.",
    ),
    mistakes=(
        Mistake(_ONCE.format(key='request.facts["peer"]', otherwise=""), "a replay, from another port"),
        Mistake(_ONCE.format(key="request.target", otherwise=""), "the same target is not the same order"),
        Mistake(
            _ONCE.format(
                key="request.body", otherwise='    else:\n        return Response.text("sold already\\n", 409)\n'
            ),
            "whoever has lost the first answer needs that one",
        ),
    ),
    judge=_judge_once,
)

EXERCISES = (TOO_EARLY, ONCE)

QUIZ = Quiz(
    Question(
        "Somebody recorded a first flight and sends it again. What can they do?",
        (
            Option(
                "Read the answer.",
                "The answer is encrypted with keys that depend on the client's key share, whose secret half only the "
                "client has.",
            ),
            Option(
                "Make the server execute the request once more.",
                "Not more than that, and without knowing what it says. For a purchase it is enough.",
                right=True,
            ),
            Option(
                "Change the amount in the request.",
                "Each record is authenticated: one changed bit, and the server ends the connection.",
            ),
        ),
    ),
    Question(
        "Each of your three servers remembers the first flights that it has taken. They share their ticket keys and "
        "no memory. How often can a request in early data be executed?",
        (
            Option("Once.", "Once on each: a server does not know what another one has seen (RFC 8446 §8)."),
            Option(
                "Three times.",
                "Once on each server, which is the least that RFC 8446 §8 asks for. To be sure of one, they have to "
                "remember together, or the application has to.",
                right=True,
            ),
            Option("Without limit.", "Each server remembers for itself, so the number of servers is the limit."),
        ),
    ),
    Question(
        "Why has early data no forward secrecy, when all that follows has it?",
        (
            Option(
                "It is not encrypted yet.",
                "It is encrypted. The question is which secrets the key depends on.",
            ),
            Option(
                "Its keys come from the ticket's secret alone, and no new key exchange is in them.",
                "So who gets hold of that secret later, at the server or at the client, opens what was recorded (RFC "
                "8446 §2.3).",
                right=True,
            ),
            Option(
                "The server's certificate is not sent again.",
                "The certificate proves an identity. It has no part in the keys of TLS 1.3.",
            ),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request in early data on this lab, with four blanks."""

    def early() -> Captured:
        return measure_once(lab, "tls1.3-0rtt").capture

    # What stands in one segment with what, and so the sequence numbers, is the kernel's doing.
    capture = lab.live_or_recorded("https.early_data/trace", early)
    packets = [group for group in connections(capture.messages) if begins(group[0])][-1]
    return HiddenTrace(
        "https.early_data.trace",
        timeline(packets).packets,
        [
            Blank("GET /", "round trip", "the request does not wait for anything that TLS says"),
            Blank("HTTP/1.1 200", "seq", "add up what the server has sent before it, and its SYN"),
            Blank("EndOfEarlyData", "what", "with it the client says that the next bytes use other keys"),
            Blank("NewSessionTicket", "round trip", "the server sends it when it has the client's Finished"),
        ],
        hints=(
            "TCP's handshake is the first round trip. What leaves with the ACK belongs to the second.",
            "Each side's SYN has number 0. The server's next packet begins where the payload of the one before ends.",
            "RFC 8446 §4.5 names the message that ends early data. It stands before the client's Finished.",
        ),
        explanation=(
            "The request leaves with the ClientHello, and its answer with the server's Finished. The client's own "
            "Finished comes after that, and only then does the server know that somebody is there who holds the keys."
        ),
        tier=capture.tier,
    )
