"""What hypercorn serves to the tests of captures: a page, an echo, events, and a WebSocket that echoes."""

from __future__ import annotations

from typing import Any

TICKS = 3


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (event := (await receive())["type"]) == "lifespan.startup":
            await send({"type": f"{event}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    else:
        await http(scope["path"], receive, send)


async def websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        said = {name: event[name] for name in ("text", "bytes") if event.get(name) is not None}
        await send({"type": "websocket.send", **said})
        if event.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4000, "reason": "as asked"})


async def http(path: str, receive: Any, send: Any) -> None:
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    events = path == "/ticks"
    kind = b"text/event-stream" if events else b"text/plain"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if events:
        for number in range(TICKS):
            tick = b"event: tick\nid: %d\ndata: at %d\n\n" % (number, number)
            await send({"type": "http.response.body", "body": tick, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if events else body or b"a page"})
