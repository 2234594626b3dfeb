"""aioquic's client and server without sockets: what they say to each other as a capture, every byte of it known."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion

from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog

CLIENT, SERVER = ("192.0.2.1", 40000), ("192.0.2.2", 443)
V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2


def transit(number: int, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> Transit:
    """A datagram in its frame."""
    udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(data), 0) + data
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), number & 0xFFFF, 0, 64, 17, 0) + addresses
    hosts = ["server" if end[0] == SERVER[0] else "client" for end in (source, destination)]
    return Transit(number * 1000, number * 1000 + 500, *hosts, bytes(12) + b"\x08\x00" + ip + udp)


class Peers:
    """A client and a server, and the datagrams between them.

    Args:
        folder: for the server's certificate.
        versions: that the server takes, the best first.
        client_options: of the client's ``QuicConfiguration``.
    """

    def __init__(self, folder: Path, versions: tuple[int, ...] = (V1, V2), **client_options: Any) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("lab.test")
        certificate, key = folder / "server.pem", folder / "server.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        self._log = io.StringIO()
        client = QuicConfiguration(
            alpn_protocols=["h3"], server_name="lab.test", secrets_log_file=self._log, **client_options
        )
        client.load_verify_locations(cadata=authority.cert_pem.bytes())
        self._server_configuration = QuicConfiguration(
            is_client=False, alpn_protocols=["h3"], supported_versions=list(versions)
        )
        self._server_configuration.load_cert_chain(certificate, key)
        self.client = QuicConnection(configuration=client)
        self.client_at = CLIENT
        self.server: QuicConnection | None = None
        self.http: dict[QuicConnection, H3Connection] = {}
        self.transits: list[Transit] = []
        self._now = 0.0

    @property
    def secrets(self) -> KeyLog:
        return KeyLog.parse(self.secrets_text)

    @property
    def secrets_text(self) -> str:
        return self._log.getvalue()

    def carry(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        """Put a datagram into the capture."""
        self.transits.append(transit(len(self.transits) + 1, data, source, destination))

    def talk(self, change: Callable[[bytes, bool], bytes] = lambda data, _: data) -> None:
        """Let them exchange datagrams until nobody has more to say.

        Args:
            change: what the wire makes of a datagram, and whether it comes from the client.
        """
        if not self.transits:
            self.client.connect(SERVER, now=self._now)
        silent = 0
        while silent < 2:
            self._now += 0.001
            silent += 1
            for data, _ in self.client.datagrams_to_send(now=self._now):
                silent = 0
                data = change(data, True)
                self.carry(data, self.client_at, SERVER)
                if self.server is None:
                    original = data[6 : 6 + data[5]]
                    self.server = QuicConnection(
                        configuration=self._server_configuration, original_destination_connection_id=original
                    )
                self.server.receive_datagram(data, self.client_at, now=self._now)
                self._answer(self.server)
            for data, destination in self.server.datagrams_to_send(now=self._now) if self.server else ():
                silent = 0
                data = change(data, False)
                self.carry(data, SERVER, destination)
                self.client.receive_datagram(data, SERVER, now=self._now)
                self._answer(self.client)

    def get(self, path: str, **fields: str) -> None:
        """Send a request."""
        http = self._http(self.client)
        stream = self.client.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "https", ":authority": "lab.test", ":path": path, **fields}
        http.send_headers(stream, [(name.encode(), value.encode()) for name, value in headers.items()], end_stream=True)

    def _answer(self, connection: QuicConnection) -> None:
        while event := connection.next_event():
            http = self._http(connection)
            for got in http.handle_event(event):
                if isinstance(got, HeadersReceived) and connection is self.server:
                    http.send_headers(got.stream_id, [(b":status", b"200"), (b"server", b"in memory")])
                    http.send_data(got.stream_id, b"hello", end_stream=True)

    def _http(self, connection: QuicConnection) -> H3Connection:
        if connection not in self.http:
            self.http[connection] = H3Connection(connection)
        return self.http[connection]
