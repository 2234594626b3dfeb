"""Listeners that share a port: who gets a connection, and what becomes of those that wait when one hangs or ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from book import recorded
from book.execution.clients import PORT
from book.execution.kernel import counted
from book.execution.patterns import WORKERS
from book.execution.workload import FAST
from labkit.errors import MeasurementFailed
from labkit.load.server_process import ServerProcess
from labkit.queues.run_queue import state
from labkit.waiting import WAIT_S, wait_until

if TYPE_CHECKING:
    from labkit.capture.captured import Captured
    from labkit.lab import Lab
    from labkit.queues.history import History
    from labkit.queues.watch import Watch

Labels = dict[int, str]  # of shards, by inode


def open_shards(lab: Lab, count: int, opened: contextlib.ExitStack, backlog: int = 256) -> list[socket.socket]:
    """So many listeners on one port of the lab's server, which `opened` closes when it ends."""
    with lab.server:
        return [
            opened.enter_context(socket.create_server((lab.server.ip, PORT), backlog=backlog, reuse_port=True))
            for _ in range(count)
        ]


def call_from(lab: Lab, opened: contextlib.ExitStack, port: int = 0) -> socket.socket:
    """A client whose SYN has left, and which nobody waits for.

    Args:
        lab: the lab.
        opened: closes it, with a reset: no TIME_WAIT keeps its port.
        port: of the client; any one by default.
    """
    with lab.client:
        client = opened.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind((lab.client.ip, port))
    client.setblocking(False)
    client.connect_ex((lab.server.ip, PORT))
    return client


def inode(shard: socket.socket) -> int:
    """The number by which the kernel tells sockets apart."""
    return os.fstat(shard.fileno()).st_ino


def depth(watch: Watch, shard: socket.socket) -> int:
    """How many connections wait in the queue of one shard."""
    seen = watch.so_far().listeners.get(inode(shard))
    return seen.accept_queue.last if seen else 0


def labels_of(shards: Sequence[socket.socket]) -> Labels:
    """Names for a plot: "shard 1" and so on."""
    return {inode(shard): f"shard {number}" for number, shard in enumerate(shards, 1)}


def so_far(watch: Watch, labels: Labels) -> History:
    """What the watch has seen, the shards in the order of their labels: the kernel lists them in one of its own."""
    history = watch.so_far()
    return replace(history, listeners={each: history.listeners[each] for each in labels})


def assign(lab: Lab, shards: Sequence[socket.socket], ports: Sequence[int]) -> dict[int, int]:
    """Connect from each of these ports, and see which shard gets it.

    Args:
        lab: the lab.
        shards: all listeners of the port.
        ports: of the client.

    Returns:
        the shard's place in `shards`, from 0, by port.
    """
    given: dict[int, int] = {}
    with contextlib.ExitStack() as opened:
        for port in ports:
            call_from(lab, opened, port)
        while len(given) < len(ports):
            ready, _, _ = select.select(shards, [], [], WAIT_S)
            if not ready:
                raise MeasurementFailed(f"{len(ports) - len(given)} of {len(ports)} connections did not come")
            for shard in ready:
                connection, (_, port) = shard.accept()
                connection.close()
                given[port] = shards.index(shard)
    return given


@recorded
def spread(lab: Lab, shards: int, connections: int) -> tuple[list[int], History]:
    """So many connections to so many shards. Returns how many each shard got, and the queues."""
    with contextlib.ExitStack() as opened, lab.watch(PORT) as watch:
        listeners = open_shards(lab, shards, opened)
        given = Counter(assign(lab, listeners, range(20000, 20000 + connections)).values())
        history = watch.so_far()
    return [given[shard] for shard in range(shards)], history


