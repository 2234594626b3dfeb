"""The servers of the book's execution patterns, side by side. Each stands in its section, too, to be read there.

All take the address to listen on. Those with workers take ``start``, which makes a worker a thread or a process.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import select
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any

from book.execution import workload
from book.execution.workers import EPOLLEXCLUSIVE, Start, process, readable, thread
from book.execution.workload import work

WORKERS = 4


def answer(connection: socket.socket) -> bool:
    """Read one request, do its work, respond. False when the client has gone."""
    try:
        request = connection.recv(4096)
        if request:
            connection.sendall(work(request))
    except ConnectionError:
        return False
    return bool(request)


# Listener, acceptor, reader


def read_until_closed(connection: socket.socket) -> None:
    with connection:
        while answer(connection):
            pass


def thread_per_connection(address: tuple[str, int]) -> None:
    listener = socket.create_server(address, backlog=128)
    for number in itertools.count(1):
        connection, _ = listener.accept()
        thread(f"reader {number}", read_until_closed, connection)


# One thread does all


def serve_all(listener: socket.socket) -> None:
    """Accept, read and respond in one thread: whatever is ready, in turn."""
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for ready in readable(selector):
                if ready is not listener:
                    if not answer(ready):
                        selector.unregister(ready)
                        ready.close()
                else:
                    connection, _ = listener.accept()
                    connection.setblocking(True)
                    selector.register(connection, selectors.EVENT_READ)


def one_thread(address: tuple[str, int]) -> None:
    serve_all(socket.create_server(address, backlog=128))


# One acceptor, many readers


def read_many(inbox: socket.socket) -> None:
    """Serve the connections that the acceptor hands over, in one thread."""
    with selectors.DefaultSelector() as selector:
        selector.register(inbox, selectors.EVENT_READ)
        while True:
            for ready in readable(selector):
                if ready is inbox:
                    _, (descriptor,), _, _ = socket.recv_fds(inbox, 1, 1)
                    selector.register(socket.socket(fileno=descriptor), selectors.EVENT_READ)
                elif not answer(ready):
                    selector.unregister(ready)
                    ready.close()


def many_readers(address: tuple[str, int], start: Start = process, readers: int = WORKERS) -> None:
    listener = socket.create_server(address, backlog=128)
    outboxes = []
    for number in range(1, readers + 1):
        outbox, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start(f"reader {number}", read_many, inbox)
        outboxes.append(outbox)
    for outbox in itertools.cycle(outboxes):
        connection, _ = listener.accept()
        with connection:
            socket.send_fds(outbox, [b"!"], [connection.fileno()])


# One acceptor and reader, balanced messages


def work_on_messages(inbox: socket.socket) -> None:
    """A worker: a request comes in, its response goes back. It sees no connection."""
    while request := inbox.recv(4096):
        inbox.sendall(work(request))


def receive(connection: socket.socket) -> bytes:
    """What a client sent; b"" when it has gone."""
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""


def balanced_messages(address: tuple[str, int], start: Start = process, workers: int = WORKERS) -> None:
    listener = socket.create_server(address, backlog=128)
    idle: list[socket.socket] = []
    busy: dict[socket.socket, socket.socket] = {}
    waiting: collections.deque[tuple[socket.socket, bytes]] = collections.deque()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        for number in range(1, workers + 1):
            worker, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            start(f"worker {number}", work_on_messages, inbox)
            selector.register(worker, selectors.EVENT_READ)
            idle.append(worker)
        while True:
            for ready in readable(selector):
                if ready is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif ready in busy:
                    with contextlib.suppress(OSError):  # the client has gone meanwhile
                        busy.pop(ready).sendall(ready.recv(4096))
                    idle.append(ready)
                elif request := receive(ready):
                    waiting.append((ready, request))
                else:
                    selector.unregister(ready)
                    ready.close()
            while waiting and idle:
                worker = idle.pop()
                busy[worker], request = waiting.popleft()
                worker.sendall(request)


# Many acceptors on one socket


def accept_and_serve(listener: socket.socket, flags: int) -> None:
    """Wait for the listener, which all acceptors share, and for the connections that were won from it."""
    connections: dict[int, socket.socket] = {}
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN | flags)
        while True:
            for descriptor, _ in epoll.poll():
                if descriptor in connections:
                    if not answer(connections[descriptor]):
                        connections.pop(descriptor).close()
                    continue
                with contextlib.suppress(BlockingIOError):  # another acceptor was quicker
                    connection, _ = listener.accept()
                    connections[connection.fileno()] = connection
                    epoll.register(connection, select.EPOLLIN)


def many_acceptors(
    address: tuple[str, int], start: Start = process, acceptors: int = WORKERS, flags: int = EPOLLEXCLUSIVE
) -> None:
    listener = socket.create_server(address, backlog=128)
    listener.setblocking(False)
    for number in range(1, acceptors + 1):
        start(f"acceptor {number}", accept_and_serve, listener, flags)
    signal.pause()


# Socket sharding


def serve_shard(address: tuple[str, int]) -> None:
    serve_all(socket.create_server(address, backlog=128, reuse_port=True))


def sharding(address: tuple[str, int], start: Start = process, shards: int = WORKERS) -> None:
    for number in range(1, shards + 1):
        start(f"shard {number}", serve_shard, address)
    signal.pause()


# Patterns in a process of their own, with another work, a longer wait, or a word for each turn


def with_work(
    address: tuple[str, int], serve: Callable[[tuple[str, int]], object], other: Callable[[bytes], bytes]
) -> None:
    """Run one of the patterns whose requests do another work than all others', in a process of its own.

    Args:
        address: to listen on.
        serve: the pattern.
        other: takes a request and returns the response.
    """
    global work
    work = other  # type: ignore[assignment]
    serve(address)


def slower(address: tuple[str, int], wait_s: float, serve: Callable[..., object], *args: Any) -> None:
    """Run a server whose slow requests wait this long."""
    workload.WAIT_S = wait_s
    serve(address, *args)


def noted(address: tuple[str, int], serve: Callable[[tuple[str, int]], object]) -> None:
    """Run a server with selectors so that it prints, for each of its turns, how many sockets are ready."""
    asks = selectors.DefaultSelector.select

    def select_and_note(selector: Any, timeout: float | None = None) -> Any:
        ready = asks(selector, timeout)
        print(len(ready), flush=True)
        return ready

    selectors.DefaultSelector.select = select_and_note  # type: ignore[assignment, method-assign]
    serve(address)
