"""Payments that meet trouble: the database whose charges are counted, the runs of a client that tries again, the kills.

The handlers, the client's try and its loop are the notebook's. Here stands what makes trouble for them and counts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.servers.http1 import serve_http1
from labkit.servers.messages import Request, Response
from labkit.waiting import fewest, wait_until

if TYPE_CHECKING:
    from labkit.lab import Lab

PORT = 8080
Bank = Callable[[object], object]
Handler = Callable[[Request, Bank], Response]
Attempt = Callable[..., Any]  # (order, key, timeout_s): the response, or the exception instead
Insist = Callable[..., Any]  # (attempt, key, **options): the last attempt's result
KeyHandler = Callable[[sqlite3.Connection, "str | None", bytes, Callable[[], None]], tuple[int, bytes]]

# What goes wrong with a try, while it lasts.
TROUBLES: dict[str, Callable[[Lab], AbstractContextManager[object]]] = {
    "nothing": lambda lab: contextlib.nullcontext(),
    "response lost": lambda lab: lab.wire.drop(source="server", payload=True),
    "request lost": lambda lab: lab.wire.drop(source="client", payload=True),
    "request late": lambda lab: lab.wire.delay(400, source="client", payload=True),
}


class Ledger:
    """A database in a file, with a table `charges`: a row is money that has left the card.

    Args:
        path: of the file.
        tables: the statements that create them.
    """

    def __init__(self, path: Path, tables: str) -> None:
        self.path, self.tables = path, tables

    def new(self) -> None:
        """Begin with empty tables."""
        for file in self.path.parent.glob(f"{self.path.name}*"):  # a killed process leaves its journal
            file.unlink()
        with self.open() as database:
            database.executescript(self.tables)

    def open(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection in autocommit mode: BEGIN is the handler's. It waits 10 s for a lock."""
        return contextlib.closing(sqlite3.connect(self.path, timeout=10, isolation_level=None))

    @property
    def charges(self) -> int:
        """How many rows there are."""
        with self.open() as database:
            return int(database.execute("SELECT count(*) FROM charges").fetchone()[0])


class Run:
    """What became of one payment.

    Attributes:
        tries: of the client: when each began and ended, and its response or exception.
        served: of the server's program: when it had read a request, and when it had the response.
        response: of the last try.
        charges: in the end.
    """

    def __init__(self) -> None:
        self.tries: list[tuple[float, float, Any]] = []
        self.served: list[tuple[float, float]] = []
        self.response: Any = None
        self.charges = 0


