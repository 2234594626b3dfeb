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
from typing import IO

from labkit import checks
from labkit.errors import LabClosed, LabError, NotReady, ProgramNotFound
from labkit.network.engine import Engine


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

    Its output goes to unlinked temporary files, so nothing blocks on a full pipe and nothing is left behind; or to
    descriptors of the caller's, three as ``files``, and then nothing is kept here.
    """

    def __init__(
        self,
        engine: Engine,
        host: str,
        args: Sequence[str],
        *,
        env: dict[str, str],
        cwd: str | None,
        stdin: bytes | None = None,
        files: Sequence[int] | None = None,
    ) -> None:
        words_given = checks.texts("args", args, ["curl", "http://server.lab/"])
        if not words_given:
            raise checks.wrong("args", args, "give the program and its arguments as a list of texts")
        checks.optional(checks.octets, "stdin", stdin, b"a line")
        where = str(checks.path("cwd", cwd or os.getcwd()))
        self._engine, self.host = engine, host
        self.args = tuple(words_given)
        self._ended: int | None = None  # its exit status
        self._waited = False
        self._lock = threading.Lock()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed with the Program
        for file in (self._out, self._err):
            weakref.finalize(self, file.close)
        with tempfile.TemporaryFile() as words:
            words.write(stdin or b"")
            words.seek(0)
            ours = [words.fileno(), self._out.fileno(), self._err.fileno()]
            try:
                self._running = engine.start_program(host, self.args, env, where, files or ours)
            except OSError as exc:
                raise self._not_started(exc, where, env.get("PATH")) from None
        weakref.finalize(self, self._running.close)
        self.pid = self._running.pid

    def _not_started(self, failure: OSError, where: str, path: str | None) -> Exception:
        program = self.args[0]
        if failure.errno is None:  # a deadline of ours
            return failure
        # EACCES is also what a search of PATH ends with where one of its directories is closed to this user.
        absent = failure.errno == errno.EACCES and not shutil.which(program, path=path)
        if failure.errno in (errno.ENOENT, errno.ENOTDIR) or ("/" not in program and absent):
            missing = f"directory {where!r}" if not os.path.isdir(where) else f"program {program!r}"
            return ProgramNotFound(f"no {missing} on {self.host}: install it, or give its full path")
        return OSError(failure.errno, f"{program!r} on {self.host}: {failure.strerror}")

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Program {' '.join(self.args)!r} on {self.host}, {state}>"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that can be read once it has ended; for poll(2), and nothing else."""
        return self._running.fileno()

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

    @property
    def returncode(self) -> int | None:
        """Its exit status, now; negative: the signal that ended it. None while it runs."""
        if self._lock.acquire(blocking=False):  # else somebody waits for it in another thread, and it runs
            try:
                if self._ended is None:
                    with contextlib.suppress(TimeoutError):
                        self._ended = self._running.wait(0)
            finally:
                self._lock.release()
        return self._ended

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end. Returns the exit status; NotReady at the deadline, and the program goes on."""
        checks.number("timeout_s", timeout_s, 0, unit="seconds")
        with self._lock:
            if self._ended is None:
                try:
                    self._ended = self._running.wait(timeout_s)
                except TimeoutError as exc:
                    late = f"{' '.join(self.args)!r} on {self.host} did not end in {timeout_s:g} s"
                    raise NotReady(f"{late}: wait longer or close() it") from exc
            self._waited = True
            return self._ended

    def send_signal(self, number: int) -> None:
        """Signal it and the processes that it started."""
        checks.whole("number", number, 0, 64)
        if self.returncode is None:
            self._signal(number)

    def _signal(self, number: int) -> None:
        self._engine.signal_program(self.pid, number)

    def close(self, timeout_s: float = 5.0, stop: int = signal.SIGTERM) -> None:
        """End it: SIGTERM or `stop`, and SIGKILL at the deadline. Its output can still be read. Twice is fine.

        Children in its process group get the same signal, and SIGKILL once the program itself has ended.
        """
        checks.number("timeout_s", timeout_s, 0, unit="seconds")
        if self._waited:
            return
        with contextlib.suppress(LabClosed):
            self._signal(stop)
            with contextlib.suppress(NotReady):
                self.wait(timeout_s)
            self._signal(signal.SIGKILL)  # and those of its children that did not heed SIGTERM
        self.wait(timeout_s)
