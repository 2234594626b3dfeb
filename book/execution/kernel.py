"""What the chapter asks a host's kernel: its counters, the bytes that wait in its queues, its settings."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Iterator

from labkit.network.host import Host
from labkit.queues.history import History
from labkit.queues.watch import Watch


def counted(watch: Watch, name: str) -> int:
    """How often the kernel of a watched host has counted something since the watch began: "ListenDrops"."""
    return watch.so_far().counters.get(f"TcpExt{name}", 0)


def unread(history: History) -> int:
    """Bytes that wait in the receive queues of a port, all connections together, at the end of a history."""
    return sum(connection.receive_queue.last for connection in history.connections.values())


def unacknowledged(client: socket.socket) -> int:
    """Bytes in the send queue: written, and not acknowledged by the other kernel yet (tcp(7): SIOCOUTQ)."""
    return _queue(client, termios.TIOCOUTQ)


def unsent(client: socket.socket) -> int:
    """Those bytes of the send queue that have not left yet (linux/sockios.h: SIOCOUTQNSD)."""
    return _queue(client, 0x894B)


def _queue(sock: socket.socket, question: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock, question, bytes(4)))
    return int(count)


@contextlib.contextmanager
def setting(host: Host, name: str, value: object) -> Iterator[None]:
    """A host's kernel setting for the length of a block. One that has the value already is not written.

    Args:
        host: whose kernel.
        name: as in sysctl(8), "net.core.somaxconn".
        value: a number or a text.
    """
    before = host.sysctl[name]
    if before == str(value):
        yield
        return
    host.sysctl[name] = str(value)
    try:
        yield
    finally:
        host.sysctl[name] = before
