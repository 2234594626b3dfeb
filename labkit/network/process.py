"""A program on a host: started by the helper, its output kept, ended with the lab."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from labkit.errors import InvalidValue, LabClosed, LabError, NotReady, ProgramNotFound
from labkit.network import rpc

if TYPE_CHECKING:
    from labkit.network.host import Host


# A notebook's kernel sets them for what `!program` prints into a cell. What is read as text comes without escapes.
COLOURED = ("FORCE_COLOR", "CLICOLOR_FORCE")


@dataclass(frozen=True)
class Completed:
    """What ``host.run`` returns: the command, its exit status (negative: the signal that ended it) and its output."""

    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Completed:
        """Itself, or LabError with the end of the program's own words where the exit status is not 0."""
        if self.returncode != 0:
            said = (self.stderr or self.stdout).strip()[-2000:] or "(it said nothing)"
            raise LabError(f"{' '.join(self.args)!r} ended with {self.returncode}: {said}")
        return self


class Program:
    """A program running on a host. Made by ``host.start``.

    Its output goes to unlinked temporary files, so nothing blocks on a full pipe and nothing is left behind.
    """

    def __init__(
        self, host: Host, args: Sequence[str], *, env: dict[str, str] | None, cwd: str | None, stdin: bytes | None
    ) -> None:
        if isinstance(args, (str, bytes)) or not args or not all(isinstance(word, str) for word in args):
            raise InvalidValue(f"args={args!r}: give the program and its arguments as a list of strings")
        for name, value in (env or {}).items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise InvalidValue(f"env={{{name!r}: {value!r}}}: names and values are strings")
        self.host = host
        self.args = tuple(args)
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed with the Program
        for file in (self._out, self._err):
            weakref.finalize(self, file.close)
        inherited = {name: value for name, value in os.environ.items() if name not in COLOURED}
        environment = {**inherited, **host.network.program_environment, **(env or {})}
        where = os.fspath(cwd or os.getcwd())
        request = {"op": "spawn", "host": host.name, "argv": self.args, "env": environment, "cwd": where}
        try:
            with tempfile.TemporaryFile() as words:
                words.write(stdin or b"")
                words.seek(0)
                descriptors = [words.fileno(), self._out.fileno(), self._err.fileno()]
                self._status = host.network.open_request(request, descriptors)
            weakref.finalize(self, self._status.close)
            self._status.settimeout(20)
            reply, _ = rpc.receive(self._status)
        except BaseException as exc:
            if hasattr(self, "_status"):
                self._status.close()  # by which the helper knows that nobody will have this program
            if isinstance(exc, rpc.Disconnected):
                raise LabClosed(f"{self.args[0]!r} was not started: the lab is closed") from exc
            raise
        if "errno" in reply:
            self._status.close()
            # EACCES is also what a search of PATH ends with where one of its directories is closed to this user.
            absent = reply["errno"] == errno.EACCES and not shutil.which(self.args[0], path=environment.get("PATH"))
            if reply["errno"] in (errno.ENOENT, errno.ENOTDIR) or ("/" not in self.args[0] and absent):
                missing = f"directory {where!r}" if not os.path.isdir(where) else f"program {self.args[0]!r}"
                raise ProgramNotFound(f"no {missing} on {host.name}: install it, or give its full path")
            raise OSError(reply["errno"], f"{self.args[0]!r} on {host.name}: {reply['error']}")
        self.pid: int = reply["pid"]
        host.network.register(self)

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Program {' '.join(self.args)!r} on {self.host.name}, {state}>"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self._text(self._out)

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._text(self._err)

    def _text(self, file: IO[bytes]) -> str:
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode("utf-8", "replace")

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end. Returns the exit status; NotReady at the deadline, and the program goes on."""
        with self._lock:
            if self.returncode is None:
                self._status.settimeout(timeout_s)
                try:
                    reply, _ = rpc.receive(self._status)
                except (TimeoutError, BlockingIOError) as exc:  # the latter for a deadline of 0
                    raise NotReady(f"{self!r} did not end in {timeout_s:g} s: wait longer or close() it") from exc
                except rpc.Disconnected:
                    reply = {"exit": -signal.SIGKILL}  # the lab was closed, and the kernel ended the program
                self.returncode = int(reply["exit"])
                self._status.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it and the processes that it started."""
        if self.returncode is None:
            self._signal(number)

    def _signal(self, number: int) -> None:
        self.host.network.call({"op": "signal", "pid": self.pid, "signal": int(number)})

    def close(self, timeout_s: float = 5.0) -> None:
        """End it: SIGTERM, and SIGKILL at the deadline. Its output can still be read. Closing twice is fine.

        Children in its process group get the same SIGTERM, and SIGKILL once the program itself has ended.
        """
        if self.returncode is not None:
            return
        with contextlib.suppress(LabClosed):
            self._signal(signal.SIGTERM)
            with contextlib.suppress(NotReady):
                self.wait(timeout_s)
            self._signal(signal.SIGKILL)  # and those of its children that did not heed SIGTERM
        self.wait(timeout_s)


def run(host: Host, args: Sequence[str], *, timeout_s: float, **options: object) -> Completed:
    """Start a program and wait for its end; see ``Host.run``."""
    program = Program(host, args, **options)  # type: ignore[arg-type]
    with program:
        returncode = program.wait(timeout_s)
    return Completed(program.args, returncode, program.stdout, program.stderr)
