"""aioquic's client: ``http3_client.py HOST PORT PATH...`` fetches the paths one after the other, on one connection."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.http = H3Connection(self._quic)
        self.ended: deque[asyncio.Event] = deque()

    def quic_event_received(self, event: Any) -> None:
        for got in self.http.handle_event(event):
            if isinstance(got, HeadersReceived | DataReceived) and got.stream_ended:
                self.ended.popleft().set()

    async def get(self, host: str, path: str) -> None:
        ended = asyncio.Event()
        self.ended.append(ended)
        fields = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path, "x-asked-by": "aioquic"}
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, [(k.encode(), v.encode()) for k, v in fields.items()], end_stream=True)
        self.transmit()
        await ended.wait()


async def main(host: str, port: int, paths: list[str]) -> None:
    with Path(os.environ["SSLKEYLOGFILE"]).open("a") as log:
        configuration = QuicConfiguration(alpn_protocols=["h3"], secrets_log_file=log)
        configuration.load_verify_locations(cafile=os.environ["SSL_CERT_FILE"])
        async with connect(host, port, configuration=configuration, create_protocol=Client) as client:
            assert isinstance(client, Client)
            for path in paths:
                await client.get(host, path)


asyncio.run(asyncio.wait_for(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]), 20))
