"""The clients of the chapter's servers: they connect, ask, wait for the responses, and look where a request lies.

Three ways to connect. ``call`` lets a SYN leave and waits for nothing; ``is_connected`` tells what came of it.
``connect`` has so many clients connect at the same moment, and waits for all. ``Callers`` connect one after the other,
have numbers, and note when each of them asked and was answered.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from labkit.errors import MeasurementFailed, NotReady
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.queues.diag import CONNECTIONS, NETLINK_SOCK_DIAG, ask, request
from labkit.waiting import wait_until

PORT = 8080  # of the server, on the host "server"
WAIT_S = 10.0


def listen(host: Host, port: int = PORT, backlog: int | None = None) -> socket.socket:
    """A listening socket on a host. Its accept waits ten seconds at most, and raises TimeoutError."""
    with host:
        listener = socket.create_server((host.ip, port), backlog=backlog)
    listener.settimeout(WAIT_S)
    return listener


def new_clients(lab: Lab, count: int, opened: contextlib.ExitStack) -> list[socket.socket]:
    """So many sockets on the lab's client, not connected, that do not block.

    Args:
        lab: the lab.
        count: how many.
        opened: closes them when it ends.
    """
    with lab.client:
        clients = [opened.enter_context(socket.socket()) for _ in range(count)]
    for client in clients:
        client.setblocking(False)
    return clients


def call(lab: Lab, client: socket.socket) -> None:
    """Begin to connect: the client's kernel sends a SYN, and nobody waits for the answer."""
    client.connect_ex((lab.server.ip, PORT))


def call_all(lab: Lab, clients: Sequence[socket.socket]) -> None:
    """Let clients begin to connect at the same moment: all SYNs are on their way before the first one arrives.

    Raises:
        MeasurementFailed: this process was held up in between.
    """
    began = time.monotonic()
    for client in clients:
        call(lab, client)
    if time.monotonic() - began > lab.rtt_ms / 2000:
        raise MeasurementFailed(f"{len(clients)} clients did not call at the same moment: is the machine busy?")


def is_connected(client: socket.socket) -> bool:
    """Whether the client's own kernel takes it for connected: the server's may know nothing of it."""
    try:
        client.getpeername()
    except OSError:
        return False
    return True


def connect(lab: Lab, count: int, opened: contextlib.ExitStack) -> list[socket.socket]:
    """So many clients connect, all at the same time. Their reads wait ten seconds at most.

    Args:
        lab, count, opened: as in ``new_clients``.

    Raises:
        MeasurementFailed: one of them was not connected in time.
    """
    clients = new_clients(lab, count, opened)
    for client in clients:
        call(lab, client)
    wait_until(lambda: all(map(is_connected, clients)), what=f"{count} connections")
    for client in clients:
        client.settimeout(WAIT_S)
    return clients


def received(lab: Lab, client: socket.socket) -> str:
    """What lies at a client when all that was sent has arrived: the first line of a response, "FIN", or "nothing"."""
    lab.wire.settle()
    client.setblocking(False)
    try:
        data = client.recv(4096)
    except BlockingIOError:
        return "nothing"
    return data.split(b"\r\n")[0].decode() or "FIN"


