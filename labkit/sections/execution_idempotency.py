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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.grading import Deadline, describe
from labkit.learn.judging import serving, wait_until
from labkit.servers import HttpServer, Request, Response

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


HANDLE = Exercise(
    id="execution.idempotency.handle",
    task=(
        "Write `handle(request, database, charge)`, which answers `POST /charges`. It gets a `labkit.servers.Request`, "
        "a `sqlite3` connection of its own in autocommit mode, and a function: `charge(database, body)` takes the "
        "money and returns the body of the response, as bytes. The database has the table `answers (key TEXT PRIMARY "
        "KEY, fingerprint TEXT, response BLOB)`. Return a `Response`:\n\n"
        "- without an `Idempotency-Key`: 400, and no charge,\n"
        "- with a new key: charge, and answer 201 with what `charge` returned,\n"
        "- with a known key and the same body: 201 and the same bytes as before, and no charge,\n"
        "- with a known key and another body: 422, and no charge.\n\n"
        "The check loses a response on the wire, sends the payment again, restarts your server in between, and counts "
        "the charges."
    ),
    starter="def handle(request, database, charge):\n    return ...\n",
    solution=(
        "import hashlib\n\n"
        "from labkit.servers import Response\n\n\n"
        "def handle(request, database, charge):\n"
        "    key = request.header('idempotency-key')\n"
        "    if key is None:\n"
        "        return Response.text('send an Idempotency-Key\\n', 400)\n"
        "    fingerprint = hashlib.sha256(request.body).hexdigest()\n"
        "    with database:  # COMMIT at the end, ROLLBACK where something is raised\n"
        "        database.execute('BEGIN IMMEDIATE')\n"
        "        known = database.execute(\n"
        "            'SELECT fingerprint, response FROM answers WHERE key = ?', (key,)\n"
        "        ).fetchone()\n"
        "        if known is None:\n"
        "            known = fingerprint, charge(database, request.body)\n"
        "            database.execute('INSERT INTO answers VALUES (?, ?, ?)', (key, *known))\n"
        "    if known[0] != fingerprint:\n"
        "        return Response.text('this key belongs to another payment\\n', 422)\n"
        "    return Response(201, body=known[1])\n"
    ),
    explanation=(
        "The key names the payment, so the server can tell a copy from a second purchase. The stored response answers "
        "a copy, and the fingerprint of the body tells a copy from a client that uses a key twice by mistake "
        "(draft-ietf-httpapi-idempotency-key-header §2.4 and §2.6). BEGIN IMMEDIATE takes the write lock before the "
        "look, and the commit keeps charge and key together: exercise 2 needs both."
    ),
    hints=(
        "Look up the key before you charge. What do you have to store so that a copy can be answered, and so that a "
        "copy can be told from another payment?",
        "Store the response under the key, with a fingerprint of the body: hashlib.sha256(request.body).hexdigest().",
        "A dictionary is gone after a restart. INSERT INTO answers VALUES (?, ?, ?) is not.",
    ),
    mistakes=(
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle(request, database, charge):\n"
            "    if request.header('idempotency-key') is None:\n"
            "        return Response.text('key?', 400)\n"
            "    return Response(201, body=charge(database, request.body))\n",
            "after its response was lost the same payment came again, and the card was charged 2 times",
        ),
        Mistake(
            "from labkit.servers import Response\n\n"
            "answers = {}\n\n\n"
            "def handle(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    if key not in answers:\n"
            "        answers[key] = charge(database, request.body)\n"
            "    return Response(201, body=answers[key])\n",
            "after a restart the same payment came again, and the card was charged 2 times",
        ),
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    row = database.execute('SELECT response FROM answers WHERE key = ?', (key,)).fetchone()\n"
            "    if row is None:\n"
            "        row = (charge(database, request.body),)\n"
            "        database.execute('INSERT INTO answers VALUES (?, ?, ?)', (key, '', row[0]))\n"
            "    return Response(201, body=row[0])\n",
            "a known key with another body was answered with 201",
        ),
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    if database.execute('SELECT 1 FROM answers WHERE key = ?', (key,)).fetchone():\n"
            "        return Response.text('paid already', 409)\n"
            "    body = charge(database, request.body)\n"
            "    database.execute('INSERT INTO answers VALUES (?, ?, ?)', (key, '', body))\n"
            "    return Response(201, body=body)\n",
            "give the response that was lost",
        ),
        Mistake(
            "import hashlib\n\nfrom labkit.servers import Response\n\n\n"
            "def handle(request, database, charge):\n"
            "    key = hashlib.sha256(request.body).hexdigest()\n"
            "    row = database.execute('SELECT response FROM answers WHERE key = ?', (key,)).fetchone()\n"
            "    if row is None:\n"
            "        row = (charge(database, request.body),)\n"
            "        database.execute('INSERT INTO answers VALUES (?, ?, ?)', (key, '', row[0]))\n"
            "    return Response(201, body=row[0])\n",
            "a second payment, with a key of its own",
        ),
    ),
    judge=_judge_handle,
    deadline_s=30.0,
)


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
    """Run the handler in a process that dies as soon as the row of the charge is written. Whether it came so far.

    Raises:
        MeasurementFailed: it came nowhere in time, though it did before.
    """

    def charge(database: sqlite3.Connection, body: bytes) -> bytes:
        _charge(database, body)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 2 * WAIT_S)
            shop.call(handle, request, charge)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise MeasurementFailed(f"a first payment did not end within {2 * WAIT_S:g} s: the machine is busy")
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


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


