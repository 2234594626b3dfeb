"""Fill a listener's queues until the kernel takes no more, and keep what it says meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any

from labkit import checks
from labkit.network.host import Host
from labkit.queues.history import History
from labkit.queues.watch import Watch

PORT = 8080


@dataclass(frozen=True)
class Filled:
    """What ``fill`` saw.

    Attributes:
        backlog: what the listener asked for.
        somaxconn: ``net.core.somaxconn`` of its host.
        clients: how many connected at once; the listener accepted none of them.
        established: of how many the client's kernel says that they are established.
        history: queues, limit and counters over time.
    """

    backlog: int
    somaxconn: int
    clients: int
    established: int
    history: History

    @property
    def accepted(self) -> int:
        """How many connections the kernel took for the application to accept: the accept queue's capacity, if full."""
        return self.history.accept_queue.peak

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        about = {name: getattr(self, name) for name in ("backlog", "somaxconn", "clients", "established")}
        limit = {"limit": self.history.limit.last, "accept_queue_peak": self.accepted}
        return {**about, **limit, "syn_queue_peak": self.history.syn_queue.peak, "history": self.history.as_data()}

    def __repr__(self) -> str:
        moved = {name: n for name, n in self.history.counters.items() if name.startswith("TcpExt")}
        counters = "".join(f"\n  {name:32} {count:6}" for name, count in moved.items())
        return (
            f"backlog {self.backlog}, somaxconn {self.somaxconn}: limit {self.history.limit.last}\n"
            f"{self.clients} clients connect, none is accepted\n"
            f"accept queue: {self.accepted} at most; SYN queue: {self.history.syn_queue.peak} at most; "
            f"clients that think they are connected: {self.established}\n"
            f"{self.history.looks} looks in {self.history.duration_s:.2f} s, tier: {self.history.tier}\n"
            f"Kernel counters of the server that moved:{counters or ' none'}"
        )


def fill(client: Host, server: Host, *, backlog: int = 4, clients: int = 12, seconds: float = 1.5) -> Filled:
    """Open a listener that accepts nothing, and connect many clients to it at once.

    Args:
        client, server: hosts of one lab.
        backlog: of listen(2), 0 or more.
        clients: how many connect, from 1 to 4000.
        seconds: how long to watch: 1.5 s show the first retransmission of a SYN (RFC 6298: after 1 s).

    Returns:
        depths over time, the limit, and the kernel's counters as differences.

    Raises:
        InvalidValue: a number that cannot be. NotAvailableHere: the tier "loopback".
    """
    for name, host in (("client", client), ("server", server)):
        checks.instance(name, host, Host, "a host of the lab, for instance lab.client")
    checks.whole("backlog", backlog, 0, 2**31 - 1)
    checks.whole("clients", clients, 1, 4000)
    checks.number("seconds", seconds, 0, 600, unit="seconds")
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(server, PORT, connections=False))
        with server:
            listener = stack.enter_context(socket.create_server((server.ip, PORT), backlog=backlog))
        opened = []
        with client:
            for _ in range(clients):
                opened.append(stack.enter_context(socket.socket()))
                opened[-1].setblocking(False)
                opened[-1].connect_ex((server.ip, listener.getsockname()[1]))
        time.sleep(seconds)
        established = sum(1 for sock in opened if _connected(sock))
        watch.close()  # before the listener is closed, and its queue with it
        somaxconn = int(server.sysctl["net.core.somaxconn"])
    return Filled(backlog, somaxconn, clients, established, watch.history)


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
