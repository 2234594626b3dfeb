"""The ticker of the chapter on patterns, and what is counted of those who listen to it."""

from __future__ import annotations

import http.client
import threading

import pytest

from book.patterns.ticker import Received, Ticker, cost_of, decode, encode, missing
from labkit import InvalidValue, Lab
from labkit.servers import HttpServer, Request, Response


def test_events_have_numbers_without_a_gap_and_each_is_heard_once(lab: Lab) -> None:
    def answer(request: Request) -> Response:
        return Response(200, body=encode(ticker.wait_after(int(request.target.rpartition("=")[2]), 5)))

    received = Received()
    with HttpServer(lab.server, answer, port=80), lab.capture() as capture, lab.client, Ticker(8, 0.02) as ticker:
        connection = http.client.HTTPConnection("server.lab", 80)
        asked = 0
        while received.last < 8:
            connection.request("GET", f"/events?after={received.last}")
            asked += 1
            received.note(*decode(connection.getresponse().read()))
        connection.close()
    assert received.numbers == list(range(1, 9))
    assert missing(received.numbers, ticker) == []
    assert missing([1, 2], ticker) == [3, 4, 5, 6, 7, 8]
    assert all(delay > 0 for delay in received.delays_s(ticker))
    cost = cost_of(capture)
    assert (cost.connections, cost.requests) == (1, asked)
    assert cost.bytes == sum(len(packet.transit.data) for packet in capture.messages)


def test_who_waits_is_let_go_when_the_ticker_ends() -> None:
    came: list[int] = []
    with Ticker(5, 60) as ticker:
        waiting = threading.Thread(target=lambda: came.append(len(ticker.wait_after(0, 60))))
        waiting.start()
    waiting.join(5)
    assert came == [0]
    assert not ticker.complete


@pytest.mark.parametrize(("events", "every_s"), [(0, 1), (1, 0), (1, float("nan"))])
def test_numbers_that_cannot_be(events: int, every_s: float) -> None:
    with pytest.raises(InvalidValue, match=str(every_s)):
        Ticker(events, every_s)
