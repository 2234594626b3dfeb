"""What the section "SYN and accept queues" measures with, on busy machines, too."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from book import recorded
from book.execution.clients import PORT, WAIT_S, call, is_connected, listen, new_clients
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.network.host import Counters
from labkit.queues.history import History
from labkit.queues.watch import Watch
from labkit.waiting import wait_until

P = ParamSpec("P")
T = TypeVar("T")
Run = Callable[Concatenate[Lab, P], T]

TRIES = 5
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def steadily(run: Run[P, T]) -> Run[P, T]:
    """Decorates an experiment: it is made again where it raises MeasurementFailed, because the machine was held up."""

    @functools.wraps(run)
    def again(lab: Lab, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TRIES - 1):
            lab.wire.settle()  # what an earlier run sent has arrived
            with contextlib.suppress(MeasurementFailed):
                return run(lab, *args, **kwargs)
        lab.wire.settle()
        return run(lab, *args, **kwargs)

    return cast(Run[P, T], again)


@contextlib.contextmanager
def sent_once(lab: Lab, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """In this block no client's timer sends a SYN again.

    Args:
        lab: the lab.
        wanted: False for a block that takes so long that timers do.

    Yields:
        looks, for a part of the block.

    Raises:
        MeasurementFailed: one was sent again. The machine was held up for about a second.
    """
    before = lab.client.counters

    def check() -> None:
        if again := (lab.client.counters - before)["TcpExtTCPSynRetrans"]:
            raise MeasurementFailed(f"{again} SYNs were sent again, after a second: is the machine busy?")

    yield check
    if wanted:
        check()


def settle(watch: Watch, clients: int) -> None:
    """Wait until the server's kernel has put so many clients into the accept queue, or dropped something of theirs."""

    def decided() -> bool:
        seen = watch.so_far()
        return seen.accept_queue.last + seen.counters.get("TcpExtListenDrops", 0) >= clients

    wait_until(decided, what=f"the server's decision about {clients} clients")


def accept_all(listener: socket.socket, accepted: list[socket.socket]) -> int:
    """Accept what is there, without waiting. Returns how many have been accepted by now."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    return len(accepted)


def serve_and_ask(listener: socket.socket, opened: list[socket.socket]) -> None:
    """Each of the clients asks as soon as it is connected, and is answered by one thread that accepts them in turn."""

    def serve() -> None:
        listener.settimeout(WAIT_S)
        for _ in opened:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(OK)

    def ask(client: socket.socket) -> None:
        wait_until(lambda: is_connected(client), what="a connection")
        client.settimeout(WAIT_S)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.recv(65536)

    with ThreadPoolExecutor(len(opened) + 1) as threads:
        served = threads.submit(serve)
        list(threads.map(ask, opened))
        served.result()


def each_client(capture: Captured) -> Iterator[tuple[list[float], float, float]]:
    """Of each client: when its SYNs left, when the SYN-ACK and the response came, in seconds after the first SYN."""
    groups = [group for group in connections(capture.messages) if begins(group[0])]
    start_ns = groups[0][0].transit.time_ns
    for group in groups:
        syns = [packet.transit.time_ns for packet in group if packet.from_client and "SYN" in packet.flags]
        came = {
            "SYN" in packet.flags: packet.transit.received_ns
            for packet in group
            if not packet.from_client and (packet.payload or "SYN" in packet.flags)
        }
        connected_ns, answered_ns, *_ = (moment or start_ns for moment in came.values())
        seconds = [(ns - start_ns) / 1e9 for ns in (*syns, connected_ns, answered_ns)]
        yield seconds[:-2], seconds[-2], seconds[-1]


def counters_of_this_machine() -> Counters:
    """The counters of the network that this process is in, which is no host of a lab."""
    snmp, netstat = (Path(f"/proc/net/{name}").read_text() for name in ("snmp", "netstat"))
    return Counters.parse(snmp, netstat, "")


@recorded
@steadily
def wave(lab: Lab, clients: int, every_ms: float, accept_every_ms: float) -> History:
    """Clients connect at one pace, the server accepts at another, and the notebook draws the queues meanwhile.

    Args:
        lab: the lab.
        clients: how many.
        every_ms: from one client to the next.
        accept_every_ms: from one ``accept`` to the next.
    """
    from IPython.display import display

    from labkit.plots import live

    with contextlib.ExitStack() as opened, listen(lab.server, backlog=32) as listener, lab.watch(PORT) as watch:
        show: Any = display
        show(live(watch))
        waiting = new_clients(lab, clients, opened)
        listener.setblocking(False)
        begin, called, accepted = time.monotonic(), 0, 0
        while accepted < clients:
            now_ms = (time.monotonic() - begin) * 1000
            if called < clients and now_ms >= called * every_ms:
                call(lab, waiting[called])
                called += 1
            if now_ms >= accepted * accept_every_ms:
                with contextlib.suppress(BlockingIOError):
                    opened.enter_context(listener.accept()[0])
                    accepted += 1
            time.sleep(0.002)  # the pace of the clients, not a wait for something
    return watch.history
