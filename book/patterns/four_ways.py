"""The ticker's events by four ways at once, each with a server and a port of its own.

Polling, long polling and the WebSocket are here, in the fewest lines; what the section studies it brings itself::

    heard = side_by_side(lab, {**OTHERS, "SSE": Way(streaming, listen)}, every_s=0.1)
    heard["SSE"].cost.packets
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from book.patterns.ticker import Cost, Received, Ticker, cost_of, decode, encode
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.servers import AsgiServer
from labkit.waiting import wait_until

PERIOD_S = 0.1  # of the client that polls
HOLD_S = 20.0  # the server of the long poll lets a request wait for so long
PATIENCE_S = 30.0
PORT = 80


class Noted:
    """An ASGI application, and what each request for it said of the last event that its client has.

    Attributes:
        asked: its ``Last-Event-ID``, or None, for each request.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.asked: list[str | None] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            last = dict(scope["headers"]).get(b"last-event-id")
            self.asked.append(None if last is None else last.decode())
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class Way:
    """How events come to a client.

    Attributes:
        serve: makes the application of a ticker.
        listen: the client's: ``listen(received, upto, port=…)`` notes events until it has number `upto`.
    """

    serve: Callable[[Ticker], Any]
    listen: Callable[..., Any]


@dataclass(frozen=True)
class Heard:
    """What came of one way.

    Attributes:
        numbers: of the events, as they came.
        delays_s: of each.
        cost: on the wire.
    """

    numbers: list[int]
    delays_s: list[float]
    cost: Cost

    @property
    def late_ms(self) -> float:
        """From event to client, mean."""
        return 1000 * sum(self.delays_s) / len(self.delays_s)


def _answering(events: Callable[[int], Any]) -> Starlette:
    def answer(request: Request) -> Response:
        return Response(encode(events(int(request.query_params["after"]))), media_type="application/json")

    return Starlette(routes=[Route("/events", answer)])


def polled(ticker: Ticker) -> Starlette:
    """Answers with what there is."""
    return _answering(ticker.after)


def held(ticker: Ticker) -> Starlette:
    """Answers when there is something."""
    return _answering(lambda after: ticker.wait_after(after, HOLD_S))


def pushed(ticker: Ticker) -> Starlette:
    """Sends each event as a message of a WebSocket."""

    async def send(socket: WebSocket) -> None:
        await socket.accept()
        last = 0
        while last < ticker.planned:
            for event in await run_in_threadpool(ticker.wait_after, last, HOLD_S):
                await socket.send_text(encode([event]).decode())
                last = event.number
        await socket.close()

    return Starlette(routes=[WebSocketRoute("/events", send)])


def _asks(received: Received, upto: int, port: int, every_s: float) -> None:
    connection = HTTPConnection("server.lab", port, timeout=PATIENCE_S)
    due = time.monotonic()
    while received.last < upto:
        connection.request("GET", f"/events?after={received.last}")
        received.note(*decode(connection.getresponse().read()))
        due += every_s
        time.sleep(max(0.0, due - time.monotonic()))  # the pace of the client, not a wait
    connection.close()


def polls(received: Received, upto: int, port: int = PORT) -> None:
    """A client that asks each PERIOD_S."""
    _asks(received, upto, port, PERIOD_S)


def waits(received: Received, upto: int, port: int = PORT) -> None:
    """A client that asks again as soon as it has an answer."""
    _asks(received, upto, port, 0.0)


def opens_socket(received: Received, upto: int, port: int = PORT) -> None:
    """A client with a WebSocket, without compression."""
    uri = f"ws://server.lab:{port}/events"
    with connect(uri, compression=None, ping_interval=None, proxy=None, open_timeout=PATIENCE_S) as socket:
        while received.last < upto:
            received.note(*decode(socket.recv(PATIENCE_S)))


OTHERS = {"polling": Way(polled, polls), "long polling": Way(held, waits), "WebSocket": Way(pushed, opens_socket)}


def side_by_side(lab: Lab, ways: Mapping[str, Way], every_s: float, events: int = 8) -> dict[str, Heard]:
    """One ticker, and a client of each way that listens to it. The first event is made when all have asked.

    Args:
        lab: its client listens to its server.
        ways: by name.
        every_s: from one event to the next, seconds.
        events: how many.

    Raises:
        MeasurementFailed: a client did not get all events in time.
    """
    ticker = Ticker(events, every_s)
    ports = {name: PORT + place for place, name in enumerate(ways)}
    received = {name: Received() for name in ways}

    def run(name: str) -> None:
        with lab.client:
            ways[name].listen(received[name], events, port=ports[name])

    with ExitStack() as stack:
        apps = {name: Noted(way.serve(ticker)) for name, way in ways.items()}
        for name, app in apps.items():
            stack.enter_context(AsgiServer(lab.server, app, port=ports[name]))
        capture = stack.enter_context(lab.capture())
        threads = [threading.Thread(target=run, args=[name], daemon=True) for name in ways]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(app.asked for app in apps.values()), what="the first request of each client")
        with ticker:
            for thread in threads:
                thread.join(PATIENCE_S)
            if any(each.last < events for each in received.values()):
                raise MeasurementFailed("a client has not all events: is the machine too busy? Try again")
    return {
        name: Heard(received[name].numbers, received[name].delays_s(ticker), cost_of(capture, ports[name]))
        for name in ways
    }


def came_before_the_last(capture: Captured, client: str = "client", server: str = "server") -> int:
    """How many events had reached the client when the last one left the server, read from the packets.

    Args:
        capture: of one stream from its first event to its last, on its whole way.
        client, server: names of hosts.
    """
    left, came = [], []
    for packet in capture.messages:
        for message in packet.messages:
            if message.protocol == "SSE" and message.data:
                if packet.transit.source == server:
                    left.append(packet.transit.time_ns)
                if packet.transit.destination == client and packet.transit.received_ns is not None:
                    came.append(packet.transit.received_ns)
    return sum(moment < max(left) for moment in came)
