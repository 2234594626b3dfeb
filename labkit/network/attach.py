"""How another process of this user's gets to a running lab: a terminal on a host, a stream of what crosses the wire.

A Unix socket in the lab's directory, which has mode 0700; and whoever asks must be of the same user (SO_PEERCRED,
unix(7)). A request is a JSON message with descriptors, answered by the same connection: what was asked for is there,
then that it has ended. Either side's end ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from labkit.errors import InvalidValue, LabClosed, LabError, NotAvailableHere
from labkit.network import rpc
from labkit.network.terminal import Terminal, set_size, show, size_of, type_into

if TYPE_CHECKING:
    from labkit.network.engine import Closable
    from labkit.network.host import Host

SOCKET = "attach"
# An interactive bash has the learner's own settings, and a prompt that says where it is.
BASHRC = 'if [ -f ~/.bashrc ]; then . ~/.bashrc; fi\nPS1="$LABKIT_HOST\\$ "\nunset PROMPT_COMMAND\n'


class Attachable(Protocol):
    """What is asked of a lab."""

    name: str | None

    @property
    def directory(self) -> Path: ...
    @property
    def hosts(self) -> Mapping[str, Host]: ...

    def __getitem__(self, name: str) -> Host: ...

    def stream(self, target: int, ended: Callable[[], None]) -> Closable: ...


class Door:
    """The lab's side: listens until the lab ends.

    Args:
        lab: whose it is.
    """

    def __init__(self, lab: Attachable) -> None:
        if not hasattr(socket, "SO_PEERCRED"):
            raise NotAvailableHere(f"attaching to a lab needs Linux, and this is {sys.platform}")
        self._lab = weakref.ref(lab)  # a lab that nobody knows any more ends
        self.closed = False
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with _short_path(lab.directory) as path:
                self._listener.bind(path)
            self._listener.listen(8)
            Path(lab.directory, "bashrc").write_text(BASHRC)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._accept, name="labkit-attach", daemon=True).start()

    def close(self) -> None:
        """End all that came through it. Closing twice is fine."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, whose thread closes it
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:  # closed
                    return
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.geteuid():
            connection.close()
            return
        with self._lock:
            self._connections.add(connection)
        threading.Thread(target=self._serve, args=(connection,), name="labkit-attached", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            request, descriptors = rpc.receive(connection)
            if request["op"] == "terminal":
                self._terminal(connection, request)
            elif request["op"] == "stream":
                self._stream(connection, *descriptors)
            else:
                lab = self._open_lab()
                rpc.send(connection, {"name": lab.name or "", "hosts": list(lab.hosts)})
        except rpc.Disconnected:
            """The other side has gone."""
        except (LabError, OSError) as exc:
            with contextlib.suppress(rpc.Disconnected):
                rpc.send(connection, {"error": str(exc)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _open_lab(self) -> Attachable:
        lab = self._lab()
        if lab is None or self.closed:
            raise LabClosed("the lab has ended")
        return lab

    def _start(self, request: Mapping[str, Any]) -> Terminal:
        lab = self._open_lab()
        env = {"TERM": request["term"], "LABKIT_HOST": request["host"]}
        args = request["args"] or _shell(lab.directory)
        return Terminal(lab[request["host"]], args, env=env, cwd=request["cwd"], size=tuple(request["size"]))

    def _terminal(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        """Hand out the other side of a program's terminal. Whoever has it ends the program by closing it."""
        terminal = self._start(request)
        with contextlib.closing(terminal):
            rpc.send(connection, {"host": request["host"]}, [terminal.master])
            terminal.let_go()
            poll = select.poll()
            poll.register(terminal.program.fileno(), select.POLLIN)
            poll.register(connection, select.POLLIN)
            told = [descriptor for descriptor, _ in poll.poll()]
            if connection.fileno() not in told:
                rpc.send(connection, {"exit": terminal.program.wait()})

    def _stream(self, connection: socket.socket, target: int) -> None:
        stream = self._open_lab().stream(target, lambda: connection.shutdown(socket.SHUT_RD))
        with contextlib.closing(stream):
            rpc.send(connection, {"stream": True})
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.poll()
        rpc.send(connection, {"exit": 0})


def _shell(directory: Path) -> list[str]:
    if shutil.which("bash"):
        return ["bash", "--rcfile", str(directory / "bashrc"), "-i"]
    return ["sh", "-i"]


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """The socket's path, however long that of its directory is: sun_path has 108 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


# The other side.


def find(wanted: str | None) -> Path:
    """The directory of a running lab that can be attached to.

    Args:
        wanted: its directory, or the lab's name; None for the only one.

    Raises:
        InvalidValue: there is none, or several.
    """
    if wanted is not None and os.sep in wanted:
        return Path(wanted)
    labs = {}
    for path in Path(tempfile.gettempdir()).glob(f"labkit-*/{SOCKET}"):
        with contextlib.suppress(LabError, OSError):  # another user's, or one that ends at this moment
            labs[path.parent] = _ask(path.parent, {"op": "about"})
    named = {path: told for path, told in labs.items() if wanted in (None, told["name"], path.name)}
    if len(named) == 1:
        return next(iter(named))
    if not named:
        what = "no lab that can be attached to" if wanted is None else f"no lab {wanted!r} that can be attached to"
        raise InvalidValue(f"{what}: start `labkit shell`, or in a notebook lab.server.terminal()")
    told = [f"{path} ({about['name'] or 'no name'}: {', '.join(about['hosts'])})" for path, about in named.items()]
    raise InvalidValue(f"several labs, choose one with --lab: {', '.join(told)}")


def _connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short_path(directory) as path:
            connection.connect(path)
    except OSError as exc:
        connection.close()
        raise LabClosed(f"no running lab in {directory}: {exc.strerror}") from None
    return connection


def _ask(directory: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    with _connect(directory) as connection:
        rpc.send(connection, dict(request))
        return _reply(connection)[0]


def _reply(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    try:
        reply, descriptors = rpc.receive(connection)
    except rpc.Disconnected:
        raise LabClosed("the lab has ended") from None
    if "error" in reply:
        raise LabError(str(reply["error"]))
    return reply, descriptors


def attach(directory: Path, host: str, args: Sequence[str] = (), *, keyboard: int = 0, screen: int = 1) -> int:
    """Be on a host of a running lab, with this process's terminal, until the program or the lab ends.

    Args:
        directory: of the lab.
        host: its name.
        args: what to run; by default a shell.
        keyboard, screen: descriptors.

    Returns:
        the program's exit status.

    Raises:
        LabClosed: there is no such lab, or it ended. LabError: what it answered.
    """
    request: dict[str, Any] = {"op": "terminal", "host": host, "args": list(args), "cwd": os.getcwd()}
    request |= {"term": os.environ.get("TERM", "dumb"), "size": size_of(keyboard)}
    with _connect(directory) as connection:
        rpc.send(connection, request)
        _, (master,) = _reply(connection)
        try:
            set_size(master, size_of(keyboard))
            shown = threading.Thread(target=show, args=(master, connection.fileno(), screen), daemon=True)
            shown.start()
            type_into(master, connection.fileno(), keyboard)
            shown.join()
        finally:
            os.close(master)
        return int(_reply(connection)[0]["exit"])


def stream(directory: Path, target: int) -> None:
    """Let a running lab write what crosses its wire to a descriptor, as pcapng, until it ends or Ctrl-C.

    Raises:
        LabClosed: there is no such lab. LabError: what it answered.
    """
    with _connect(directory) as connection:
        rpc.send(connection, {"op": "stream"}, [target])
        _reply(connection)
        with contextlib.suppress(KeyboardInterrupt):
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.poll()
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(LabClosed):  # it ended with the lab, and all of it is written
            _reply(connection)