AT_ONCE = Exercise(
    id="execution.idempotency.at_once",
    task=(
        "This handler passes exercise 1 as far as the key goes, and still charges twice. Repair it. The check sends "
        "two copies of one payment, and lets both arrive before your handler looks at either; then it kills the "
        "process inside `charge`, after the row of the charge was written through `database`, and sends the payment "
        "again. There must be one charge each time. Answer both copies with the same 201, or one of them with 409; "
        "after the kill answer with 201. `database` is in autocommit mode, waits up to 5 s for a lock, and `answers` "
        "is the table of exercise 1."
    ),
    starter=(
        "def handle_at_once(request, database, charge):\n"
        '    key = request.header("idempotency-key")\n'
        '    look = "SELECT response FROM answers WHERE key = ?"\n'
        "    known = database.execute(look, (key,)).fetchone()\n"
        "    if known is None:\n"
        "        known = (charge(database, request.body),)\n"
        '        store = "INSERT OR IGNORE INTO answers (key, response) VALUES (?, ?)"\n'
        "        database.execute(store, (key, known[0]))\n"
        "    return Response(201, body=known[0])\n"
    ),
    solution=(
        "from labkit.servers import Response\n\n\n"
        "def handle_at_once(request, database, charge):\n"
        "    key = request.header('idempotency-key')\n"
        "    with database:  # COMMIT at the end, ROLLBACK where something is raised\n"
        "        database.execute('BEGIN IMMEDIATE')  # the write lock, before anything is looked at\n"
        "        new = database.execute(\n"
        "            'INSERT INTO answers (key) VALUES (?) ON CONFLICT DO NOTHING', (key,)\n"
        "        ).rowcount\n"
        "        if new:\n"
        "            database.execute(\n"
        "                'UPDATE answers SET response = ? WHERE key = ?',\n"
        "                (charge(database, request.body), key),\n"
        "            )\n"
        "        look = 'SELECT response FROM answers WHERE key = ?'\n"
        "        (response,) = database.execute(look, (key,)).fetchone()\n"
        "    return Response(201, body=response)\n"
    ),
    explanation=(
        "The unique key lets one of two copies insert, and the other wait for its transaction. When that has "
        "committed, the response is there. A process that is killed has committed nothing, so neither charge nor key "
        "is left, and the copy may charge. A lock in the program's memory would stop two threads, but not two "
        "processes, and not the kill."
    ),
    hints=(
        "Between the look and the insert there is time. Who says that the key is taken: your program, or the database?",
        "In autocommit mode each statement is a transaction of its own. A kill between two of them keeps the first "
        "and loses the second.",
        "database.execute('BEGIN IMMEDIATE') takes the write lock at once, and a second one waits there. `with "
        "database:` commits at the end of its block, and rolls back where something is raised.",
    ),
    mistakes=(
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle_at_once(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    with database:\n"
            "        look = 'SELECT response FROM answers WHERE key = ?'\n"
            "        known = database.execute(look, (key,)).fetchone()\n"
            "        if known is None:\n"
            "            known = (charge(database, request.body),)\n"
            "            store = 'INSERT OR IGNORE INTO answers (key, response) VALUES (?, ?)'\n"
            "            database.execute(store, (key, known[0]))\n"
            "    return Response(201, body=known[0])\n",
            "charged 2 times",
        ),
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle_at_once(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    with database:\n"
            "        database.execute('BEGIN')\n"
            "        look = 'SELECT response FROM answers WHERE key = ?'\n"
            "        known = database.execute(look, (key,)).fetchone()\n"
            "        if known is None:\n"
            "            known = (charge(database, request.body),)\n"
            "            store = 'INSERT INTO answers (key, response) VALUES (?, ?)'\n"
            "            database.execute(store, (key, known[0]))\n"
            "    return Response(201, body=known[0])\n",
            "your handler raised OperationalError: database is locked",
        ),
        Mistake(
            "from labkit.servers import Response\n\n\n"
            "def handle_at_once(request, database, charge):\n"
            "    key = request.header('idempotency-key')\n"
            "    new = database.execute(\n"
            "        'INSERT INTO answers (key) VALUES (?) ON CONFLICT DO NOTHING', (key,)\n"
            "    ).rowcount\n"
            "    look = 'SELECT response FROM answers WHERE key = ?'\n"
            "    response = database.execute(look, (key,)).fetchone()[0]\n"
            "    if not new and response is None:\n"
            "        return Response.text('in progress\\n', 409)\n"
            "    if new:\n"
            "        response = charge(database, request.body)\n"
            "        store = 'UPDATE answers SET response = ? WHERE key = ?'\n"
            "        database.execute(store, (response, key))\n"
            "    return Response(201, body=response)\n",
            "answered with 409, 1 charge in the end",
        ),
    ),
    judge=_judge_at_once,
    deadline_s=45.0,
)

