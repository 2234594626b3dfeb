"""A server that stands in a cell, run in a process of its own on a host: nothing else competes for its GIL.

::

    def serve(address):
        listener = socket.create_server(address, backlog=16)
        ...

    with ServerProcess(lab.server, 8080, serve) as server:
        server.threads()        # CPU time, run queue and context switches of each of its threads

``cloudpickle`` takes the function there. The process may fork: its children end with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit import checks, child
from labkit.errors import InvalidValue, LabClosed, LabError, NameTaken, NotReady
from labkit.load.thread_names import call_this_thread, name_threads
from labkit.network.host import Host
from labkit.network.process import Program
from labkit.queues.diag import LISTEN, NETLINK_SOCK_DIAG, ask, request
from labkit.queues.run_queue import ThreadTimes, threads_of, tree

START_S, END_S = 10.0, 5.0
LOOK_S = 0.005


class ServerProcess:
    """A server function in a process of its own on a host. Returns when the port listens.

    Args:
        host: where it runs.
        port: from 1 to 65535, on the host's address.
        function: called with ``(ip, port)``, and ``args``; it opens its listener itself and serves until it is ended.
        args: further arguments, which cloudpickle can take there.
        listeners: how many listening sockets it opens: more than one with SO_REUSEPORT.

    Attributes:
        pid: process id, as this notebook sees it.

    Raises:
        InvalidValue: a port that cannot be, or a function that cannot be taken there.
        NameTaken: another socket listens on that port.
        LabError: the function ended or failed before it listened; its last words are quoted.
        NotReady: it did not listen in time. NotAvailableHere: the tier "loopback".
    """

    def __init__(self, host: Host, port: int, function: Callable[..., object], *args: Any, listeners: int = 1) -> None:
        import cloudpickle

        checks.instance("host", host, Host, "a host of the lab, for instance lab.server")
        checks.port("port", port)
        checks.function("function", function)
        checks.whole("listeners", listeners, 1)
        try:
            # First the path, by which the process finds modules that the function is from.
            parcel = cloudpickle.dumps(sys.path) + cloudpickle.dumps((function, ((host.ip, port), *args)))
        except Exception as exc:
            raise InvalidValue(
                f"{function!r} cannot be taken to another process ({exc}): let it use no lab, no open socket and no "
                "lock of this notebook"
            ) from exc
        self.host, self.port = host, port
        self.closed = False
        self.pid = 0
        self._program: Program | None = None
        host.lab.register(self, f"{host.name}:{port}/tcp")  # closes its predecessor, which holds the port
        if listening(host, port):
            raise NameTaken(f"port {port}/tcp on {host.name} is taken: close what listens there, or use another port")
        try:
            self._program = host.start(child.command("labkit.load.server_process"), stdin=parcel)
            self._wait_until_it_listens(listeners)
            self.pid = self._find_pid()
        except BaseException:
            self.close()
            raise

    def _wait_until_it_listens(self, listeners: int) -> None:
        assert self._program is not None
        deadline = time.monotonic() + START_S
        while listening(self.host, self.port) < listeners:
            with contextlib.suppress(NotReady):
                status = self._program.wait(LOOK_S)
                raise LabError(
                    f"the server ended with {status} before it listened on port {self.port}. {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise NotReady(
                    f"the server does not listen on port {self.port} after {START_S:g} s. {self._last_words()}"
                )

    def _last_words(self) -> str:
        assert self._program is not None
        said = self._program.stderr.strip()[-2000:] or self._program.stdout.strip()[-2000:]
        return f"It said:\n{said}" if said else "It said nothing"

    def _find_pid(self) -> int:
        """The helper counts processes from 1 in its own PID namespace; the notebook is outside of that."""
        assert self._program is not None
        for pid in tree(self.host.engine.first_pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("NSpid:") and int(line.split()[-1]) == self._program.pid:
                        return pid
        raise LabError(f"the server on port {self.port} ended as soon as it listened. {self._last_words()}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<ServerProcess {self.host.fqdn}:{self.port}, process {self.pid}, {state}>"

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def threads(self) -> dict[int, ThreadTimes]:
        """Its threads, and those of its children, by thread id: see labkit.queues.run_queue."""
        return threads_of(tree(self.pid))

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._program.stderr if self._program else ""

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._program.stdout if self._program else ""

    def close(self) -> None:
        """End it and its children: none is left on return. What it said can still be read. Closing twice is fine."""
        if self._program is not None:
            children = tree(self.pid) if self.pid and self._program.returncode is None else []
            with contextlib.ExitStack() as stack:
                descriptors = []
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        descriptors.append(os.pidfd_open(pid))
                        stack.callback(os.close, descriptors[-1])
                with contextlib.suppress(LabClosed):
                    self._program.send_signal(signal.SIGCONT)  # one that was stopped would not heed SIGTERM
                self._program.close()
                # The kernel ends children by a signal, and is done a moment later than with the program itself.
                for descriptor in descriptors:
                    select.select([descriptor], [], [], END_S)
        self.closed = True


def listening(host: Host, port: int) -> int:
    """How many sockets listen on a port of a host."""
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        return sum(1 for _ in ask(netlink, request(states=1 << LISTEN, port=port)))


def main() -> None:
    """In the process: take the function from standard input, let the kernel know the threads' names, call it."""
    import cloudpickle

    sys.path = cloudpickle.load(sys.stdin.buffer)
    function, args = cloudpickle.load(sys.stdin.buffer)
    name_threads()
    call_this_thread(getattr(function, "__name__", "server"))
    function(*args)
