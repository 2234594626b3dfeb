"""A program of other people on a host, from its start to its end: when it is ready, what it says, what it takes.

::

    config = "events {} http { server { listen server.lab:80; } }"
    web = Service(lab.server, ["nginx", "-p", ".", "-c", "nginx.conf", "-g", "daemon off;"], ready=80,
                  files={"nginx.conf": config})
    web.log, web.memory
    web.close()

It runs in a directory of its own, in which its files stand. Addresses of the lab in its arguments and files become
what the program can use on this tier, see labkit.services.configuration.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from labkit import checks
from labkit.errors import LabClosed, LabError, NameTaken, NotReady, ProgramNotFound
from labkit.network.engine import SocketAddress
from labkit.network.host import Host
from labkit.network.process import Program
from labkit.services import configuration, processes
from labkit.services.readiness import LOOK_S, Probe, accepts, holds, in_words

LAST_LINES = 20
WORDS = ["nginx", "-c", "nginx.conf"]
FILES = "a dictionary from the names of files to their contents, both texts"
ADDRESSES = "LABKIT_ADDRESSES"  # the variable by which a program on the tier "loopback" is known to have some


class Service:
    """A program on a host, ready to be used.

    Args:
        host: where it runs.
        args: the program and its arguments. It stays in the foreground: no daemon.
        ready: what says that it is ready: a port (1 to 65535) that accepts connections on the host, a regular
            expression that is found in its log, a command (a list) that runs on the host and answers 0, or a function
            that is called with this service until its result is true (an OSError of it means "not yet").
        ports: of the host, on which it listens; the first is its own. By default those that its arguments and files
            name as this host's: "server.lab:8080".
        files: written into its directory: names and contents.
        env: environment variables, on top of those that ``host.run`` gives.
        name: a new service, or server, of the same name closes this one, so that a cell can be run twice. By default
            the first port is the name: "server:80/tcp".
        timeout_s: deadline of each step of its start, seconds.
        stop: the signal that asks it to end.
        patience_s: for so long it may take to obey, seconds; then it is killed.
        background: return at once, and let it start while you go on. Who needs it calls ``ready()``.

    Attributes:
        host, ports: as given, or found.
        directory: its own, mode 0700, gone with it.
        closed: whether it was closed.

    Raises:
        InvalidValue: an argument that cannot work. ProgramNotFound: it is not installed.
        NameTaken: something else listens on one of its ports. NotReady: it was not ready in time.
        LabError: it ended before it was ready, or listens where others on this machine could reach it.
        With `background`, the last three are raised by ``ready()``; all of them quote the last lines of its log.
    """

    def __init__(
        self,
        host: Host,
        args: Sequence[str],
        *,
        ready: Probe,
        ports: Sequence[int] = (),
        files: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
        name: str | None = None,
        timeout_s: float = 30.0,
        stop: int = signal.SIGTERM,
        patience_s: float = 5.0,
        background: bool = False,
    ) -> None:
        self.host = checks.instance("host", host, Host, "a host of the lab, for instance lab.server")
        self.closed = False
        args = checks.texts("args", args, WORDS)
        if not args:
            raise checks.wrong("args", args, f"give the program and its arguments, for instance {WORDS!r}")
        env = checks.optional(checks.environment, "env", env) or {}
        files = {} if files is None else checks.instance("files", files, dict, FILES)
        if not all(isinstance(each, str) for pair in files.items() for each in pair):
            raise checks.wrong("files", files, f"give {FILES}")
        checks.number("timeout_s", timeout_s, 0.001, unit="s")
        checks.number("patience_s", patience_s, 0.001, unit="s")
        checks.flag("background", background)
        checks.whole("stop", stop, 1, signal.NSIG - 1)
        checks.optional(checks.text, "name", name, "broker")
        if isinstance(ports, (str, bytes)) or not isinstance(ports, Iterable):
            raise checks.wrong("ports", ports, "give a list of ports, for instance [8080]")
        self._words = in_words(ready)  # raises InvalidValue
        texts = [*args, *env.values(), *files.values()]
        wanted = [*ports, *configuration.own_ports(host, texts)]
        self.ports = tuple(dict.fromkeys(checks.port("ports", port) for port in wanted))
        self._ready, self._timeout_s, self._stop, self._patience_s = ready, timeout_s, stop, patience_s
        self._settled = threading.Event()  # its start has come to an end, good or bad
        self._failure: BaseException | None = None
        self._seconds = 0.0
        self._closing = False
        self._launching, self._close_lock = threading.Lock(), threading.RLock()
        self._programs: list[Program] = []  # in the order of their starts
        self._main: Program | None = None
        self._thread: threading.Thread | None = None
        self._starter = 0
        self._env: dict[str, str] = {}
        self._said = ""  # the log of what failed in front of the program itself
        program = configuration.find_program(args[0])
        if program is None:
            raise ProgramNotFound(f"no program {args[0]!r} on {host.name}: install it, or give its full path")
        if name is None and self.ports:
            name = f"{host.name}:{self.port}/tcp"
        host.engine.check_open()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-", dir=host.engine.directory))
        try:
            host.lab.register(self, name)  # first, because it closes the predecessor, which may hold the port
            self._check_ports()
            if not isinstance(ready, str) and isinstance(ready, Sequence):
                self._ready = [self._addressed(word) for word in ready]
            self._use(host.bound(port) for port in self.ports)
            self._args = [program, *(self._addressed(word) for word in args[1:])]
            self._env |= {name: self._addressed(value) for name, value in env.items()}
            self._write(files)
            if background:
                self._thread = threading.Thread(target=self._start, name=f"labkit {self!r}", daemon=True)
                self._thread.start()
            else:
                self._start()
                self.ready()
        except BaseException:
            self.close()
            raise

    def _addressed(self, text: str) -> str:
        """A text of the learner's with what the program can use for the lab's addresses."""
        changed, used = configuration.addressed(self.host, text)
        self._use(used)
        return changed

    def _use(self, addresses: Iterable[SocketAddress]) -> None:
        """Its programs have these addresses, of which their files may tell alone."""
        told = dict.fromkeys([*self._env.get(ADDRESSES, "").split(), *map(str, addresses)])
        self._env[ADDRESSES] = " ".join(told)

    def __repr__(self) -> str:
        at = f"{self.host.fqdn}:{self.port}" if self.port else self.host.fqdn
        if self.closed:
            state = "closed"
        elif not self._settled.is_set():
            state = "starting"
        elif self._failure is not None:
            state = "failed"
        elif (status := self._status()) is not None:
            state = f"ended with {status}"
        else:
            state = f"ready after {self._seconds:.2f} s"
        return f"<{type(self).__name__} {at}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # What it is asked for.

    @property
    def port(self) -> int:
        """The first of its ports, 0 where it has none."""
        return self.ports[0] if self.ports else 0

    @property
    def address(self) -> SocketAddress:
        """Where clients of the lab find it. Waits as ``ready`` does."""
        self.ready()
        return SocketAddress(self.host.ip, self.port)

    @property
    def running(self) -> bool:
        """Whether it is ready and has not ended."""
        return self._settled.is_set() and not self.closed and self._failure is None and self._status() is None

    @property
    def ready_s(self) -> float:
        """Seconds from its start until it was ready, with all that had to be done before. Waits as ``ready`` does."""
        self.ready()
        return self._seconds

    @property
    def log(self) -> str:
        """What it has written so far: standard output, then standard error."""
        return self._said if self._main is None else self._main.stdout + self._main.stderr

    @property
    def memory(self) -> processes.Memory:
        """What its processes take now; nothing after its end."""
        return processes.memory(self._pids())

    def ready(self) -> Self:
        """Wait until it is ready: itself. Raises what its start failed with, LabError where it has ended since."""
        if self._starter == threading.get_ident() and not self._settled.is_set():
            return self  # a probe that asks for the address
        self._settled.wait()
        if self.closed:
            raise LabClosed(f"{self!r}: run the cell that starts it again")
        if self._failure is not None:
            raise self._failure
        if (status := self._status()) is not None:
            raise LabError(f"{self!r} ended by itself, with {status}. {self._last_words(self.log)}")
        return self

    def _status(self) -> int | None:
        return None if self._main is None else self._main.returncode

    def _pids(self) -> list[int]:
        return processes.pids_of(self.host.engine, [each for each in self._programs if each.returncode is None])

    # Its start: in the thread of its own, or in the caller's.

    def _start(self) -> None:
        started, self._starter = time.monotonic(), threading.get_ident()
        try:
            self._prepare()
            self._main = self._launch(self._args)
            self._wait(self._main, lambda: holds(self._ready, self, self._launch), self._words)
            processes.check_listeners(self.host, self._pids())
            self._seconds = time.monotonic() - started
        except BaseException as exc:
            self._failure = exc
            self._end_programs()
            if self._thread is None:
                raise
        finally:
            self._settled.set()

    def _prepare(self) -> None:
        """What has to be done before the program is started, by ``_run`` and ``_launch``. For subclasses."""

    def _launch(self, args: Sequence[str]) -> Program:
        """Start a program in this service's directory; it ends with the service."""
        with self._launching:
            if self._closing:
                raise LabClosed(f"{self._whose} was closed while it started")
            words = [configuration.find_program(args[0]) or args[0], *args[1:]]
            program = self.host.program(words, env=self._env, cwd=str(self.directory))
            ended = [each for each in self._programs if each is not self._main and each.returncode is not None]
            self._programs = [each for each in self._programs if each not in ended] + [program]
        return program

    def _run(self, args: Sequence[str]) -> str:
        """Run a program to its end. Returns what it wrote; LabError quotes what it complained about."""
        program = self._launch(args)
        status = program.wait(self._timeout_s)
        said = program.stdout + program.stderr
        if self._closing:
            raise LabClosed(f"{self._whose} was closed while it started")
        if status != 0:
            self._said = said
            told = " ".join([Path(args[0]).name, *args[1:]])
            raise LabError(f"{self._whose}: {told!r} ended with {status}. {self._last_words(said)}")
        return said

    def _check_ports(self) -> None:
        for port in self.ports:
            if accepts(self.host, port):
                raise NameTaken(
                    f"port {port}/tcp on {self.host.name} is taken: close what listens there, or use another port"
                )

    def _wait(self, program: Program, condition: Callable[[], bool], words: str) -> None:
        """Wait until a condition holds, of a program that has to run meanwhile."""
        deadline = time.monotonic() + self._timeout_s
        while not condition():
            with contextlib.suppress(NotReady):
                status = program.wait(LOOK_S)
                if self._closing:
                    raise LabClosed(f"{self._whose} was closed while it started")
                said = program.stdout + program.stderr
                raise LabError(f"{self._whose} ended with {status} before it was ready. {self._last_words(said)}")
            if time.monotonic() > deadline:
                self._said = said = program.stdout + program.stderr
                raise NotReady(
                    f"{self._whose} was not ready after {self._timeout_s:g} s, for which {words}. "
                    f"{self._last_words(said)}"
                )

    @property
    def _whose(self) -> str:
        return f"{type(self).__name__} on {self.host.name}"

    def _write(self, files: Mapping[str, str]) -> None:
        """Further files in its directory, with the lab's addresses as the program can use them."""
        configuration.write_files(self.host, self.directory, files, self._addressed)

    def _last_words(self, log: str) -> str:
        lines = log.replace(f"{self.directory}/", "").strip().splitlines()[-LAST_LINES:]
        return "Its last lines:\n" + "\n".join(lines)[-2000:] if lines else "It said nothing"

    # Its end.

    def _end_programs(self) -> None:
        with self._launching:
            programs = self._programs[::-1]
        # Some of what they started may have a session of its own, and ignore their end.
        family = processes.family(self._pids())
        for program in programs:
            program.close(self._patience_s, self._stop)
            with contextlib.suppress(LabClosed):  # and those that it has left behind, where it ended by itself
                self.host.engine.signal_program(program.pid, signal.SIGKILL)
        processes.end(family)

    def kill(self) -> None:
        """End it as a power cut would, by SIGKILL: what it has not yet written is lost. See ``start_again``."""
        self.ready()
        with self._close_lock:
            family = processes.family(self._pids())
            for program in self._programs[::-1]:
                program.close(self._patience_s, signal.SIGKILL)
            processes.end(family)

    def start_again(self) -> Self:
        """Start what was killed or has ended, in the directory where it has left its data; wait until it is ready.

        Raises:
            LabError: it still runs. What ``ready`` raises.
        """
        self._settled.wait()
        if self.running:
            raise LabError(f"{self!r} still runs: kill() ends it")
        self._settled.clear()
        self._failure = None
        self._start()
        return self.ready()

    def close(self) -> None:
        """End it and all that it started; its directory goes, its log stays. Twice is fine, and while it starts.

        What an interrupt cut short the next call finishes: the lab's, or that of the next service of this name.
        """
        with self._close_lock:
            if self.closed:
                return
            self._closing = True
            self._end_programs()
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(self._patience_s)
            shutil.rmtree(self.directory, ignore_errors=True)
            self.closed = True
            self._settled.set()
