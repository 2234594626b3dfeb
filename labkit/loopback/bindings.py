"""Which real port of 127.0.0.1 stands for which endpoint of the lab, and how the relay is asked."""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from labkit.errors import LabClosed, NameTaken
from labkit.loopback.frames import Endpoint
from labkit.loopback.ports import LOOPBACK_ADDRESS, free_pair, taken
from labkit.network import addresses, engine
from labkit.network.engine import SocketAddress

ANSWER_TIMEOUT_S = 20.0
Address = tuple[str, int]  # of the lab


class RelayClient:
    """Requests to the relay, each on a connection of its own with the token that only this notebook knows."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.control_port = 0  # where it listens: its first words say so
        self.closed = False

    def send(self, request: Mapping[str, Any]) -> Any:
        """The connection on which the answers come. Raises LabClosed where the relay has gone."""
        if self.closed:
            raise LabClosed("the lab is closed: run the cell that opens it again")
        # Not by ``socket.socket``, which inside ``with host:`` is the host's.
        connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect((LOOPBACK_ADDRESS, self.control_port))
            connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            connection.sendall(json.dumps({**request, "token": self._token}).encode() + b"\n")
        except ConnectionError:
            connection.close()
            raise LabClosed("the lab's relay has ended: open the lab again") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request, one answer. Raises OSError as the relay says, LabClosed where it has gone."""
        with contextlib.closing(self.send(request)) as connection:
            return self.answer(connection)

    @staticmethod
    def answer(connection: Any) -> dict[str, Any]:
        """The answer that a connection brings, waiting as long as its time-out allows."""
        data = b""
        while not data.endswith(b"\n"):
            try:
                part = connection.recv(65536)
            except ConnectionError:
                part = b""
            if not part:
                raise LabClosed("the lab's relay has ended: open the lab again")
            data += part
        reply: dict[str, Any] = json.loads(data)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        return reply


