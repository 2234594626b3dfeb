"""Servers that run in the background of a notebook, each on a host of the lab.

::

    with HttpServer(lab.server, tls="1.3") as server:
        server.url        # "https://server.lab:443/"
        server.log        # what it saw

``AsgiServer`` takes an ASGI application; all others take the same handler, a function from ``Request`` to ``Response``.
They trust and are trusted through one certificate authority a lab, ``lab.authority``. What a server is made with (h11,
uvicorn, pyOpenSSL, aioquic) is loaded with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.lazy import lazy

if TYPE_CHECKING:
    from labkit.servers.asgi import AsgiServer as AsgiServer
    from labkit.servers.authority import Authority as Authority
    from labkit.servers.background import Server as Server
    from labkit.servers.early_data import EarlyDataServer as EarlyDataServer
    from labkit.servers.http import HttpServer as HttpServer
    from labkit.servers.http3 import Http3Server as Http3Server
    from labkit.servers.log import Log as Log
    from labkit.servers.log import LogEntry as LogEntry
    from labkit.servers.messages import Handler as Handler
    from labkit.servers.messages import Request as Request
    from labkit.servers.messages import Response as Response
    from labkit.servers.page import Page as Page

_HOME = {
    "AsgiServer": "labkit.servers.asgi",
    "Authority": "labkit.servers.authority",
    "EarlyDataServer": "labkit.servers.early_data",
    "Handler": "labkit.servers.messages",
    "Http3Server": "labkit.servers.http3",
    "HttpServer": "labkit.servers.http",
    "Log": "labkit.servers.log",
    "LogEntry": "labkit.servers.log",
    "Page": "labkit.servers.page",
    "Request": "labkit.servers.messages",
    "Response": "labkit.servers.messages",
    "Server": "labkit.servers.background",
}

__all__ = list(_HOME)

__getattr__, __dir__ = lazy(__name__, _HOME)
