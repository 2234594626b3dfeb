"""Conversations over QUIC and HTTP/3, between aioquic and itself. Every function takes a ``Recorder``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import trustme
from peers import DEADLINE_S
from recorder import Recorder


def quic_peers(recorder: Recorder, visit: Callable[..., Any], **server_options: Any) -> None:
    """Run an HTTP/3 server, and ``visit(configuration)`` against it."""
    from aioquic.asyncio import QuicConnectionProtocol, serve
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration

    class Server(QuicConnectionProtocol):
        http: H3Connection | None = None

        def quic_event_received(self, event: Any) -> None:
            self.http = self.http or H3Connection(self._quic)
            for got in self.http.handle_event(event):
                if isinstance(got, HeadersReceived):
                    self.http.send_headers(got.stream_id, [(b":status", b"200")])
                    self.http.send_data(got.stream_id, b"hello" * 500, end_stream=True)

    authority = trustme.CA()
    issued = authority.issue_cert("lab.test")
    certificate, key = recorder.folder / "server.pem", recorder.folder / "server.key"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))

    async def run() -> None:
        server_configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
        server_configuration.load_cert_chain(certificate, key)
        options = {key: value for key, value in server_options.items() if key != "cipher_suites"}
        server = await serve(
            "127.0.0.1", recorder.port, configuration=server_configuration, create_protocol=Server, **options
        )
        with recorder.keylog.open("a") as keylog:
            configuration = QuicConfiguration(alpn_protocols=["h3"], server_name="lab.test", secrets_log_file=keylog)
            configuration.load_verify_locations(cadata=authority.cert_pem.bytes())
            if "cipher_suites" in server_options:
                configuration.cipher_suites = server_options["cipher_suites"]
            await asyncio.wait_for(visit(configuration), DEADLINE_S)
        server.close()

    asyncio.run(run())


async def quic_get(recorder: Recorder, configuration: Any, **options: Any) -> None:
    from aioquic.asyncio import QuicConnectionProtocol, connect
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import DataReceived

    class Client(QuicConnectionProtocol):
        http: H3Connection | None = None

        def quic_event_received(self, event: Any) -> None:
            self.http = self.http or H3Connection(self._quic)
            for got in self.http.handle_event(event):
                if isinstance(got, DataReceived) and got.stream_ended:
                    done.set()

    done = asyncio.Event()
    update_keys = options.pop("update_keys", False)
    async with connect(
        "127.0.0.1", recorder.port, configuration=configuration, create_protocol=Client,
        **options,
    ) as client:  # fmt: skip
        assert isinstance(client, Client)
        client.http = client.http or H3Connection(client._quic)
        for _ in range(2 if update_keys else 1):
            stream = client._quic.get_next_available_stream_id()
            request = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"lab.test"), (b":path", b"/")]
            client.http.send_headers(stream, request, end_stream=True)
            client.transmit()
            await done.wait()
            done.clear()
            if update_keys:
                client.request_key_update()


def quic(recorder: Recorder) -> None:
    quic_peers(recorder, lambda configuration: quic_get(recorder, configuration))


def quic_retry(recorder: Recorder) -> None:
    quic_peers(recorder, lambda configuration: quic_get(recorder, configuration), retry=True)


def quic_key_update(recorder: Recorder) -> None:
    quic_peers(recorder, lambda configuration: quic_get(recorder, configuration, update_keys=True))


def quic_chacha20(recorder: Recorder) -> None:
    from aioquic.tls import CipherSuite

    suites = [CipherSuite.CHACHA20_POLY1305_SHA256]
    quic_peers(recorder, lambda configuration: quic_get(recorder, configuration), cipher_suites=suites)


def quic_aes128(recorder: Recorder) -> None:
    from aioquic.tls import CipherSuite

    suites = [CipherSuite.AES_128_GCM_SHA256]
    quic_peers(recorder, lambda configuration: quic_get(recorder, configuration), cipher_suites=suites)


def quic_early(recorder: Recorder, *, forget: bool = False) -> None:
    """A connection that brings a ticket, then one that begins with 0-RTT."""
    tickets: dict[bytes, Any] = {}
    received: list[Any] = []

    async def visit(configuration: Any) -> None:
        await quic_get(recorder, configuration, session_ticket_handler=received.append)
        configuration.session_ticket = received[0]
        if forget:
            tickets.clear()
        await quic_get(recorder, configuration, wait_connected=False)

    def keep(ticket: Any) -> None:
        tickets[ticket.ticket] = ticket

    def fetch(label: bytes) -> Any:
        return tickets.pop(label, None)

    quic_peers(recorder, visit, session_ticket_handler=keep, session_ticket_fetcher=fetch)


def quic_early_rejected(recorder: Recorder) -> None:
    """The server has forgotten the ticket."""
    quic_early(recorder, forget=True)
