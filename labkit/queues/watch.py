"""``with lab.watch(8080) as watch:`` — the kernel's queues of a port, sampled while the block runs."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from typing import Any

from labkit import checks, child
from labkit.errors import LabClosed, NotReady
from labkit.network.host import Host
from labkit.queues.diag import NETLINK_SOCK_DIAG
from labkit.queues.history import History, build

END_S = 10.0


class Watch:
    """Samples the queues of one port of a host, in a process of its own. Made by ``lab.watch``; starts at once.

    Args:
        host: whose kernel is asked.
        port: of a server: on the server's host its listeners and connections are seen, on a client's its connections.
        every_us: from one look to the next, microseconds. A busy machine looks less often: see ``History.looks``.
        connections: look at each connection, too.
        tcp: look at all that the kernel knows of each connection: ``History.tcp``.

    Attributes:
        closed: whether it has ended.

    Raises:
        InvalidValue: a port or a period that cannot be. LabClosed.
        NotAvailableHere: a lab whose hosts have no kernel's network of their own.
        NotReady: the process did not start in time.
    """

    def __init__(
        self, host: Host, port: int, *, every_us: float = 1000, connections: bool = False, tcp: bool = False
    ) -> None:
        checks.instance("host", host, Host, "a host of the lab, for instance lab.server")
        checks.port("port", port)
        checks.flag("connections", connections)
        checks.flag("tcp", tcp)
        checks.number("every_us", every_us, 100, 10_000_000, unit="microseconds")
        self.host, self.port = host, port
        self.closed = False
        self._tier = host.engine.tier
        self._samples: list[dict[str, Any]] = []
        self._history: History | None = None
        self._first, self._lock = threading.Event(), threading.RLock()
        looked_at = "tcp" if tcp else "connections" if connections else "listeners"
        netlink = host.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        with netlink:
            self._before = host.counters
            self._process = child.start(
                "labkit.queues.sampler",
                *(netlink.fileno(), port, round(every_us), looked_at),
                pass_fds=[netlink.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        try:
            self._reader = threading.Thread(target=self._read, name=f"labkit-watch-{port}", daemon=True)
            self._reader.start()
            host.lab.register(self)
            if not self._first.wait(END_S):
                raise NotReady(f"the watch on {host.fqdn}:{port} did not begin in {END_S:g} s: try again")
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        # Closed by this thread: after an interrupt of its start it may come to run when `close` is long over.
        with self._process.stdout as lines:
            for line in lines:
                self._samples.append(json.loads(line))
                self._first.set()

    def __enter__(self) -> Watch:
        if self.closed:
            raise LabClosed("this watch has ended: take a new one with lab.watch()")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "ended" if self.closed else "running"
        return f"<Watch {self.host.fqdn}:{self.port}, {len(self._samples)} changes, {state}>"

    def so_far(self) -> History:
        """What was sampled up to this moment."""
        if self._history is not None:
            return self._history
        end_ns = time.time_ns()
        moved = (self.host.counters - self._before).changed()
        about = {"host": self.host.name, "port": self.port, "counters": moved, "tier": self._tier}
        return build(list(self._samples), end_ns, **about)

    @property
    def history(self) -> History:
        """What was sampled, once it has ended. Raises LabClosed as long as it runs: take ``so_far()`` then."""
        if self._history is None:
            raise LabClosed("this watch still runs: its history is there behind its block; until then take so_far()")
        return self._history

    def close(self) -> None:
        """End it; the history stays. Closing twice is fine."""
        with self._lock:
            if self.closed:
                return
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            child.end(self._process, END_S)
            if self._reader.is_alive():
                self._reader.join(END_S)
            if self._samples:
                with contextlib.suppress(LabClosed):  # its hosts are gone, and their counters with them
                    self._history = self.so_far()
            self.closed = True
