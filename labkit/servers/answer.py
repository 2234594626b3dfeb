"""Calling a handler: whatever it does, the client gets an answer and the log an entry."""

from __future__ import annotations

import traceback

from labkit.errors import InvalidValue
from labkit.servers.http1 import check_headers
from labkit.servers.log import Log
from labkit.servers.messages import Handler, Request, Response


def answer(handler: Handler, request: Request, log: Log) -> Response:
    """The handler's response, or a 500 where it fails; never raises.

    Args:
        handler: the learner's function.
        request: what it is given.
        log: gets the request, the response, and the traceback of a handler that fails.
    """
    peer = str(request.facts.get("peer", ""))
    log.add("request", peer, f"{request.method} {request.target}", request.facts)
    try:
        response = handler(request)
        if not isinstance(response, Response):
            raise InvalidValue(f"the handler returned {response!r:.80}: return a Response")
        check_headers(response.headers)
    except Exception as exc:  # a handler is the learner's code, and the server must outlive it
        facts = {"exception": type(exc).__name__, "traceback": traceback.format_exc()}
        log.add("error", peer, f"the handler raised {type(exc).__name__}: {exc}", facts)
        return Response.text(f"the handler raised {type(exc).__name__}: {exc}\n", 500)
    log.add("response", peer, f"{response.status}, {len(response.body)} bytes", {"status": response.status})
    return response
