"""What the section "Idempotency" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import Deadline, describe
from book.learn.judging import killed_by_itself, serving
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.servers import HttpServer, Request, Response
from labkit.waiting import wait_until

TEXT = Text(__file__)

RTT_MS = 5
PORT = 8080
WAIT_S = 5.0
TRANSFER_S = 12.0  # for what has to come over the wire: longer than any handler may take
MEET_S = 1.0  # how long the bank waits for the other copy of a payment

KEY, OTHER_KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324", "1f0d3b62-1c6e-4f0e-9a52-5f6f7f0a8f11"
ORDER, OTHER_ORDER = b'{"card": "4242", "cents": 1999}', b'{"card": "4242", "cents": 9900}'

Handle = Callable[[Request, sqlite3.Connection, Callable[..., bytes]], Any]
Charge = Callable[[sqlite3.Connection, bytes], bytes]


class _Shop:
    """A database with the judge's two tables, and what the learner's handler did with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "payments.db"
        self.raised: list[BaseException] = []
        self.answered: list[Response] = []
        self._inside: list[Deadline] = []  # of the handlers that have not returned
        with self.open() as database:
            database.executescript(
                "CREATE TABLE charges (id INTEGER PRIMARY KEY, body BLOB);"
                "CREATE TABLE answers (key TEXT PRIMARY KEY, fingerprint TEXT, response BLOB);"
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)) as database:
            yield database

    @property
    def charges(self) -> int:
        with self.open() as database:
            return int(database.execute("SELECT count(*) FROM charges").fetchone()[0])

    def call(self, handle: Handle, request: Request, charge: Charge) -> Response:
        """The learner's handler; what it raises, or returns instead of a response, is kept."""
        deadline = Deadline(2 * WAIT_S, os.getpid())  # it may wait for a lock once
        self._inside.append(deadline)
        try:
            with self.open() as database:
                response = handle(request, database, charge)
            if not isinstance(response, Response):
                raise Wrong(f"your handler returned {response!r:.60}: expected a labkit.servers.Response")
        except BaseException as exc:
            self.raised.append(exc)
            raise
        finally:
            self._inside.remove(deadline)
        self.answered.append(response)
        return response

    def check_raised(self) -> None:
        if self.raised:
            exc = self.raised[0]
            raise exc if isinstance(exc, Wrong) else Wrong(f"your handler raised {describe(exc)}") from exc

    def check_returns(self) -> None:
        """Raises Wrong where a handler does not return, MeasurementFailed where that may be the machine's fault."""
        for deadline in list(self._inside):
            if (late := deadline.overdue()) is not None:
                if late.outcome != "wrong":
                    raise MeasurementFailed(late.reason)
                raise Wrong(f"your handler did not return within {deadline.seconds:g} s")

    def wait_until_answered(self, count: int) -> None:
        """Until the handler has returned so often, or raised."""

        def answered() -> bool:
            self.check_returns()
            return len(self.answered) >= count or bool(self.raised)

        wait_until(answered, TRANSFER_S)


def _charge(database: sqlite3.Connection, body: bytes) -> bytes:
    """Take the money: a row, through the connection of the handler."""
    row = database.execute("INSERT INTO charges (body) VALUES (?)", (body,)).lastrowid
    return f"charge {row}\n".encode()


def _charges(count: int) -> str:
    return f"{count} charge{'' if count == 1 else 's'}"


