"""One client for each way to fetch: every fetch is a new connection from the client's host, measured from outside.

::

    server = server_for(variant("tls1.3-0rtt"), lab.server)
    client = client_for(variant("tls1.3-0rtt"), lab.client, server)
    client.fetch()            # brings the ticket home
    client.fetch().facts      # {"early_data_accepted": True, …}: what the library says; packets prove it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.lazy import lazy

if TYPE_CHECKING:
    from labkit.handshakes.clients.base import Client, Fetched
    from labkit.handshakes.clients.early_data import EarlyDataClient
    from labkit.handshakes.clients.quic import QuicClient
    from labkit.handshakes.clients.tcp import TcpClient, TlsClient
    from labkit.handshakes.variants import Variant
    from labkit.servers import EarlyDataServer, Handler, Http3Server, HttpServer
    from labkit.servers.hosts import HostLike

    AnyServer = HttpServer | EarlyDataServer | Http3Server

_HOME = {
    "Client": "labkit.handshakes.clients.base",
    "EarlyDataClient": "labkit.handshakes.clients.early_data",
    "Fetched": "labkit.handshakes.clients.base",
    "QuicClient": "labkit.handshakes.clients.quic",
    "TcpClient": "labkit.handshakes.clients.tcp",
    "TlsClient": "labkit.handshakes.clients.tcp",
}

__all__ = [
    "Client",
    "EarlyDataClient",
    "Fetched",
    "QuicClient",
    "TcpClient",
    "TlsClient",
    "client_for",
    "server_for",
]


def server_for(
    variant: Variant,
    host: HostLike,
    *,
    port: int | None = None,
    handler: Handler | None = None,
    name: str | None = None,
) -> AnyServer:
    """A server that can do what the variant needs.

    Args:
        variant: from ``variant(name)``.
        host: the host it runs on.
        port: by default 80 without TLS and 443 with it; 0 for a free one.
        handler, name: as in HttpServer.

    Raises:
        what the server's constructor raises.
    """
    tls_port = 443 if port is None else port
    if variant.transport == "quic":
        from labkit.servers.http3 import Http3Server

        return Http3Server(host, handler, port=tls_port, name=name)
    if variant.early_data:
        from labkit.servers.early_data import EarlyDataServer

        return EarlyDataServer(host, handler, port=tls_port, fast_open=variant.fast_open, name=name)
    from labkit.servers.http import HttpServer

    return HttpServer(host, handler, port=port, tls=variant.tls, fast_open=variant.fast_open, name=name)


def client_for(variant: Variant, host: HostLike, server: AnyServer, *, timeout_s: float = 10.0) -> Client:
    """The client of the variant. What it needs from an earlier connection its first fetch brings.

    Args:
        variant: from ``variant(name)``.
        host: the host it runs on.
        server: from ``server_for`` of the same variant.
        timeout_s: deadline of each fetch, in seconds.

    Raises:
        InvalidValue: a deadline that is not positive.
    """
    if variant.transport == "quic":
        from labkit.handshakes.clients.quic import QuicClient

        return QuicClient(host, server, early_data=variant.early_data, timeout_s=timeout_s)
    if variant.early_data:
        from labkit.handshakes.clients.early_data import EarlyDataClient

        return EarlyDataClient(host, server, fast_open=variant.fast_open, timeout_s=timeout_s)
    from labkit.handshakes.clients.tcp import TcpClient, TlsClient

    if variant.tls is None:
        return TcpClient(host, server, fast_open=variant.fast_open, timeout_s=timeout_s)
    return TlsClient(
        host,
        server,
        version=variant.tls,
        resume=variant.resumed,
        fast_open=variant.fast_open,
        timeout_s=timeout_s,
    )


__getattr__, __dir__ = lazy(__name__, _HOME)
