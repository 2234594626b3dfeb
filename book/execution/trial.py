"""One server under load: throughput and latency, its queues over time, and what each of its threads did meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.load.load import Load, load
from labkit.load.server_process import ServerProcess
from labkit.network.host import Host
from labkit.queues.history import History
from labkit.queues.run_queue import ThreadTimes, between
from labkit.queues.watch import Watch
from labkit.recordable import Recordable

LOOK_S = 0.1


@dataclass(frozen=True)
class Trial(Recordable):
    """What a server did under load.

    Attributes:
        name: what the server is called in plots.
        load: throughput and latencies, as the clients saw them.
        history: the queues of the server's port.
        threads: what each of the server's threads did while the load ran; of threads that ended before the load did,
            up to their last look.
        observed_s: for how long the threads were observed, seconds.
    """

    name: str
    load: Load
    history: History
    threads: tuple[ThreadTimes, ...]
    observed_s: float

    @property
    def tier(self) -> str:
        """Of the lab, or where and when it was recorded."""
        return self.load.tier

    def as_data(self) -> dict[str, Any]:
        """See ``Recordable``."""
        return {
            "name": self.name,
            "load": self.load.as_data(),
            "history": self.history.as_data(),
            "threads": [times.as_data() for times in self.threads],
            "observed_s": self.observed_s,
        }

    @classmethod
    def of_data(cls, data: Mapping[str, Any], tier: str | None = None) -> Trial:
        """See ``Recordable``."""
        return cls(
            name=data["name"],
            load=Load.of_data(data["load"], tier),
            history=History.of_data(data["history"], tier),
            threads=tuple(ThreadTimes(**times) for times in data["threads"]),
            observed_s=data["observed_s"],
        )


def trial(
    server_host: Host,
    function: Callable[..., object],
    *args: Any,
    name: str | None = None,
    port: int = 8080,
    clients_on: Host | None = None,
    listeners: int = 1,
    **options: Any,
) -> Trial:
    """Run a server function in a process of its own, load it, and watch.

    Args:
        server_host: where the server runs.
        function, args, listeners: see ``ServerProcess``.
        name: what it is called in plots; by default the function's name, with spaces.
        port: where it listens.
        clients_on: where the clients run. By default on the server's host, whose loopback does not cross the wire:
            so it is the server that is measured, and not the wire.
        options: of ``load``: clients, seconds, rate, requests, …

    Raises:
        InvalidValue, NotAvailableHere, LabError: as ``ServerProcess`` and ``load`` do; nothing is left running.
    """
    with ServerProcess(server_host, port, function, *args, listeners=listeners) as server:
        with Watch(server_host, port) as watch, _Threads(server) as threads:
            result = load(clients_on or server_host, server_host, port, **options)
    called = name or getattr(function, "__name__", "server").replace("_", " ")
    return Trial(called, result, watch.history, between(threads.first, threads.last), threads.observed_s)


class _Threads:
    """Looks at a server's threads again and again: those that end before the load does are not forgotten."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="labkit-threads", daemon=True)
        self._began = time.monotonic()
        self.observed_s = 0.0
        self.first = server.threads()
        self.last = dict(self.first)

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.last |= self._server.threads()

    def __enter__(self) -> _Threads:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self.last |= self._server.threads()
        self.observed_s = time.monotonic() - self._began