@recorded
def one_hangs(lab: Lab, backlog: int) -> tuple[History, Labels, dict[str, int]]:
    """Shard 1 of four accepts nothing, the others accept at once. Clients connect one after the other.

    The last one is that whose SYN is dropped because the queue of shard 1 is full, and dropped again when it is resent.

    Args:
        lab: the lab.
        backlog: of each shard.

    Returns:
        the queues, the shards' names, and the counts in the end.
    """
    clients: list[socket.socket] = []
    accepted: list[socket.socket] = []
    with contextlib.ExitStack() as opened, lab.watch(PORT) as watch:
        hung, *others = shards = open_shards(lab, 4, opened, backlog)

        def dropped() -> int:
            return counted(watch, "ListenOverflows")

        def accept_what_is_there() -> None:
            ready, _, _ = select.select(others, [], [], 0)
            accepted.extend(opened.enter_context(shard.accept()[0]) for shard in ready)

        def settled() -> bool:
            accept_what_is_there()
            return len(accepted) + depth(watch, hung) + dropped() >= len(clients)

        while not dropped():
            clients.append(call_from(lab, opened))
            wait_until(settled, what=f"what becomes of client {len(clients)}")
        wait_until(lambda: dropped() >= 2, what="the drop of the SYN that is sent again")
        accept_what_is_there()
        for connection in accepted:
            connection.close()
        wait_until(lambda: not any(depth(watch, shard) for shard in others), what="the end of the other queues")
        numbers = {
            "clients": len(clients),
            "served by the other three": len(accepted),
            "waiting for shard 1": depth(watch, hung),
            "waiting for the other three": sum(depth(watch, shard) for shard in others),
            "limit of each queue": int(watch.so_far().listeners[inode(hung)].limit.last),
            "SYNs dropped": dropped(),
        }
        labels = labels_of(shards)
        return so_far(watch, labels), labels, numbers


def close_one(lab: Lab) -> tuple[History, Labels, Captured, dict[str, int]]:
    """Forty clients wait in the queues of four shards, and the one with the longest queue is closed.

    Returns:
        the queues, the shards' names, what crossed the wire, and how many waited for that shard and were reset.
    """
    with contextlib.ExitStack() as opened, lab.watch(PORT) as watch:
        shards = open_shards(lab, 4, opened)
        labels = labels_of(shards)
        clients = [call_from(lab, opened) for _ in range(40)]
        wait_until(lambda: watch.so_far().accept_queue.last == len(clients), what=f"the queues of {len(clients)}")
        doomed = max(shards, key=lambda shard: depth(watch, shard))
        held, number = depth(watch, doomed), inode(doomed)
        with lab.capture() as capture:
            doomed.close()

            def done() -> bool:
                seen = watch.so_far()
                resets = seen.counters.get("TcpOutRsts", 0)
                if resets + counted(watch, "TCPMigrateReqSuccess") < held or seen.listeners[number].accept_queue.last:
                    return False
                return seen.accept_queue.last == len(clients) - resets  # the watch sees it a moment later

            wait_until(done, what=f"the end of a queue of {held}")
        resets = sum(map(_is_reset, clients))
        return so_far(watch, labels), labels, capture, {"held": held, "reset": resets}


def _is_reset(client: socket.socket) -> bool:
    try:
        client.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return False


@recorded
def replace_worker(lab: Lab, serve: Callable[..., object], clients: int) -> tuple[History, Labels, dict[str, int]]:
    """A worker of four is stopped, clients connect and ask, the other three answer theirs, and it is killed.

    Args:
        lab: the lab.
        serve: the server, with four shards.
        clients: how many.

    Returns:
        the queues, the workers' names, and what became of the clients that waited for that worker.
    """
    with (
        contextlib.ExitStack() as opened,
        ServerProcess(lab.server, PORT, serve, listeners=WORKERS) as server,
        lab.watch(PORT) as watch,
    ):
        worker = max({each.pid for each in server.threads().values()} - {server.pid})
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: state(worker) == "T", what="the stop of a worker")
        callers = [call_from(lab, opened) for _ in range(clients)]
        for client in callers:
            client.settimeout(WAIT_S)
            select.select([], [client], [], WAIT_S)  # connected
            client.sendall(FAST)
        seen: dict[socket.socket, str] = {}

        def settled() -> bool:
            for client in callers:
                if seen.get(client, "waits") == "waits":
                    seen[client] = _fate(client, 0.001)
            late = sum(each == "waits" for each in seen.values())
            depths = [each.accept_queue.last for each in watch.so_far().listeners.values()]
            return [each for each in depths if each] == [late]  # all wait in one queue

        wait_until(settled, what="the answers of the other workers")
        waiting = [client for client in callers if seen[client] == "waits"]
        queues = watch.so_far().listeners
        ended, *others = sorted(queues, key=lambda each: -queues[each].accept_queue.last)
        labels = {ended: "hanging worker"}
        labels |= {other: f"worker {number}" for number, other in enumerate(others, 2)}
        os.kill(worker, signal.SIGKILL)
        fates = Counter(_fate(client, WAIT_S) for client in waiting)
        return so_far(watch, labels), labels, {"in the queue": len(waiting), **fates}


def _fate(client: socket.socket, wait_s: float) -> str:
    client.settimeout(wait_s)
    try:
        return "answered" if client.recv(4096).startswith(b"HTTP/1.1 200") else "closed"
    except TimeoutError:
        return "waits"
    except ConnectionResetError:
        return "reset"
