"""The keeper of a program on loopback: starts it, tells how it ended, and ends with it all that descends from it.

::

    notebook ◀──life──▶ keeper ── program ── its children, and those that became daemons

Without namespaces no kernel ends a program's children with it. So each program has a keeper: it adopts those whose
parents end (a subreaper, PR_SET_CHILD_SUBREAPER(2const)), and kills all of them when the notebook's end of the socket
`life` closes or the notebook's process has gone. Should the keeper itself be killed, the kernel kills the program
(PR_SET_PDEATHSIG). On systems other than Linux it kills the program's process group, and a child that left that group
is not reached.

On `life` the notebook writes the program (one line), then signals for its process group, a byte each; 0 is the
goodbye of a lab or program that is closed. The keeper writes who it is, a line when the program runs, or cannot, and
one when it has ended. Standard library only: it runs without site-packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from labkit.network import forked

LOOK_EVERY_S = 1.0
GOODBYE = 0
REQUEST_END = b"\n"


class Ended(Exception):
    """The notebook wants no program any more, or has gone."""


class Keeper:
    def __init__(self, life: socket.socket, notebook: int) -> None:
        self.life, self.notebook = life, notebook
        self.goodbye = False
        self.program = 0
        self.program_runs = False

    def start(self) -> None:
        """Start what the first line asks for. Raises Ended where it cannot."""
        self.tell({"keeper": os.getpid()})
        request = b""
        while not request.endswith(REQUEST_END):
            data = self.life.recv(65536)
            self.goodbye = data.endswith(bytes([GOODBYE]))
            if not data or self.goodbye:
                raise Ended
            request += data
        words = json.loads(request)
        try:
            self.program = forked.start(words["argv"], words["env"], words["cwd"], end_with_keeper)
        except OSError as exc:
            self.tell({"errno": exc.errno, "error": exc.strerror})
            return
        self.program_runs = True
        self.tell({"pid": self.program})

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            self.life.sendall(json.dumps(message).encode() + REQUEST_END)

    def reap(self) -> bool:
        """Collect what has ended; tell of the program. Returns whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.program:
                self.program_runs = False
                left = self.reap()
                self.tell({"exit": os.waitstatus_to_exitcode(status), "left": left})
                return left

    def obey(self) -> None:
        """Signals for the program's process group. Raises Ended at the end of the socket."""
        try:
            numbers = self.life.recv(256)
        except ConnectionError:
            numbers = b""
        for number in numbers:
            if number == GOODBYE:
                self.goodbye = True
            else:
                with contextlib.suppress(OSError):  # all of them have ended
                    os.killpg(self.program, number)
        if not numbers or self.goodbye:
            raise Ended

    def run(self, wakeup: socket.socket) -> None:
        """Until nothing is left to keep, or the notebook has gone."""
        self.start()
        while self.reap():
            ready, _, _ = select.select([self.life, wakeup], [], [], LOOK_EVERY_S)
            if wakeup in ready:
                wakeup.recv(4096)
            if self.life in ready:
                self.obey()
            # A forked child may hold the notebook's sockets open, so the end of its process counts, too.
            if os.getppid() != self.notebook:
                raise Ended

    def end_all(self) -> None:
        """Kill all that is left, until nothing is: children of the killed come to this process, and are next."""
        while (left := children()) or self.program_runs:
            if self.program_runs:
                with contextlib.suppress(OSError):
                    os.killpg(self.program, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            self.program_runs = self.program_runs and pid != self.program

    def notebook_has_gone(self) -> bool:
        """Its sockets close a moment before its children get another parent."""
        deadline = time.monotonic() + LOOK_EVERY_S
        while not self.goodbye and os.getppid() == self.notebook and time.monotonic() < deadline:
            time.sleep(0.005)
        return os.getppid() != self.notebook


def end_with_keeper() -> None:
    if sys.platform == "linux":
        from labkit.network.namespaces import end_with_parent

        end_with_parent()


def children() -> list[int]:
    """The processes whose parent this one is; [] where the system does not tell."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    """Arguments: descriptor of `life`; directory of the lab; process id of the notebook."""
    life = socket.socket(fileno=int(sys.argv[1]))
    life.set_inheritable(False)
    directory, notebook = sys.argv[2], int(sys.argv[3])
    if sys.platform == "linux":
        from labkit.network.namespaces import adopt_orphans

        adopt_orphans()
    wakeup, waker = socket.socketpair()
    for end in (wakeup, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(life, notebook)
    try:
        keeper.run(wakeup)
    except Ended:
        keeper.end_all()
        if keeper.notebook_has_gone():
            shutil.rmtree(directory, ignore_errors=True)  # the relay may have done so while the program still wrote