def _headers(key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json", **({} if key is None else {"Idempotency-Key": f'"{key}"'})}


def _post(lab: Lab, shop: _Shop, key: str | None, body: bytes) -> tuple[int, bytes]:
    """One request over a connection of its own. Raises Wrong where the handler does not let it have a response."""
    with lab.client:
        client = http.client.HTTPConnection("server.lab", PORT, timeout=TRANSFER_S)
        with contextlib.closing(client):
            try:
                client.request("POST", "/charges", body, _headers(key))
                response = client.getresponse()
                return response.status, response.read()
            except TimeoutError as exc:
                shop.check_raised()
                shop.check_returns()
                raise MeasurementFailed(f"the client got no response within {TRANSFER_S:g} s") from exc
            except (OSError, http.client.HTTPException) as exc:
                shop.check_raised()
                raise Wrong(f"the client got no response: {describe(exc)}") from exc


def _as_bytes(key: str | None, body: bytes) -> bytes:
    head = {"Host": "server.lab", **_headers(key), "Content-Length": str(len(body))}
    return b"POST /charges HTTP/1.1\r\n%s\r\n\r\n%s" % (
        "\r\n".join(f"{n}: {v}" for n, v in head.items()).encode(),
        body,
    )


# Exercise 1


def _judge_handle(handle: Handle) -> str:
    import cloudpickle

    parcel = cloudpickle.dumps(handle)  # each loads() is a server that was restarted: what it had in memory is gone

    with TemporaryDirectory() as folder, Lab(rtt_ms=RTT_MS) as lab:
        shop = _Shop(Path(folder))

        def server() -> HttpServer:
            fresh: Handle = cloudpickle.loads(parcel)
            return HttpServer(lab.server, lambda request: shop.call(fresh, request, _charge), port=PORT)

        def ask(key: str | None, body: bytes) -> tuple[int, bytes]:
            status, said = _post(lab, shop, key, body)
            shop.check_raised()
            return status, said

        with server():
            with lab.wire.drop(source="server", payload=True), lab.client:
                with socket.create_connection(("server.lab", PORT), timeout=TRANSFER_S) as client:
                    client.sendall(_as_bytes(KEY, ORDER))
                    shop.wait_until_answered(1)
                    lab.wire.settle()  # the response has been lost
            shop.check_raised()
            if (charged := shop.charges) != 1:
                raise Wrong(f"a first payment with a key left {_charges(charged)}: charge it once")
            lost = shop.answered[0]
            if lost.status != 201:
                raise Wrong(f"a first payment with a key was answered with {lost.status}: expected 201")
            for restarted in (False, True):
                when = "after a restart" if restarted else "after its response was lost"
                with server() if restarted else contextlib.nullcontext():
                    status, said = ask(KEY, ORDER)
                if (charged := shop.charges) != 1:
                    raise Wrong(f"{when} the same payment came again, and the card was charged {charged} times")
                if (status, said) != (201, lost.body):
                    raise Wrong(
                        f"{when} the same payment was answered with {status} and {said!r:.60}: "
                        f"give the response that was lost, 201 and {lost.body!r:.60}"
                    )
        with server():
            status, said = ask(OTHER_KEY, ORDER)
            if (charged := shop.charges) != 2 or status != 201:
                raise Wrong(
                    f"a second payment, with a key of its own, was answered with {status} and left "
                    f"{_charges(charged)}: the customer buys the same thing twice, and wants to"
                )
            status, _ = ask(KEY, OTHER_ORDER)
            if (charged := shop.charges) != 2 or status != 422:
                raise Wrong(
                    f"a known key with another body was answered with {status} and left {_charges(charged)}: "
                    "expected 422 and the 2 charges of before"
                )
            status, _ = ask(None, ORDER)
            if (charged := shop.charges) != 2 or status != 400:
                raise Wrong(
                    f"a payment without a key was answered with {status} and left {_charges(charged)}: "
                    "expected 400 and the 2 charges of before"
                )
    return "Six requests, one lost response, one restart: 2 charges, one for each key."


HANDLE = TEXT.exercise("handle", _judge_handle, deadline_s=30.0)


# Exercise 2


def _two_at_once(shop: _Shop, handle: Handle) -> list[tuple[int, bytes]]:
    """Two copies of one payment: both are with the server before either of them is looked at."""
    door, bank = threading.Barrier(2), threading.Barrier(2)

    def charge(database: sqlite3.Connection, body: bytes) -> bytes:
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one does not come here
            bank.wait(MEET_S)
        return _charge(database, body)

    def serve(request: Request) -> Response:
        try:
            door.wait(TRANSFER_S)
        except threading.BrokenBarrierError:
            apart.append(True)
        return shop.call(handle, request, charge)

    apart: list[bool] = []
    said: list[tuple[int, bytes]] = []
    failed: list[BaseException] = []

    def client(lab: Lab) -> None:
        try:
            said.append(_post(lab, shop, KEY, ORDER))
        except BaseException as exc:
            failed.append(exc)

    with Lab(rtt_ms=RTT_MS) as lab, HttpServer(lab.server, serve, port=PORT):
        clients = [threading.Thread(target=client, args=(lab,), daemon=True) for _ in range(2)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(2 * TRANSFER_S)
    shop.check_raised()
    if failed:
        raise failed[0]
    shop.check_returns()
    if apart or len(said) < 2:
        raise MeasurementFailed("the two copies did not come to the server at the same time: the machine is busy")
    return said


def _killed_in_between(shop: _Shop, handle: Handle, request: Request) -> bool:
    """Run the handler in a process that dies as soon as the row of the charge is written. Whether it came so far."""

    def charge(database: sqlite3.Connection, body: bytes) -> bytes:
        _charge(database, body)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return killed_by_itself(lambda: shop.call(handle, request, charge), 2 * WAIT_S)


def _judge_at_once(handle_at_once: Handle) -> str:
    with TemporaryDirectory() as folder:
        shop = _Shop(Path(folder))
        said = _two_at_once(shop, handle_at_once)
        if (charged := shop.charges) != 1:
            raise Wrong(
                f"two copies came at the same time, and the card was charged {charged} times: "
                "each looked for the key before the other one had stored it"
                if charged > 1
                else "two copies came at the same time, and the card was not charged"
            )
        paid = [body for status, body in said if status == 201]
        if not paid or len(set(paid)) != 1 or any(status not in (201, 409) for status, _ in said):
            raise Wrong(f"two copies were answered with {sorted(said)}: give each the same receipt, or one of them 409")
    with TemporaryDirectory() as folder:
        shop = _Shop(Path(folder))
        request = Request("POST", "/charges", tuple((n.lower(), v) for n, v in _headers(KEY).items()), ORDER)
        if not _killed_in_between(shop, handle_at_once, request):
            raise Wrong("a first payment did not come as far as `charge`: charge a key that is new")
        try:
            again = shop.call(handle_at_once, request, _charge)
        except Exception:
            shop.check_raised()
            raise
        if (charged := shop.charges) != 1 or again.status != 201:
            raise Wrong(
                f"the process was killed inside `charge`, and the payment came again: answered with {again.status}, "
                f"{_charges(charged)} in the end. What is committed by then, and what is not?"
            )
    statuses = sorted(status for status, _ in said)
    return (
        f"One charge each. Two copies at once got {statuses[0]} and {statuses[1]}; after the kill the copy was charged."
    )


AT_ONCE = TEXT.exercise("at_once", _judge_at_once, deadline_s=45.0)

EXERCISES = (HANDLE, AT_ONCE)

QUIZ = TEXT.quiz


# The hidden trace


def _serve_once(listener: socket.socket) -> None:
    """Read one request, answer it, and keep the connection until it is reset."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\ncharge 1\n")
        reset = select.poll()
        reset.register(connection, 0)  # only what is always told: an error, the end of both directions
        reset.poll(TRANSFER_S * 1000)


@recorded
def given_up(lab: Lab) -> Captured:
    """A payment whose response is lost. The client gives up, and later the response comes after all."""
    with (
        lab.capture() as capture,
        serving(lab.server, _serve_once, port=PORT),
        lab.client,
        lab.wire.delay(0, source="client", tcp_flags="R") as reset,  # counts; the copy may come at any moment
    ):
        with lab.wire.drop(source="server", payload=True) as lost:
            with socket.create_connection(("server.lab", PORT), timeout=TRANSFER_S) as client:
                client.sendall(_as_bytes(KEY, ORDER))
                wait_until(lambda: lost.acted, TRANSFER_S, "the loss of the response")
            lab.wire.settle()
        wait_until(lambda: reset.matched, TRANSFER_S, "a RST for a response that was sent again")
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A lost response on this lab, or a recorded one, with four blanks."""
    capture = given_up(lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("POST /charges", "round trip", "what has the client waited for before it could send the request?"),
            Blank("FIN", "from", "which side has stopped waiting?"),
            Blank("FIN", "seq", "the FIN stands behind all bytes of its side, and the payload column counts them"),
            Blank("RST", "from", "whose program has closed its socket, so that nobody is left to take the response?"),
        ],
        tier=capture.tier,
    )
