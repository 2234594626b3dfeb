"""What the section "Listener, acceptor, reader" measures with: looks at queues and threads, and who is behind."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any

from book import recorded
from book.execution.clients import PORT, WAIT_S, connect, is_connected
from book.execution.kernel import unacknowledged, unread
from book.execution.workload import FAST
from labkit.capture.captured import Captured
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.queues.history import History
from labkit.queues.watch import Watch
from labkit.waiting import wait_until


def look(clients: Sequence[socket.socket], watch: Watch, server: ServerProcess) -> dict[str, int]:
    """What clients that have asked once, the kernel's queues and the server's threads say at this moment."""
    seen = watch.so_far()
    return {
        "clients that are connected": sum(map(is_connected, clients)),
        "bytes acknowledged": sum(len(FAST) - unacknowledged(client) for client in clients),
        "in the accept queue": seen.accept_queue.last,
        "bytes in receive queues": unread(seen),
        "threads": len(server.threads()),
    }


class Steps:
    """Calls, one at a time, and what each of them did to the queues of a lab's server. Closes the sockets in the end.

    Attributes:
        rows: of each call: its name, connections in the accept queue, bytes in the receive queues.
    """

    def __init__(self, lab: Lab) -> None:
        self.rows: list[tuple[str, int, int]] = []
        self._opened = contextlib.ExitStack()
        self._watch = self._opened.enter_context(lab.watch(PORT, connections=True))

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def __call__(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        """Call a function, wait until a number has changed, and add a row. Returns what the function returned."""
        before = self._numbers()
        result = call(*args)
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, socket.socket):
                self._opened.enter_context(each)
        if self.rows:  # the first one listens, and there is nothing yet
            wait_until(lambda: self._numbers() != before, what=f"an effect of {name}")
        self.rows.append((name, *self._numbers()))
        return result

    def _numbers(self) -> tuple[int, int]:
        seen = self._watch.so_far()
        return seen.accept_queue.last, unread(seen)


def sent_by_the_server(capture: Captured, continued_ns: int) -> dict[str, list[str]]:
    """What the server's host sent on the first connection, each once, before and after its process went on.

    A timer may send something again where the machine is slow; and of what came later only what carries data is told.
    """
    first = next(group for group in connections(capture.messages) if begins(group[0]))
    sent = [packet for packet in first if not packet.from_client and not packet.retransmission]
    stopped = [packet.what for packet in sent if packet.transit.time_ns < continued_ns]
    continued = [packet.what for packet in sent if packet.transit.time_ns >= continued_ns and packet.payload]
    return {"stopped": list(dict.fromkeys(stopped)), "continued": list(dict.fromkeys(continued))}


@recorded
def hang(lab: Lab, serve: Callable[..., object], place: str, count: int) -> tuple[dict[str, int], History]:
    """So many clients ask a server that hangs for good.

    Args:
        lab: the lab.
        serve: the server; it prints a line for each of its threads that hangs.
        place: in which it hangs. An acceptor hangs once, a reader for each client.
        count: of clients.

    Returns:
        where the clients are, as the kernel sees them, and how many threads there are; the queues.
    """
    hanging_threads = 1 if place == "acceptor" else count
    with (
        contextlib.ExitStack() as opened,
        ServerProcess(lab.server, PORT, serve, place) as server,
        lab.watch(PORT, connections=True) as watch,
    ):
        clients = connect(lab, count, opened)
        for client in clients:
            client.sendall(FAST)
        wait_until(lambda: not any(map(unacknowledged, clients)))
        wait_until(lambda: server.stdout.count("\n") == hanging_threads)  # each has said so
        watch.close()  # with a last look, before the server ends, and its queues with it
        history, threads = watch.history, len(server.threads())
    seen = {
        "in the accept queue": history.accept_queue.last,
        "with unread bytes": sum(each.receive_queue.last > 0 for each in history.connections.values()),
        "threads of the server": threads,
    }
    return seen, history


@recorded
def crowd_of_idle(
    lab: Lab, silent: int, readers: int, wait_s: float, serve: Callable[..., object], *args: Any
) -> tuple[int, int, bool]:
    """So many clients connect and say nothing; then one comes that asks.

    Args:
        lab: the lab.
        silent: how many say nothing.
        readers: how many threads the server then has for them.
        wait_s: how long the last client waits for its response, seconds.
        serve, args: the server.

    Returns:
        threads, the accept queue in the end, and whether the last client was answered.
    """
    with (
        contextlib.ExitStack() as opened,
        ServerProcess(lab.server, PORT, serve, *args) as server,
        lab.watch(PORT) as watch,
    ):
        connect(lab, silent, opened)
        wait_until(lambda: len(server.threads()) > readers)
        wait_until(lambda: not watch.so_far().accept_queue.last)
        held = len(server.threads())
        (client,) = connect(lab, 1, opened)
        client.sendall(FAST)
        client.settimeout(min(wait_s, WAIT_S))
        try:
            answered = client.recv(4096).startswith(b"HTTP/1.1 200")
        except TimeoutError:
            answered = False
        watch.close()  # with a last look
        return held, watch.history.accept_queue.last, answered
