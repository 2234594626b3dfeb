"""What "One acceptor and reader, balanced messages" asks: its flood, two exercises, the hidden trace, the quiz."""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.execution.clients import listen
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.waiting import wait_until

TEXT = Text(__file__)

PORT = 8080
RTT_MS = 5
WAIT_S = 8.0
MB = 2**20

Kept = dict[Any, Any]


def response_to(name: str) -> bytes:
    """The response to GET /name, which says what it is for in its first line, too."""
    body = f"this is {name}".encode()
    return b"HTTP/1.1 200 for /%s\r\nContent-Length: %d\r\n\r\n%s" % (name.encode(), len(body), body)


def pour(lab: Lab, server: ServerProcess, size: int) -> tuple[int, int]:
    """One client sends requests and reads no response, until all is sent or nothing was taken for two seconds.

    The client is on the server's host, because the wire is not what is measured.

    Args:
        lab: the lab.
        server: asked for /who, in requests of 4 KiB.
        size: of all requests together, bytes: so many that a program which takes them in grows by nearly as much.

    Returns:
        the bytes that the kernel took, and by how many the program grew.
    """
    import psutil

    request = b"GET /who HTTP/1.1\r\nHost: server.lab\r\nX-Padding: "
    request += b"x" * (4092 - len(request)) + b"\r\n\r\n"
    left = memoryview(request * (size // len(request)))
    program = psutil.Process(server.pid)
    before = program.memory_info().rss
    with lab.server:
        client = socket.create_connection(("server.lab", PORT), timeout=2)
    with client, contextlib.suppress(TimeoutError):
        while left:
            left = left[client.send(left[:MB]) :]
        wait_until(lambda: program.memory_info().rss - before > size - 4 * MB, what="the reading of all requests")
    return size - len(left), program.memory_info().rss - before


class _Dispatcher:
    """A server with balanced messages whose workers are the judge: a request is done when ``finish`` says so.

    What it has done is on record, so that a judge need not wait for what never leaves: ``sent`` has the responses by
    connection, ``done`` the requests whose workers are finished and what that has let out, ``admitted`` by request
    None, or the refusal.

    Args:
        lab: on its server it listens.
        workers: how many requests can be worked on at once.
        in_order: the learner's, or None to send each response when it is there.
        admit: the learner's, or None to let all wait.
    """

    def __init__(
        self,
        lab: Lab,
        workers: int,
        *,
        in_order: Callable[..., Any] | None = None,
        admit: Callable[..., Any] | None = None,
    ) -> None:
        self.now_s = 0.0  # the judge's clock
        self.running: dict[str, tuple[int, int]] = {}
        self.waiting: collections.deque[tuple[float, str, int, int]] = collections.deque()
        self.raised: list[BaseException] = []
        self.sent: dict[int, list[bytes]] = collections.defaultdict(list)
        self.done: list[str] = []
        self.admitted: dict[str, bytes | None] = {}
        self._workers, self._in_order, self._admit = workers, in_order, admit
        self._kept: Kept = {}
        self._listener = listen(lab.server, PORT)
        self._done, self._ear = socket.socketpair()
        self._connections: dict[int, socket.socket] = {}
        self._buffers: dict[int, bytes] = {}
        self._numbers: dict[int, int] = {}
        with lab.server:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def __enter__(self) -> _Dispatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.close()  # which ends the thread
        self._thread.join(WAIT_S)

    def finish(self, name: str) -> None:
        """A worker is done with this request."""
        wait_until(lambda: self.raised or name in self.running, what=f"the work on /{name}")
        self.check()
        self._done.sendall(f"{name}\n".encode())
        wait_until(lambda: self.raised or name in self.done, what=f"the end of the work on /{name}")
        self.check()

    def check(self) -> None:
        """Raises Wrong where the learner's code has raised."""
        if self.raised:
            raise Wrong(f"your code raised {describe(self.raised[0])}") from self.raised[0]

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as mine, selectors.DefaultSelector() as selector:
                for each in (self._listener, self._ear):
                    selector.register(mine.enter_context(each), selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        ready = key.fileobj
                        assert isinstance(ready, socket.socket)
                        if ready is self._ear:
                            told = ready.recv(4096).decode()  # a name is a few bytes, and comes in one piece
                            if not told:
                                return
                            for name in told.split():
                                self._finished(name)
                        elif ready is self._listener:
                            connection = mine.enter_context(ready.accept()[0])
                            number = len(self._connections) + 1
                            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                            self._connections[number] = connection
                            self._buffers[number] = b""
                            selector.register(connection, selectors.EVENT_READ, number)
                        elif not self._read(key.data):
                            selector.unregister(ready)
                            ready.close()
        except BaseException as exc:
            self.raised.append(exc)

    def _read(self, number: int) -> bool:
        try:
            data = self._connections[number].recv(65536)
        except OSError:
            return False
        *requests, self._buffers[number] = (self._buffers[number] + data).split(b"\r\n\r\n")
        for request in requests:
            name = request.split()[1].decode().strip("/")
            self._numbers[number] = self._numbers.get(number, 0) + 1
            if len(self.running) < self._workers:
                self.running[name] = number, self._numbers[number]
                self.admitted[name] = None
                continue
            refusal = self._admit(self._view(), self.now_s) if self._admit else None
            if refusal is None:
                self.waiting.append((self.now_s, name, number, self._numbers[number]))
            else:
                self._send(number, refusal)
            self.admitted[name] = refusal
        return bool(data)

    def _view(self) -> collections.deque[tuple[float, str]]:
        return collections.deque((since_s, name) for since_s, name, _, _ in self.waiting)

    def _finished(self, name: str) -> None:
        number, place = self.running.pop(name)
        response = response_to(name)
        for each in self._in_order(self._kept, number, place, response) if self._in_order else [response]:
            self._send(number, each)
        if self.waiting:
            _, following, *whose = self.waiting.popleft()
            self.running[following] = whose[0], whose[1]
        self.done.append(name)

    def _send(self, number: int, response: Any) -> None:
        if not isinstance(response, (bytes, bytearray)):
            raise TypeError(f"{response!r:.60} cannot be sent: a response is bytes")
        self.sent[number].append(bytes(response))
        with contextlib.suppress(ConnectionError):
            self._connections[number].sendall(response)


def _split(received: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Head and body of the first response, and what follows it; None where it is not complete.

    Raises:
        Wrong: it does not say how long it is.
    """
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        return None
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths or not lengths[0].strip().isdigit():
        raise Wrong(f"the client received {head[:60]!r} without a Content-Length: it cannot tell where the body ends")
    length = int(lengths[0])
    return (head, rest[:length], rest[length:]) if len(rest) >= length else None


class _Client:
    """A client that reads responses one by one."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, server: _Dispatcher) -> None:
        with lab.client:
            self._socket = stack.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = server
        self._buffer = b""

    def ask(self, *names: str) -> None:
        self._socket.sendall(b"".join(b"GET /%s HTTP/1.1\r\nHost: server.lab\r\n\r\n" % n.encode() for n in names))

    def response(self) -> tuple[bytes, bytes]:
        """Head and body of the next response, which was sent.

        Raises:
            MeasurementFailed: it does not arrive.
            Wrong: it is none, or the connection ended.
        """
        while (found := _split(self._buffer)) is None:
            self._server.check()
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise MeasurementFailed(
                    f"a response did not arrive within {WAIT_S:g} s: is the machine busy?"
                ) from None
            if not data:
                self._server.check()
                raise Wrong("the client's connection was closed before its response was complete")
            self._buffer += data
        head, body, self._buffer = found
        return head, body


# Exercise 1


def _body(response: bytes) -> bytes:
    return response.rpartition(b"\r\n\r\n")[2]


def _judge_in_order(in_order: Callable[..., Any]) -> str:
    read: collections.Counter[int] = collections.Counter()  # bytes, by connection
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        server = stack.enter_context(_Dispatcher(lab, 8, in_order=in_order))
        clients = {number: _Client(lab, stack, server) for number in (1, 2)}
        for number, names in ((1, ("a1", "a2", "a3")), (2, ("b1",))):
            clients[number].ask(*names)
            # The dispatcher numbers connections as it accepts them, and these come one after the other.
            wait_until(lambda names=names: set(names) <= set(server.running), what="the work on all of them")  # type: ignore[misc]

        def expect(number: int, name: str, why: str) -> None:
            if _split(b"".join(server.sent[number])[read[number] :]) is None:
                raise Wrong(f"the response to /{name} never left: {why}")
            head, body = clients[number].response()
            read[number] += len(head) + 4 + len(body)
            if body != _body(response_to(name)):
                raise Wrong(
                    f"where the client expects the response to /{name}, it received {body.decode(errors='replace')!r}: "
                    "it takes responses for answers to its requests in the order in which it asked"
                )

        server.finish("b1")
        expect(2, "b1", "nothing of that connection was out before it. Each connection has an order of its own")
        for name in ("a3", "a2"):
            server.finish(name)
        if server.sent[1]:
            said = _body(server.sent[1][0]).decode(errors="replace")
            raise Wrong(
                f"the client asked for a1, a2 and a3, and the first response that it received says {said!r}: "
                "it takes it for the one to /a1"
            )
        server.finish("a1")
        for name in ("a1", "a2", "a3"):
            expect(1, name, "what waited for the one before it may leave as soon as that one has")
        clients[1].ask("a4")
        server.finish("a4")
        expect(1, "a4", "the ones before it had been sent, so it is the next")
        server.check()
    return "Worked on side by side, answered in order; and a slow request of one client held up nobody else."


IN_ORDER = TEXT.exercise("in_order", _judge_in_order, deadline_s=15.0)


# Exercise 2

MOST, OLDEST_S = 4, 1.0


def _judge_admit(admit: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        server = stack.enter_context(_Dispatcher(lab, 2, admit=admit))
        client = _Client(lab, stack, server)

        def ask(name: str) -> bool:
            """Whether it is let in: it waits, or is worked on."""
            client.ask(name)
            wait_until(lambda: server.raised or name in server.admitted, what=f"a decision about /{name}")
            server.check()
            return server.admitted[name] is None

        for name in ("busy1", "busy2"):
            ask(name)
        for number in range(1, MOST + 1):
            if not ask(f"w{number}"):
                raise Wrong(
                    f"{number - 1} were waiting, none of them for long, and one more was refused: {MOST} may wait"
                )
        if ask("w5"):
            raise Wrong(f"{MOST} were waiting, and one more was let in: {len(server.waiting)} wait now")
        refusal = server.admitted["w5"] or b""
        if _split(refusal) is None:
            raise Wrong(f"who is refused received {refusal[:60]!r}: that is no complete response")
        head, _ = client.response()
        if not head.startswith(b"HTTP/1.1 503 "):
            raise Wrong(f"who is refused received {head[:40]!r}: give HTTP/1.1 503, so that a client knows what it is")
        if b"\nretry-after:" not in head.lower():
            raise Wrong("the 503 has no Retry-After: without it clients come back at once, and make it worse")
        for name in ("busy1", "busy2", "w1", "w2", "w3"):
            server.finish(name)
            client.response()
        wait_until(lambda: list(server.running) == ["w4"] and not server.waiting, what="the end of all but w4")
        for name in ("x1", "x2"):
            if not ask(name):
                raise Wrong("the queue was empty again, and a request was refused")
        server.now_s = OLDEST_S + 0.5
        if ask("x3"):
            raise Wrong(
                f"one was waiting, since {server.now_s:g} s, and another was let in: a short queue that does not move "
                f"is "
                "a long wait, too"
            )
        server.finish("w4")
        client.response()
        if not ask("x4"):
            raise Wrong("nobody was waiting any more, and a request was refused")
        server.check()
    return (
        f"At most {MOST} wait, none is let in behind one that waits for long, and the refused know when to try again."
    )


ADMIT = TEXT.exercise("admit", _judge_admit, deadline_s=15.0)

EXERCISES = (IN_ORDER, ADMIT)

QUIZ = TEXT.quiz


def _pipelined(lab: Lab) -> Captured:
    with contextlib.ExitStack() as stack, lab.capture() as capture:
        server = stack.enter_context(_Dispatcher(lab, 2))
        client = _Client(lab, stack, server)
        for name in ("slow", "fast"):
            client.ask(name)
            wait_until(lambda name=name: name in server.running, what=f"the work on /{name}")  # type: ignore[misc]
        for name in ("fast", "slow"):
            server.finish(name)
            client.response()
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests one after the other on one connection, answered as they get ready, with three blanks."""
    capture = _pipelined(lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("GET /fast", "seq", "it follows the first request, and the payload column says how long that one is"),
            Blank("for /fast", "what", "two workers have a request each: which of them is done first?"),
            Blank("for /slow", "seq", "it follows the other response, whichever request it belongs to"),
        ],
        tier=capture.tier,
    )