EXERCISES = (HANDLE, AT_ONCE)

QUIZ = Quiz(
    Question(
        "A client's POST to /charges ends in a time-out. What does the client know?",
        (
            Option(
                "That the card was not charged.",
                "A time-out says that no response came. The charge may have happened, and it may still happen: the "
                "request can be on its way.",
            ),
            Option(
                "That the card was charged, if TCP acknowledged the request.",
                "The acknowledgment comes from the kernel, when the bytes are in its buffer. It says nothing about "
                "the program.",
            ),
            Option(
                "Neither. It has to ask, or to repeat a request that may be repeated.",
                "Lost request, lost response, slow server and dead server look the same from here.",
                right=True,
            ),
        ),
    ),
    Question(
        "When does a client choose the idempotency key?",
        (
            Option(
                "Once for each payment, before the first try.",
                "The key names the payment. It has to outlive the time-out, and a crash of the client as well.",
                right=True,
            ),
            Option(
                "Anew for each try, so that keys are unique.",
                "Then each try is a payment of its own to the server, and the card is charged for each.",
            ),
            Option(
                "Never: a hash of the body is enough.",
                "Two purchases of the same thing have the same body, and the second one would not be charged.",
            ),
        ),
    ),
    Question(
        "A DELETE succeeded and its response was lost. The client repeats it and gets 404. Is DELETE idempotent?",
        (
            Option(
                "No, the two responses differ.",
                "The definition is about the intended effect on the server, not about the response (RFC 9110 §9.2.2).",
            ),
            Option(
                "Yes: the effect of two is the effect of one.",
                "The order is gone after one and after two. The client has to take 404 for a success here.",
                right=True,
            ),
            Option(
                "Only with an idempotency key.",
                "A key makes a request idempotent that is not so by itself, such as POST or PATCH.",
            ),
        ),
    ),
)


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


def _given_up(lab: Lab) -> Captured:
    """A payment whose response is lost. The client gives up, and later the response comes after all."""

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TRANSFER_S
        while not condition():
            if time.monotonic() > deadline:
                raise MeasurementFailed("the response was not lost, or not sent again: try again")
            time.sleep(0.005)

    with (
        lab.capture() as capture,
        serving(lab.server, _serve_once, port=PORT),
        lab.client,
        lab.wire.delay(0, source="client", tcp_flags="R") as reset,  # counts; the copy may come at any moment
    ):
        with lab.wire.drop(source="server", payload=True) as lost:
            with socket.create_connection(("server.lab", PORT), timeout=TRANSFER_S) as client:
                client.sendall(_as_bytes(KEY, ORDER))
                until(lambda: lost.acted > 0)
            lab.wire.settle()
        until(lambda: reset.matched > 0)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A lost response on this lab, or a recorded one, with four blanks."""
    capture = lab.live_or_recorded("execution.idempotency/trace", _given_up, lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return HiddenTrace(
        "execution.idempotency.trace",
        packets,
        [
            Blank("POST /charges", "round trip", "what has the client waited for before it could send the request?"),
            Blank("FIN", "from", "which side has stopped waiting?"),
            Blank("FIN", "seq", "the FIN stands behind all bytes of its side, and the payload column counts them"),
            Blank("RST", "from", "whose program has closed its socket, so that nobody is left to take the response?"),
        ],
        hints=(
            "The response is sent more than once, because no acknowledgment comes. Only the last copy gets through.",
            "The client's SYN has number 0 and the request begins at 1. The FIN has the number after its last byte.",
            "The client gives up and closes. A copy of the response that then gets through finds nobody to read it.",
        ),
        explanation=(
            "The server has charged and keeps sending the response. The client closed before it came, so its kernel "
            "answers the late copy with a RST (RFC 9293 §3.6.1). From now on the server knows that the response was "
            "not read, and the client still does not know that there was one."
        ),
        tier=capture.tier,
    )
