"""What the judges of the section "Publish–subscribe" put around a learner's code: JSON lines over TCP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from book.learn.judging import Enough, connected
from labkit.network.host import Host
from labkit.servers.hosts import HostLike
from labkit.servers.threaded import ThreadedServer

PREFETCH = 3
IDLE_S = 0.03  # a broker that has waited for so long confirms what it has


def _lines(connection: socket.socket) -> Any:
    return connection.makefile("r", encoding="utf-8")


def _send(connection: socket.socket, said: dict[str, Any]) -> None:
    connection.sendall(json.dumps(said).encode() + b"\n")


class QueueServer(ThreadedServer):
    """A broker with one queue, which is a learner's: it gives each subscriber up to PREFETCH messages to hold.

    It answers each line of a client with one line, behind whatever it delivers because of it.

    Args:
        host: where it listens.
        queue: with put, take, ack and gone; called by one thread at a time.

    Attributes:
        failed: what the queue has raised, the first of it.
        left: subscribers whose connection has ended, and who are gone for the queue, too.
    """

    def __init__(self, host: HostLike, queue: Any) -> None:
        super().__init__(host, 0, scheme="tcp", name=None, backlog=16)
        self.failed: BaseException | None = None
        self.left: list[str] = []
        self._queue, self._one = queue, threading.Lock()
        self._subscribers: dict[str, socket.socket] = {}
        self._held: dict[str, int] = {}
        self._start()

    def _converse(self, connection: socket.socket, peer: str) -> None:
        name = ""
        try:
            with _lines(connection) as lines:
                for line in lines:
                    said = json.loads(line)
                    name = said.get("name", name)
                    with self._one:
                        answer = self._do(said, name, connection)
                        _send(connection, answer)
        except OSError:
            pass  # the subscriber was killed
        except BaseException as exc:
            self.failed = self.failed or exc
        finally:
            with self._one:
                self._leave(name)

    def _do(self, said: dict[str, Any], name: str, connection: socket.socket) -> dict[str, Any]:
        counted = None
        if said["do"] == "publish":
            self._queue.put(said["body"])
        elif said["do"] == "subscribe":
            self._subscribers[name], self._held[name] = connection, 0
        elif said["do"] == "ack":
            counted = self._queue.ack(name, said["tag"])
            self._held[name] -= bool(counted)
        self._deliver()
        return {"done": said["do"], "counted": counted}

    def _deliver(self) -> None:
        for name, connection in self._subscribers.items():
            while self._held[name] < PREFETCH:
                taken = self._queue.take(name)
                if taken is None:
                    break
                tag, body, redelivered = taken
                self._held[name] += 1
                _send(connection, {"tag": tag, "body": body, "redelivered": redelivered})

    def _leave(self, name: str) -> None:
        if self._subscribers.pop(name, None) is None:
            return
        try:
            self._queue.gone(name)
            self._deliver()
        except BaseException as exc:
            self.failed = self.failed or exc
        self.left.append(name)


class Client:
    """A client of a QueueServer.

    Attributes:
        deliveries: what it has been given, as (tag, body, redelivered).
    """

    def __init__(self, server: QueueServer, name: str) -> None:
        self._server = server
        self.name = name
        self._socket = socket.create_connection(("server.lab", server.port), timeout=10)
        self._reader = _lines(self._socket)
        self.deliveries: list[tuple[Any, str, Any]] = []

    def ask(self, do: str, **more: Any) -> Any:
        """Say something, and read up to its answer: whether an ack counted."""
        try:
            _send(self._socket, {"do": do, "name": self.name, **more})
            while line := self._reader.readline():
                said = json.loads(line)
                if "done" in said:
                    return said["counted"]
                self.deliveries.append((said["tag"], said["body"], said["redelivered"]))
        except OSError:
            if self._server.failed is None:
                raise
        raise self._server.failed or ConnectionError("the broker has closed the connection")

    def die(self) -> None:
        """As a process that is killed: its kernel closes the connection."""
        self._reader.close()
        self._socket.close()


class ConfirmServer(ThreadedServer):
    """A broker that confirms in batches, refuses some messages, and loses connections.

    Args:
        host: where it listens.
        window: how many may be unconfirmed.
        cuts: after how many messages, counted over all connections, one is cut, with what came last unconfirmed.
        refusals: which messages it refuses when it first sees them, by their ids.

    Attributes:
        stored: the bodies, by id. confirmed: the ids of which the publisher was told.
        sent: how often each id came. connections: how many there were.
        most: the largest number of messages that waited for their confirm at once.
        wrong: what a publisher must not do, the first of it.
    """

    def __init__(self, host: HostLike, window: int, cuts: Sequence[int], refusals: set[int]) -> None:
        super().__init__(host, 0, scheme="tcp", name=None, backlog=16)
        self.stored: dict[int, str] = {}
        self.confirmed: set[int] = set()
        self.sent: dict[int, int] = {}
        self.connections, self.most, self.wrong = 0, 0, ""
        self._window, self._cuts, self._refusals = window, set(cuts), set(refusals)
        self._start()

    def _converse(self, connection: socket.socket, peer: str) -> None:
        self.connections += 1
        waiting: list[tuple[int, int]] = []  # (its number on this connection, its id)
        count, buffer = 0, b""
        connection.settimeout(IDLE_S)
        while not self.wrong:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                self._confirm(connection, waiting)
                continue
            if not more:
                return
            *whole, buffer = (buffer + more).split(b"\n")
            for line in whole:
                count += 1
                said = json.loads(line)
                self._take(said, count, waiting, connection)
                if sum(self.sent.values()) in self._cuts:
                    return
            if len(waiting) >= self._window - 2:
                self._confirm(connection, waiting)

    def _take(self, said: Any, count: int, waiting: list[tuple[int, int]], connection: socket.socket) -> None:
        number, body = said["id"], said["body"]
        self.sent[number] = self.sent.get(number, 0) + 1
        if number in self._refusals:
            self._refusals.discard(number)
            _send(connection, {"refused": count})
            return
        if self.stored.setdefault(number, body) != body:
            self.wrong = self.wrong or f"id {number} came with two bodies: who hears it twice knows it by its id"
        waiting.append((count, number))
        self.most = max(self.most, len(waiting))
        if len(waiting) > self._window:
            self.wrong = self.wrong or f"{len(waiting)} messages were unconfirmed at once, and {self._window} may be"

    def _confirm(self, connection: socket.socket, waiting: list[tuple[int, int]]) -> None:
        """All of them in one line; every other time the latest by itself before: a broker confirms in any order."""
        if not waiting:
            return
        if len(waiting) > 2 and len(self.confirmed) % 2:
            (count, number), *rest = waiting[::-1]
            _send(connection, {"confirmed": count, "multiple": False})
            self.confirmed.add(number)
            waiting[:] = rest[::-1]
        _send(connection, {"confirmed": waiting[-1][0], "multiple": True})
        self.confirmed |= {number for _, number in waiting}
        waiting.clear()


def connector(host: Host, server: ConfirmServer, most: int) -> Callable[[], socket.socket]:
    """A publisher's ``connect``. It raises Enough where something is wrong already, and after so many connections."""

    def connect() -> socket.socket:
        if server.wrong or server.connections >= most:
            raise Enough
        return connected(host, server.port, timeout_s=10)

    return connect