class Bindings:
    """The real ports of a lab's sockets. What the relay has to know of them it is told here, and nowhere else.

    Args:
        relay: how it is asked.
        stream_port: where it takes the connections that clients open.
        hosts: of the lab, by name.

    Attributes:
        mouths: the real ports of the relay to which datagrams for an endpoint are sent.
    """

    def __init__(self, relay: RelayClient, stream_port: int, hosts: Mapping[str, engine.Address]) -> None:
        self.relay, self.stream_port, self.hosts = relay, stream_port, hosts
        self.mouths: dict[Endpoint, int] = {}
        self._real_ports: dict[tuple[int, Endpoint], int] = {}  # by kind of socket and endpoint
        self._addresses: dict[tuple[int, int], Address] = {}  # and the way back: by kind and real port
        self._behind: dict[int, Address] = {}  # by mouth: who speaks through it
        self._reserved: dict[Endpoint, Any] = {}  # sockets that keep a port free until a program is started
        self._handed_out: dict[int, set[int]] = {}  # by host: real ports that its programs were given

    def real_port(self, kind: int, endpoint: Endpoint) -> int:
        """Where an endpoint is bound; 0, which nobody listens on, for one that is not."""
        return self._real_ports.get((kind, endpoint), 0)

    def bind(self, kind: int, endpoint: Endpoint, real_port: int, address: Address) -> None:
        """A socket is bound; `address` is what its neighbours on the same host see."""
        self._real_ports[kind, endpoint] = real_port
        self.know(kind, real_port, address)
        if kind == socket.SOCK_DGRAM:
            self._know_mouth(endpoint, self._told("bind", endpoint, real_port)["mouth"])

    def know(self, kind: int, real_port: int, address: Address) -> None:
        """Whose a real port is that others may see, but not connect to."""
        self._addresses[kind, real_port] = address

    def listen(self, endpoint: Endpoint, real_port: int) -> None:
        """It listens from now on."""
        self._told("listen", endpoint, real_port)

    def bound(self, endpoint: Endpoint) -> SocketAddress:
        """A free port on which a program is to listen as `endpoint`. The same one as long as it stands for that.

        Raises:
            NameTaken: a socket of this process listens at the endpoint.
        """
        real_port = self.real_port(socket.SOCK_STREAM, endpoint)
        if real_port not in self._handed_out.get(endpoint.number, ()):
            if real_port and taken(socket.SOCK_STREAM, real_port, reuse=1):
                name = next(host.name for host in self.hosts.values() if host.number == endpoint.number)
                raise NameTaken(f"port {endpoint.port} on {name} is taken: close what listens there, or use another")
            self._reserved[endpoint], datagrams = free_pair()
            real_port = int(self._reserved[endpoint].getsockname()[1])
            datagrams.close()
            address = addresses.ipv4(endpoint.number), endpoint.port
            self.bind(socket.SOCK_STREAM, endpoint, real_port, address)
            self.bind(socket.SOCK_DGRAM, endpoint, real_port, address)
            self._told("program", endpoint, real_port)
            self._handed_out.setdefault(endpoint.number, set()).add(real_port)
        return SocketAddress(LOOPBACK_ADDRESS, real_port)

    def door(self, number: int, server: Endpoint) -> SocketAddress:
        """Where programs of a host find an endpoint: of another host through the relay, their own at its real port."""
        if number == server.number:
            real_port = self.real_port(socket.SOCK_STREAM, server)
            port = real_port or self.bound(server).port
        else:
            request = {"op": "door", "from": number, "number": server.number, "port": server.port}
            port = int(self.relay.ask(request)["port"])
        self._handed_out.setdefault(number, set()).add(port)
        return SocketAddress(LOOPBACK_ADDRESS, port)

    def for_a_program(self, number: int, words: Iterable[str]) -> bool:
        """Whether a program's arguments or variables hold an address that its host was given. It may have it now."""
        given = self._handed_out.get(number, set())
        named = given & {int(digits) for word in words for digits in re.findall(r"\b\d{1,5}\b", word)}
        for endpoint, reserved in list(self._reserved.items()):
            if self.real_port(socket.SOCK_STREAM, endpoint) in named:
                reserved.close()
                del self._reserved[endpoint]
        return bool(named)

    def close(self) -> None:
        """Let go of the ports that are kept free."""
        for reserved in self._reserved.values():
            reserved.close()
        self._reserved.clear()

    def open(self, client: Endpoint, server: Endpoint, real_port: int) -> Any:
        """Let the relay open a connection, whose client has connected to `stream_port`. See RelayClient.answer."""
        request = {"op": "open", "number": client.number, "port": client.port, "real": real_port}
        return self.relay.send({**request, "to": server.number, "to_port": server.port})

    def peer(self, kind: int, real: Address) -> Address:
        """The client behind a connection that a listener has accepted: through the relay, or a neighbour's."""
        reply = self.relay.ask({"op": "peer", "real": real[1]})
        if reply:
            return addresses.ipv4(reply["number"]), reply["port"]
        return self._addresses.get((kind, real[1]), real)

    def source(self, kind: int, real: Address) -> Address:
        """Who sent a datagram."""
        return self._behind.get(real[1]) or self._addresses.get((kind, real[1])) or real

    def mouth(self, endpoint: Endpoint) -> int:
        """The real port to which datagrams for an endpoint are sent."""
        if endpoint not in self.mouths:
            self._know_mouth(endpoint, self._told("mouth", endpoint, 0)["mouth"])
        return self.mouths[endpoint]

    def _know_mouth(self, endpoint: Endpoint, port: int) -> None:
        self.mouths[endpoint] = port
        self._behind[port] = addresses.ipv4(endpoint.number), endpoint.port

    def unbind(self, kind: int, endpoint: Endpoint, real_port: int) -> None:
        """A socket that was bound is closed, and its endpoint free, if no other has taken its place."""
        if self.real_port(kind, endpoint) == real_port:
            del self._real_ports[kind, endpoint]
            if kind == socket.SOCK_DGRAM:
                self.mouths.pop(endpoint, None)
            with contextlib.suppress(OSError, LabClosed):  # the relay has gone before
                self._told("close", endpoint, real_port)

    def _told(self, operation: str, endpoint: Endpoint, real_port: int) -> dict[str, Any]:
        return self.relay.ask({"op": operation, "number": endpoint.number, "port": endpoint.port, "real": real_port})