@contextlib.contextmanager
def both_ends(
    lab: Lab, *, rcvbuf: int | None = None, sndbuf: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of the lab's client to its server, as the sockets of the two ends.

    Args:
        lab: the lab.
        rcvbuf: SO_RCVBUF of the server's end; the kernel's choice by default.
        sndbuf: SO_SNDBUF of the client's end; the kernel's choice by default.
    """
    with lab.server, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if rcvbuf:  # the accepted socket inherits it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        listener.bind((lab.server.ip, PORT))
        listener.listen()
        listener.settimeout(WAIT_S)
        with lab.client, socket.socket() as client:
            if sndbuf:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            client.settimeout(WAIT_S)
            client.connect((lab.server.ip, PORT))
            client.settimeout(None)
            server, _ = listener.accept()
            with server:
                yield client, server


class Callers:
    """Clients on a lab's client, numbered from 1, that connect one after the other and keep their connections.

    Args:
        lab: the lab; the server is on its host "server".
        port: of the server.
        count: how many there are.
    """

    def __init__(self, lab: Lab, port: int, count: int) -> None:
        self._lab, self._port = lab, port
        self._sockets: dict[int, socket.socket] = {}
        self._start = time.monotonic()
        self.rows: dict[int, dict[str, Any]] = {}
        try:
            for _ in range(count):
                self.call()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._sockets.values():
            each.close()

    def call(self) -> int:
        """One client more connects. Returns its number."""
        number = len(self._sockets) + 1
        with self._lab.client:
            self._sockets[number] = socket.create_connection(("server.lab", self._port), timeout=WAIT_S)
        return number

    def ask(self, request: bytes, numbers: Iterable[int] | None = None) -> None:
        """Some clients, or all, send a request, in the order of their numbers."""
        if not any(row["answered_s"] is None for row in self.rows.values()):
            self._start, self.rows = time.monotonic(), {}
        for number in self._sockets if numbers is None else numbers:
            kind = request.split()[1].decode()
            row = {"number": number, "kind": kind, "sent_s": self.now(), "answered_s": None, "by": "", "unread": 0}
            self.rows[number] = row
            self._sockets[number].sendall(request)

    def wait(self, numbers: Iterable[int] | None = None) -> list[str]:
        """Wait for the responses of some clients, or of all that have asked. Returns who sent them, by number."""
        wanted = sorted(self.rows if numbers is None else numbers)
        missing = [number for number in wanted if self.rows[number]["answered_s"] is None]
        deadline = time.monotonic() + WAIT_S
        with selectors.DefaultSelector() as selector:
            for number in missing:
                selector.register(self._sockets[number], selectors.EVENT_READ, number)
            while selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    late = [key.data for key in selector.get_map().values()]
                    raise NotReady(f"no response for client {', '.join(map(str, sorted(late)))} within {WAIT_S:g} s")
                for key, _ in events:
                    response = self._sockets[key.data].recv(4096)
                    selector.unregister(key.fileobj)
                    if not response:
                        raise NotReady(f"the connection of client {key.data} was closed without a response")
                    row = self.rows[key.data]
                    row["answered_s"], row["by"] = self.now(), response.partition(b"\r\n\r\n")[2].decode()
        return [self.rows[number]["by"] for number in wanted]

    def look(self, expected: Sequence[int] = ()) -> dict[int, int]:
        """Ask the server's kernel how many bytes of each client nobody has read.

        Args:
            expected: clients whose bytes are expected to lie there, and no others'. Waits until it is so.

        Returns:
            bytes by the client's number, without those that have none.

        Raises:
            MeasurementFailed: it did not come to that.
        """
        self._lab.wire.settle()  # what was sent has arrived

        def as_expected() -> bool:
            self._unread = self._ask_the_kernel()
            return set(self._unread) == set(expected)

        wait_until(as_expected, what=f"unread bytes of client {', '.join(map(str, expected)) or '(none)'}")
        for number, row in self.rows.items():
            row["unread"] = self._unread.get(number, 0)
        return self._unread

    def _ask_the_kernel(self) -> dict[int, int]:
        numbers = {"{}:{}".format(*each.getsockname()): number for number, each in self._sockets.items()}
        with self._lab.server.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
            entries = list(ask(netlink, request(states=CONNECTIONS, port=self._port)))
        found = {numbers[entry.peer]: entry.receive_queue for entry in entries if entry.peer in numbers}
        return {number: unread for number, unread in sorted(found.items()) if unread}

    def cut(self, count: int) -> list[int]:
        """Wait until so many connections have ended, and let those go. Returns their numbers."""
        ended: list[int] = []

        def enough() -> bool:
            for number, each in self._sockets.items():
                if number not in ended and self._has_ended(each):
                    ended.append(number)
            return len(ended) >= count

        wait_until(enough, what=f"the end of {count} connections")
        return sorted(ended)

    @staticmethod
    def _has_ended(each: socket.socket) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(each, selectors.EVENT_READ)
            if not selector.select(0):
                return False
        try:
            return each.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def now(self) -> float:
        """Seconds since the first request."""
        return time.monotonic() - self._start
