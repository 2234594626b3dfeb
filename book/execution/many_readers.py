"""What the section "One acceptor, many readers" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.execution.clients import PORT, WAIT_S, listen
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab

TEXT = Text(__file__)

RTT_MS = 5
SOON_S = 5.0  # for what arrives within a round trip or never
READERS = 4

# What the judges need: readers that can die, in threads, so that they can be judged without a kernel's network.


class _Reader:
    """A reader as in the notebook, in a thread. It answers with its name; it dies when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox, self._inbox = socket.socketpair()
        self._told, self._ear = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.ExitStack() as mine, selectors.DefaultSelector() as selector:
            for each in (mine.enter_context(self._inbox), mine.enter_context(self._ear)):
                selector.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    assert isinstance(ready, socket.socket)
                    if ready is self._ear:
                        return
                    if ready is self._inbox:
                        _, descriptors, _, _ = socket.recv_fds(ready, 1, 1)
                        if not descriptors:
                            selector.unregister(ready)  # the acceptor has closed its end
                            continue
                        connection = mine.enter_context(socket.socket(fileno=descriptors[0]))
                        selector.register(connection, selectors.EVENT_READ)
                    elif not self._answer(ready):
                        selector.unregister(ready)
                        ready.close()

    def _answer(self, connection: socket.socket) -> bool:
        try:
            request = connection.recv(4096)
            if request:
                body = self.name.encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except OSError:
            return False
        return bool(request)

    def die(self) -> None:
        self._told.close()
        self._thread.join()


def _who(client: socket.socket) -> str:
    """Ask a reader for its name: "" where the connection has ended. Raises TimeoutError."""
    try:
        client.sendall(b"GET /who HTTP/1.1\r\nHost: server.lab\r\n\r\n")
        return client.recv(4096).partition(b"\r\n\r\n")[2].decode()
    except TimeoutError:
        raise
    except OSError:
        return ""


# Exercise 1


def _judge_hand_round(hand_round: Callable[..., Any]) -> str:
    readers = [_Reader(f"reader {number}") for number in range(1, READERS + 1)]
    raised: list[BaseException] = []
    returned = threading.Event()

    def run() -> None:
        try:
            hand_round(listener, [reader.outbox for reader in readers])
        except BaseException as exc:
            raised.append(exc)
        returned.set()

    def check_alive() -> None:
        if returned.wait(1 if raised else 0):
            if raised:
                raise Wrong(
                    f"your acceptor raised {describe(raised[0])}: with it the server is gone, and every connection"
                ) from raised[0]
            raise Wrong("your acceptor returned: it has to accept as long as the server lives")

    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(lab.server, PORT))
        with lab.server:
            threading.Thread(target=run, daemon=True).start()

        def call() -> socket.socket:
            with lab.client:
                return stack.enter_context(socket.create_connection(("server.lab", PORT), timeout=SOON_S))

        def name_for(client: socket.socket, which: str) -> str:
            try:
                name = _who(client)
            except TimeoutError:
                check_alive()
                raise Wrong(
                    f"{which} is connected and gets no response: it was accepted, and no reader has it"
                ) from None
            if not name:
                returned.wait(1)  # an acceptor that raised has closed the connection first
                check_alive()
                raise Wrong(f"{which} was cut off: its connection was closed, and no living reader got it")
            return name

        clients = [call() for _ in range(READERS)]
        names = [name_for(client, f"client {number}") for number, client in enumerate(clients, 1)]
        if len(set(names)) != READERS:
            raise Wrong(
                f"{READERS} clients were handed to {', '.join(names)}: hand them round, one to each of the {READERS}"
            )
        clients[-1].shutdown(socket.SHUT_WR)  # its reader reads the end, and closes
        try:
            clients[-1].recv(1)
        except TimeoutError:
            raise Wrong(
                f"the reader of client {READERS} has closed the connection, and the client sees no end: your acceptor "
                "still holds a descriptor of the same socket"
            ) from None
        readers[1].die()
        after = []
        for number in range(READERS + 1, READERS + 7):
            client = call()
            after.append(name_for(client, f"after reader 2 died, client {number}"))
        if set(after) != {"reader 1", "reader 3", "reader 4"}:
            raise Wrong(
                f"after reader 2 died, six clients were handed to {', '.join(after)}: all that live get their share"
            )
        check_alive()
    return "Ten clients, one dead reader, and each of them was answered; the other three readers share the work."


HAND_ROUND = TEXT.exercise("hand_round", _judge_hand_round, deadline_s=15.0)


# Exercise 2


def _judge_finish(finish: Callable[..., Any]) -> str:
    response = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nas long as it lasts\n"
    with Lab(rtt_ms=RTT_MS) as lab, contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(lab.server, PORT))
        with lab.client:
            client = stack.enter_context(socket.create_connection(("server.lab", PORT), timeout=SOON_S))
        client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n")
        kept = stack.enter_context(listener.accept()[0])  # what another process holds
        kept.settimeout(SOON_S)
        kept.recv(4096)
        connection = stack.enter_context(kept.dup())
        connection.settimeout(SOON_S)
        finish(connection, response)
        seen = b""
        try:
            while data := client.recv(4096):
                seen += data
        except TimeoutError:
            if not seen:
                raise Wrong("the client has received nothing: send the response") from None
            raise Wrong(
                "the client has the response and waits for its end: another descriptor of this socket is open, so "
                "closing yours sends no FIN"
            ) from None
        except OSError as exc:
            raise Wrong(f"the client's connection broke: {describe(exc)}") from exc
        if seen != response:
            raise Wrong(f"the client received {seen!r:.80}: expected the response, and then the end")
    return "The client saw the end, while another descriptor of the same socket was open."


FINISH = TEXT.exercise("finish", _judge_finish, deadline_s=15.0)

EXERCISES = (HAND_ROUND, FINISH)

QUIZ = TEXT.quiz


# The trace: the acceptor speaks first, hands the connection on, and closes.

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello\n"


def _handed_over(lab: Lab) -> Captured:
    with lab.capture() as capture, contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(lab.server, PORT))
        outbox, inbox = map(stack.enter_context, socket.socketpair())
        with lab.client:
            client = stack.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))
        client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n")
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(4096)
            connection.sendall(HINTS)
            socket.send_fds(outbox, [b"!"], [connection.fileno()])
        client.recv(4096)
        _, (descriptor,), _, _ = socket.recv_fds(inbox, 1, 1)
        with socket.socket(fileno=descriptor) as passed:
            passed.sendall(OK)
            client.recv(4096)
        client.recv(4096)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A connection that changes hands between two parts of its response, on this lab, with four blanks."""
    capture = _handed_over(lab)
    packets = next(group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("103 Early Hints", "round trip", "count: one to connect, and then the request has to get there"),
            Blank(
                "HTTP/1.1 200",
                "seq",
                "the reader writes into the same socket: its bytes are counted on from the acceptor's",
            ),
            Blank("FIN", "from", "the acceptor's close sent nothing: who held the last descriptor?"),
            Blank(
                "FIN",
                "seq",
                "it follows the last byte that the reader sent; the payload column says how many those were",
            ),
        ],
        tier=capture.tier,
    )
