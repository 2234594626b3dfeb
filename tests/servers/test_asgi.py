"""ASGI applications on a host: HTTP, WebSockets, what they raise, and how they end."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from labkit import InvalidValue, Lab, NameTaken
from labkit.servers import AsgiServer


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    if scope["path"] == "/boom":
        raise ValueError("boom")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    while scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@pytest.mark.parametrize("tls", [False, True])
def test_http_and_what_the_application_raises(lab: Lab, capfd: pytest.CaptureFixture[str], tls: bool) -> None:
    with AsgiServer(lab.server, app, tls=tls) as server, lab.client:
        with httpx.Client(verify=lab.authority.client_context() if tls else True) as client:
            assert client.get(server.url).text == ("https" if tls else "http")
            assert client.get(server.url + "boom").status_code == 500
            assert client.get(server.url).status_code == 200
        (entry,) = server.log
        assert "ValueError: boom" in str(entry)
    assert capfd.readouterr() == ("", "")


def test_a_websocket_crosses_the_wire(lab: Lab) -> None:
    with AsgiServer(lab.server, app), lab.capture() as capture, lab.client:
        with connect("ws://server.lab/chat") as chat:
            chat.send("one goal")
            assert chat.recv(5) == "ONE GOAL"
    assert any("101" in packet.what for packet in capture.messages)


def test_closing_ends_open_streams_and_silent_clients(lab: Lab, leftovers: Callable[[], set[str]]) -> None:
    server = AsgiServer(lab.server, app)
    with lab.client, socket.create_connection(("server.lab", 80), timeout=5) as silent:
        with httpx.Client() as client, connect("ws://server.lab/chat"):
            with client.stream("GET", server.url + "stream") as response:
                assert next(response.iter_raw()) == b"tick"
                server.close()
        assert silent.recv(1) == b""
    del client, response  # httpx's context keeps the lab's key log open
    gc.collect()
    assert leftovers() == set()
    assert len(server.log) == 0, "what was cut off by closing is no error"


def test_a_handler_that_blocks_holds_up_the_other_clients_and_nobody_else(lab: Lab) -> None:
    entered, go_on = threading.Event(), threading.Event()

    async def blocking(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/block":
            entered.set()
            go_on.wait(10)
        await app(scope, receive, send)

    with AsgiServer(lab.server, blocking) as server, ThreadPoolExecutor(2) as pool, lab.client:
        blocked = pool.submit(httpx.get, server.url + "block")
        assert entered.wait(5)
        other = pool.submit(httpx.get, server.url)
        with pytest.raises(TimeoutError):
            other.result(0.2)
        go_on.set()
        assert blocked.result(5).status_code == other.result(5).status_code == 200


def test_a_second_one_closes_the_first_and_bad_values_leave_nothing(
    lab: Lab, leftovers: Callable[[], set[str]]
) -> None:
    first = AsgiServer(lab.server, app, port=8080)
    with AsgiServer(lab.server, app, port=8080) as second:
        assert first.closed
        with pytest.raises(NameTaken):
            AsgiServer(lab.server, app, port=8080, name="another")
        assert not second.closed
    with pytest.raises(InvalidValue, match="70000"):
        AsgiServer(lab.server, app, port=70000)
    assert leftovers() == set()
