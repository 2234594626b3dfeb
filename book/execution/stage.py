"""A server whose workers ask a database, and clients that wait for them: who waits for whom, and what comes of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import psutil

from book.execution.clients import PORT, Callers, listen
from book.execution.workload import DATABASE
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.waiting import wait_until


class Stage:
    """A server, clients that ask it, and a database that answers when it is told to.

    Args:
        lab: with a host "database".
        serve: the server function.
        count: of the clients.

    Attributes:
        server, watch, callers: the server's process, its queues, and the clients.
    """

    def __init__(self, lab: Lab, serve: Callable[..., object], count: int = 8) -> None:
        with contextlib.ExitStack() as opened:
            self._database = opened.enter_context(listen(lab["database"], DATABASE[1]))
            self.server = opened.enter_context(ServerProcess(lab.server, PORT, serve))
            self.watch = opened.enter_context(lab.watch(PORT))
            self.callers = opened.enter_context(Callers(lab, PORT, count))
            self._opened = opened.pop_all()
        self._queries: list[socket.socket] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def wait_for_queries(self, count: int) -> None:
        """Until so many workers more ask the database."""
        for _ in range(count):
            query, _ = self._database.accept()
            self._queries.append(self._opened.enter_context(query))

    def answer_queries(self) -> float:
        """The database answers all. Returns when, in seconds since the first request."""
        now_s = self.callers.now()
        for query in self._queries:
            query.close()
        return now_s

    def worker(self, name: str) -> psutil.Process:
        """The server's process whose thread has this name, "reader 3"."""
        return psutil.Process(next(each.pid for each in self.server.threads().values() if each.name == name))


def stop(worker: psutil.Process) -> None:
    """The kernel stops a process (SIGSTOP). Returns when it has stopped; ``worker.resume()`` lets it go on."""
    worker.suspend()
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, what=f"the stop of process {worker.pid}")


def kill(worker: psutil.Process) -> None:
    """End a process (SIGKILL). Returns when it has ended."""
    worker.kill()
    wait_until(lambda: worker.status() == psutil.STATUS_ZOMBIE, what=f"the end of process {worker.pid}")