class Payments:
    """Runs of a client against a handler on the lab's server, each with an empty database.

    Args:
        lab: whose wire makes the trouble.
        ledger: where the handlers write.
        attempt: one try of the client, `attempt(order, key, timeout_s)`.
        insist: its loop, `insist(attempt, key, **options)`.
        order: what is paid.
    """

    def __init__(self, lab: Lab, ledger: Ledger, attempt: Attempt, insist: Insist, order: Mapping[str, object]) -> None:
        self.lab, self.ledger, self.attempt, self.insist, self.order = lab, ledger, attempt, insist, order

    def run(
        self, handler: Handler, trouble: str, key: bool = True, times: int = 1, bank: Bank | None = None,
        lasting: bool = False, **options: Any,
    ) -> Run:  # fmt: skip
        """One payment, in as many tries as the client makes of it.

        Args:
            handler: of the server.
            trouble: one of TROUBLES.
            key: whether the client has one.
            times: how many tries it hits.
            bank: called with the order before a charge is written.
            lasting: whether the trouble lasts until the server has ended.
            options: of the client's loop.
        """
        from labkit.servers import HttpServer

        run = Run()
        self.ledger.new()

        def handle(request: Request) -> Response:
            start = time.monotonic()
            try:
                return handler(request, bank or (lambda order: None))
            finally:
                run.served.append((start, time.monotonic()))

        def attempt(*arguments: Any) -> Any:
            with TROUBLES[trouble if len(run.tries) < times else "nothing"](self.lab):
                start = time.monotonic()
                response = self.attempt(*arguments)
                run.tries.append((start, time.monotonic(), response))
            return response

        with TROUBLES[trouble if lasting else "nothing"](self.lab), HttpServer(self.lab.server, handle, port=PORT):
            run.response = self.insist(attempt, str(uuid.uuid4()) if key else None, **options)
            due = len(run.tries) - (times if trouble == "request lost" else 0)
            # A try that was given up may still be under way.
            wait_until(lambda: len(run.served) >= due, what=f"the server's answer to {due} requests")
        run.charges = self.ledger.charges
        return run

    def pay(self, handler: Handler, trouble: str, key: bool = True, times: int = 1, **options: Any) -> Run:
        """A run with as many tries as the trouble makes: on a busy machine there may be more."""
        once = partial(self.run, handler, trouble, key, times, **options)
        return fewest(once, lambda run: len(run.tries), enough=times + 1)

    def cut(self, charge: Callable[[sqlite3.Connection, bytes], object] | None) -> tuple[Any, int]:
        """One try at a server that closes the connection instead of answering, as the kernel does for a killed program.

        Args:
            charge: what it does with the request's body before; None = it does not even read the request.

        Returns:
            what the client got, and the charges.
        """
        self.ledger.new()
        with self.lab.server, socket.create_server((self.lab.server.ip, PORT)) as listener:
            server = threading.Thread(target=self._cut, args=(listener, charge))
            server.start()
            got = self.attempt(self.order, None, 5)
            server.join()
        return got, self.ledger.charges

    def _cut(self, listener: socket.socket, charge: Callable[[sqlite3.Connection, bytes], object] | None) -> None:
        connection, _ = listener.accept()
        with connection:
            request = b"?"
            while request and not request.endswith(b"}"):  # until all of it is in the receive queue
                request = connection.recv(65536, socket.MSG_PEEK)
            if charge:
                with self.ledger.open() as database:
                    charge(database, request.partition(b"\r\n\r\n")[2])
            abort = struct.pack("ii", 1, 0)  # close with a RST
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)

    def two_at_once(self, handler: Handler) -> tuple[int, list[int]]:
        """Two copies: both are in before either is looked at, and the bank waits up to a second for the other order.

        Returns:
            the charges, and the statuses of the responses.
        """
        from labkit.servers import HttpServer

        door, orders = threading.Barrier(2), threading.Barrier(2)
        self.ledger.new()

        def bank(order: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other copy does not come here
                orders.wait(1)

        def handle(request: Request) -> Response:
            door.wait(10)
            return handler(request, bank)

        got: list[Any] = []
        with HttpServer(self.lab.server, handle, port=PORT):
            clients = [
                threading.Thread(target=lambda: got.append(self.attempt(self.order, "two at once", 20)))
                for _ in range(2)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        return self.ledger.charges, sorted(response.status_code for response in got)


def twice(
    lab: Lab, shop: Callable[[Request, dict[str, bytes]], Response], method: str, target: str
) -> tuple[list[dict[str, bytes]], list[int]]:
    """Send a request twice to a shop with one order.

    Args:
        lab: where.
        shop: the handler; it gets the orders, too.
        method: of the request.
        target: of the request.

    Returns:
        the orders after each of the two, and the statuses of the responses.
    """
    import httpx

    from labkit.servers import HttpServer

    orders = {"/orders/1": b"tea"}
    states, statuses = [], []
    with HttpServer(lab.server, lambda request: shop(request, orders), port=PORT), lab.client:
        with httpx.Client(timeout=20, trust_env=False) as client:
            for _ in range(2):
                url = f"http://server.lab:{PORT}{target}"
                statuses.append(client.request(method, url, content=b"coffee").status_code)
                states.append(dict(orders))
    return states, statuses


def supervise(address: tuple[str, int], ledger: Ledger, fuse: Path, handlers: Iterable[KeyHandler]) -> None:
    """A server whose workers are killed: it keeps the listener, and starts a new worker for each that dies.

    A worker answers one connection by the handler that the request's target names, and gives it a function that kills
    the worker, once for each time that the file `fuse` is made.

    Args:
        address: to listen on.
        ledger: where the handlers write.
        fuse: the file.
        handlers: called with the database, the key, the body and the function.
    """
    named = {handler.__name__: handler for handler in handlers}
    listener = socket.create_server(address)
    while True:
        worker = os.fork()
        while not worker:
            connection, _ = listener.accept()
            with connection:
                serve_http1(connection, partial(_respond, ledger, fuse, named), dict)
        os.waitpid(worker, 0)


def _respond(ledger: Ledger, fuse: Path, handlers: Mapping[str, KeyHandler], request: Request) -> Response:
    def crash() -> None:
        if fuse.exists():
            fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    with ledger.open() as database:
        key, handler = request.header("idempotency-key"), handlers[request.target[1:]]
        status, body = handler(database, key, request.body, crash)
    return Response(status, body=body)
