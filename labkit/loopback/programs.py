"""A program on loopback as the notebook knows it: the socket to its keeper, see labkit.loopback.keeper."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit import child
from labkit.errors import LabClosed
from labkit.loopback.keeper import GOODBYE, REQUEST_END

START_TIMEOUT_S = 20.0


class Kept:
    """A program and its keeper.

    Args:
        directory: of the lab.
        argv, env, cwd: as execve(2) has them.
        files: descriptors of its standard input, output and error.

    Raises:
        OSError: the kernel's reason why it cannot be executed; with no number, the keeper did not answer in time.
    """

    def __init__(
        self, directory: Path, argv: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[int]
    ) -> None:
        self._pid = os.getpid()
        self._buffer = b""
        self._exit: int | None = None
        self._ending = threading.Lock()
        self.over = False  # nothing of it is left
        self._life, theirs = socket.socketpair()
        self._keeper = None
        try:
            with theirs:
                stdin, stdout, stderr = files
                self._keeper = child.start(
                    "labkit.loopback.keeper",
                    theirs.fileno(),
                    directory,
                    self._pid,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                )
            self._life.settimeout(START_TIMEOUT_S)
            self._life.sendall(json.dumps({"argv": argv, "env": env, "cwd": cwd}).encode() + REQUEST_END)
            self._line()  # who the keeper is
            reply = self._line()
            if "errno" in reply:
                raise OSError(reply["errno"], reply["error"])
            self.pid: int = reply["pid"]
        except BaseException:
            self.end()
            raise

    def _line(self) -> dict[str, Any]:
        """The keeper's next words. Raises TimeoutError; LabClosed where it has gone."""
        while REQUEST_END not in self._buffer:
            try:
                data = self._life.recv(65536)
            except BlockingIOError:  # for a deadline of 0
                raise TimeoutError from None
            except OSError as exc:
                if isinstance(exc, TimeoutError):
                    raise
                data = b""  # closed meanwhile
            if not data:
                raise LabClosed("the program's keeper has ended, and the program with it")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(REQUEST_END)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def fileno(self) -> int:
        """See labkit.network.engine.Running."""
        return self._life.fileno()

    def wait(self, timeout_s: float) -> int:
        """See labkit.network.engine.Running."""
        if self._exit is None:
            try:
                self._life.settimeout(timeout_s)
                reply = self._line()
            except (LabClosed, OSError) as exc:
                if isinstance(exc, TimeoutError):
                    raise
                reply = {"exit": -signal.SIGKILL, "left": False}
            self._exit = int(reply["exit"])
            if not reply["left"]:
                self.end()
        return self._exit

    def signal(self, number: int) -> None:
        """To its process group, as long as anything of it is left."""
        with contextlib.suppress(OSError):
            self._life.send(bytes([number]))

    def close(self) -> None:
        """Nobody wants it any more. Daemons of a program that has ended by itself stay, as long as the lab does."""
        if self._exit is None:
            self.end()

    def end(self) -> None:
        """End it and all that it started, and wait for that. Ending twice is fine."""
        if os.getpid() != self._pid:  # a forked child, which must not end its parent's programs
            self._life.close()
            return
        with self._ending:
            if self.over:
                return
            with contextlib.suppress(OSError):
                self._life.send(bytes([GOODBYE]))
                self._life.shutdown(socket.SHUT_WR)
            if self._keeper is not None:
                child.end(self._keeper)
            else:
                self._reap()
            self._life.close()
            self.over = True

    def _reap(self) -> None:
        """An interrupt fell between the start of the keeper and the note of its process id: it says that itself."""
        with contextlib.suppress(LabClosed, OSError):
            self._life.settimeout(START_TIMEOUT_S)
            os.waitpid(self._line()["keeper"], 0)
