"""A backend that hangs, and what the clients of a server meet whose requests wait for it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from book import recorded
from book.execution import patterns
from book.execution.workload import FAST
from labkit.load.server_process import ServerProcess
from labkit.waiting import happens, wait_until

if TYPE_CHECKING:
    from labkit.lab import Lab
    from labkit.queues.history import History

PORT, BACKEND = 8080, 9000
PATIENCE_S = 2.0  # of who asks for the health


class Backend:
    """A backend on the server's host that answers nobody until it is told to.

    Who asks it connects and waits for a byte. Until the release nobody is accepted, so the kernel's accept queue of
    its port holds exactly those who wait for it.
    """

    def __init__(self, lab: Lab) -> None:
        with lab.server:
            self._listener = socket.create_server((lab.server.ip, BACKEND), backlog=64)
        try:
            self._watch = lab.watch(BACKEND)
        except BaseException:
            self._listener.close()
            raise
        self._thread: threading.Thread | None = None
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many wait for it now, or at its release did."""
        return self._watch.so_far().accept_queue.last

    def release(self) -> None:
        """From now on everybody is answered at once."""
        self._listener.settimeout(0.05)
        self._thread = threading.Thread(target=self._answer, name="labkit-backend", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._ended:
            with contextlib.suppress(OSError):  # nobody came meanwhile, or who asked has gone
                connection, _ = self._listener.accept()
                with connection:
                    connection.sendall(b"!")

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        if self._thread:
            self._thread.join()
        self._watch.close()
        self._listener.close()


def ask_backend(ip: str, timeout: float | None = None) -> None:
    """Connect to the backend and wait for its byte. Raises TimeoutError where it takes more than `timeout` seconds."""
    with socket.create_connection((ip, BACKEND), timeout=timeout) as backend:
        backend.recv(1)


def _counting(
    address: tuple[str, int],
    serve: Callable[[tuple[str, int]], object],
    handle: Callable[[SimpleNamespace, Callable[[], None]], int],
) -> None:
    """A pattern whose requests ask the backend, and get the counter as the response."""
    state = SimpleNamespace(counter=0, lock=threading.Lock())

    def work(request: bytes) -> bytes:
        said = handle(state, lambda: ask_backend(address[0]))
        return b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % said

    patterns.with_work(address, serve, work)


@recorded
def eight_at_once(
    lab: Lab,
    serve: Callable[[tuple[str, int]], object],
    handle: Callable[[SimpleNamespace, Callable[[], None]], int],
    expected: int,
    count: int,
) -> tuple[int, int, list[int]]:
    """Eight clients are connected, and each sends a request to a server whose handler asks the backend.

    Args:
        lab: the lab.
        serve: the server, one of the patterns.
        handle: of a request: gets the state of its process, with `counter` and `lock`, and a function that asks.
        expected: how many wait for the backend at the same time. Waits until it is so.
        count: how many threads the server then has.

    Returns:
        how many waited at once, how many threads there were, what the responses said.
    """
    with (
        contextlib.ExitStack() as callers,
        Backend(lab) as backend,
        ServerProcess(lab.server, PORT, _counting, serve, handle) as server,
    ):
        with lab.client:
            opened = [socket.create_connection((lab.server.ip, PORT), timeout=10) for _ in range(8)]
        clients = [callers.enter_context(client) for client in opened]
        for client in clients:
            client.sendall(FAST)
        # A thread begins a moment after its connection, on a busy machine several.
        wait_until(
            lambda: backend.waiting >= expected and len(server.threads()) >= count,
            what=f"{expected} requests at the backend, of {count} threads,",
        )
        happens(lambda: backend.waiting > expected, 0.1)  # is that all of them?
        waited, threads = backend.waiting, len(server.threads())
        backend.release()
        return waited, threads, sorted(int(client.recv(4096)[-1:]) for client in clients)


def _send(lab: Lab, path: str, callers: contextlib.ExitStack) -> socket.socket:
    with lab.client:
        client = callers.enter_context(socket.create_connection((lab.server.ip, PORT), timeout=10))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: server.lab\r\n\r\n".encode())
    return client


def _status(client: socket.socket, seconds: float = 10) -> str:
    client.settimeout(seconds)
    try:
        return client.recv(4096).split()[1].decode()
    except TimeoutError:
        return "no answer"


@recorded
def backend_hangs(
    lab: Lab, pool: Callable[..., object], protect: Callable[..., object], waiting: int, returning: int
) -> tuple[str, list[str], History]:
    """Four clients ask a server of four workers for `/slow`, whose backend hangs, and then one for `/health`.

    Where that gets no answer in two seconds, four more ask for `/health`.

    Args:
        lab: the lab.
        pool: the server, called with its address and `protect`.
        protect: how it asks the backend.
        waiting: how many of the four wait for the backend then. Waits until it is so.
        returning: how many of the four come back before the backend is well again. Waits for them.

    Returns:
        the status of the health check, or "no answer"; those of the four slow ones; the server's queues.
    """
    with (
        contextlib.ExitStack() as callers,
        Backend(lab) as backend,
        ServerProcess(lab.server, PORT, pool, protect),
        lab.watch(PORT) as watch,
    ):
        slow = [_send(lab, "/slow", callers) for _ in range(4)]
        wait_until(lambda: backend.waiting >= waiting, what=f"{waiting} requests at the backend")
        checked = _status(_send(lab, "/health", callers), PATIENCE_S)
        if checked == "no answer":
            for _ in range(4):
                _send(lab, "/health", callers)
            wait_until(lambda: watch.so_far().accept_queue.last == 5, what="an accept queue of 5")
        wait_until(lambda: len(select.select(slow, [], [], 0)[0]) == returning, what=f"the answer to {returning} of 4")
        backend.release()
        statuses = sorted(map(_status, slow))
        watch.close()
    return checked, statuses, watch.history
