"""The lab's network: the helper process, the hosts it made, and the wire that joins them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import InvalidValue, LabClosed, LabUnavailable, NameTaken, NotReady
from labkit.network import rpc, sockets
from labkit.network.host import Host
from labkit.network.link import Link
from labkit.network.support import why_unavailable
from labkit.network.wire_control import WireControl

START_TIMEOUT_S = 20.0
MOST_HOSTS = 250  # their number is one byte of their addresses
HOST_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
# Attributes of a lab that its class does not show.
RESERVED = {"name", "seed", "closed", "hosts", "program_environment", "refused", "directory", "helper_pid", "wire"}
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from labkit.network.helper import main; main()"

_named: weakref.WeakValueDictionary[str, Network] = weakref.WeakValueDictionary()


class Closable(Protocol):
    """Anything that a lab can own."""

    def close(self) -> None: ...


class Network:
    """Hosts in namespaces of their own, joined by a wire, without privilege.

    Args:
        links: the hosts, in the order of their addresses (10.77.0.1, 10.77.0.2, …), each with its link.
        seed: for every random decision of the wire.
        name: opening a second network of the same name closes the first, so that a cell can be run twice.

    Raises:
        LabUnavailable: this machine gives no namespaces; the message says why and what would.
        InvalidValue, NameTaken: a host's name that cannot be.
    """

    def __init__(self, links: Mapping[str, Link], *, seed: int = 0, name: str | None = None) -> None:
        for host_name, link in links.items():
            self._check_name(host_name)
            if not isinstance(link, Link):
                raise InvalidValue(f"link of host {host_name!r} is {link!r}: give a labkit.Link")
        if len(links) > MOST_HOSTS:
            raise InvalidValue(f"{len(links)} hosts: a lab holds {MOST_HOSTS}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InvalidValue(f"seed={seed!r}: give a whole number")
        if name is not None and not isinstance(name, str):
            raise InvalidValue(f"name={name!r}: give a text, or None for a lab without a name")
        if name is not None and (predecessor := _named.get(name)) is not None:
            predecessor.close()
        self.name = name
        self.seed = seed
        self.closed = False
        self.hosts: dict[str, Host] = {}
        self.program_environment: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._owned: list[Closable] = []
        self._owned_names: dict[str, Closable] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        if sys.platform != "linux":
            cause, way_out = why_unavailable()
            raise LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")
        # The guardian makes it, with mode 0700, and removes it: no interrupt here can leave it behind.
        self.directory = Path(tempfile.gettempdir(), f"labkit-{secrets.token_hex(6)}")
        self._control, self._wire_socket, self._guardian = _start_helper(self.directory, seed)
        sockets.install()
        self._finalizer = weakref.finalize(
            self, _end, self._control, self._wire_socket, self._guardian, self.directory, self._pid
        )
        try:
            self.refused |= self._hello()
            self.wire = WireControl(self)
            for host_name, link in links.items():
                self.add_host(host_name, link)
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError) and exc.errno is not None:  # the kernel's, not a deadline of ours
                cause, way_out = why_unavailable(exc)
                raise LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.") from exc
            raise
        if name is not None:
            _named[name] = self

    def _hello(self) -> dict[str, str]:
        """The helper's first message: it is there, or why it cannot be."""
        self._control.settimeout(START_TIMEOUT_S)
        try:
            hello, _ = rpc.receive(self._control)
        except rpc.Disconnected:
            status = self._guardian.wait(START_TIMEOUT_S)
            raise LabUnavailable(
                f"No lab here: the helper process ended with {status} before it was ready. "
                f"It said: {_said(self._guardian) or 'nothing'}. "
                "Way out: report this with the output of `labkit doctor`."
            ) from None
        except TimeoutError:
            raise NotReady(
                f"the lab's helper was not ready in {START_TIMEOUT_S:g} s: try again, or labkit doctor"
            ) from None
        if "errno" in hello:
            cause, way_out = why_unavailable(OSError(hello["errno"], hello["error"]))
            raise LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")
        self._control.settimeout(None)
        self.helper_pid: int = hello["pid"]
        return dict(hello["refused"])

    def add_host(self, name: str, link: Link | None = None) -> Host:
        """One more host, reachable from all the others at once.

        Args:
            name: letters, digits and underscores; the host answers to ``name.lab``.
            link: what its link does to frames; by default no delay and no loss.

        Raises:
            InvalidValue, NameTaken: a name that cannot be. OSError: the kernel refused.
        """
        self.check_open()
        self._check_name(name)
        if name in self.hosts:
            raise NameTaken(f"host {name!r} is there already: choose another name, or use lab.{name}")
        number = len(self.hosts) + 1
        if number > MOST_HOSTS:
            raise InvalidValue(f"host {name!r} would be number {number}: a lab holds {MOST_HOSTS}")
        ip, ip6 = f"10.77.0.{number}", f"fd77::{number}"
        reply, _ = self.call({"op": "add_host", "number": number, "name": name, "ip": ip, "ip6": ip6})
        self.refused |= reply["refused"]
        host = Host(self, number, name, ip, reply["ip6"], reply["index"])
        self.wire.attach(number, name, reply["interface"])
        self.hosts[name] = host
        if link is not None and link != Link():
            self.wire.set_link(number, link, None)
            host._link = link
        return host

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
            raise InvalidValue(f"host name {name!r}: lower-case letters, digits and underscores, a letter first")
        if name == "localhost" or name in RESERVED or hasattr(type(self), name):
            raise InvalidValue(f"host name {name!r} means something else already: choose another")

    def __getattr__(self, name: str) -> Host:
        hosts: dict[str, Host] = self.__dict__.get("hosts", {})
        if name in hosts:
            return hosts[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}; its hosts are {', '.join(hosts) or 'none'}")

    def __getitem__(self, name: str) -> Host:
        if name not in self.hosts:
            raise InvalidValue(f"no host {name!r} in this lab, which has {', '.join(self.hosts)}")
        return self.hosts[name]

    def __enter__(self) -> Any:
        self.check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def guardian_pid(self) -> int:
        """Process id of the lab's first process, the parent of all others."""
        return self._guardian.pid

    # What the lab's parts ask of the helper.

    def check_open(self) -> None:
        """Raises LabClosed where it is."""
        if self.closed:
            raise LabClosed(f"{self.name or 'this lab'} is closed: run the cell that opens it again")

    def call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Ask the helper. Raises LabClosed, or the kernel's own OSError."""
        self.check_open()
        try:
            return rpc.call(self._control, request, descriptors)
        except rpc.Disconnected:
            raise LabClosed("the lab's helper process has ended, and its hosts with it: open the lab again") from None

    def call_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the wire process. Raises LabClosed, or the kernel's own OSError."""
        self.check_open()
        try:
            return rpc.call(self._wire_socket, request)[0]
        except rpc.Disconnected:
            raise LabClosed("the lab's wire process has ended: open the lab again") from None

    def open_request(self, request: dict[str, Any], descriptors: Sequence[int]) -> socket.socket:
        """A request with more than one answer: they come on the socket returned."""
        self.check_open()
        return rpc.open_request(self._control, request, descriptors)

    def open_wire_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """A socket in the middle of the wire, where every link can be seen at once."""
        request = {"op": "socket", "host": None, "family": int(family), "type": int(kind), "proto": protocol}
        _, (descriptor,) = self.call(request)
        return socket.socket(fileno=descriptor)

    def read_file(self, host: str, path: str) -> str:
        """The text of a file as a host sees it, such as /proc/net/snmp. Raises the kernel's own OSError."""
        return str(self.call({"op": "read", "host": host, "path": path})[0]["text"])

    def write_file(self, host: str, path: str, text: str) -> None:
        """Write a file as a host sees it, such as one below /proc/sys/net. Raises the kernel's own OSError."""
        self.call({"op": "write", "host": host, "path": path, "text": text})

    # What must end with the lab.

    def register(self, owned: Closable, name: str | None = None) -> None:
        """Close `owned` with the lab. An earlier one of the same name is closed now, so a cell can be run twice."""
        with self._lock:
            self.check_open()
            if name is not None:
                # Forgotten only when it is closed: after an interrupt here the next one of this name closes it.
                if (predecessor := self._owned_names.get(name)) is not None:
                    predecessor.close()
                self._owned_names[name] = owned
            self._owned = [other for other in self._owned if not getattr(other, "closed", False)]
            self._owned.append(owned)

    def close(self) -> None:
        """End everything on it: servers, captures, programs, hosts. Closing twice is fine."""
        with self._lock:
            if self.closed:
                return
            owned = self._owned if os.getpid() == self._pid else []  # a forked child lets go, and ends nothing
            with contextlib.ExitStack() as ending:  # each in turn, even where one of them fails
                ending.callback(self._finalizer)
                ending.callback(setattr, self, "closed", True)
                ending.callback(self._owned_names.clear)
                ending.callback(self._owned.clear)
                for one in owned:
                    ending.callback(one.close)


def _start_helper(directory: Path, seed: int) -> tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]:
    """Start the helper process. Returns the two control sockets and the process."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire_control, wire_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notebook = os.pidfd_open(os.getpid())
    try:
        passed = (theirs.fileno(), wire_theirs.fileno(), notebook)
        words = [str(_PACKAGE_ROOT), *map(str, passed), str(directory), str(seed)]
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, *words],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a notebook's interrupt goes to its whole process group
        )
    except BaseException:
        control.close()
        wire_control.close()
        raise
    finally:
        theirs.close()
        wire_theirs.close()
        os.close(notebook)
    return control, wire_control, guardian


def _said(guardian: subprocess.Popen[bytes]) -> str:
    assert guardian.stderr is not None
    return guardian.stderr.read().decode("utf-8", "replace").strip()[-2000:]


def _end(
    control: socket.socket,
    wire_control: socket.socket,
    guardian: subprocess.Popen[bytes],
    directory: Path,
    opened_by: int,
) -> None:
    """Let go of the helper, which ends for it, and wait until the kernel has ended the rest."""
    sockets.uninstall()
    ours = os.getpid() == opened_by  # and not a forked child's, which must not end its parent's lab
    if ours:
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)
    control.close()
    wire_control.close()
    if guardian.stderr is not None:
        guardian.stderr.close()
    if not ours:
        return
    # Not guardian.wait(timeout): it polls, up to 50 ms late.
    with contextlib.suppress(ProcessLookupError):  # somebody has waited for it already
        descriptor = os.pidfd_open(guardian.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(10_000):
                guardian.kill()
        finally:
            os.close(descriptor)
    guardian.wait()
    shutil.rmtree(directory, ignore_errors=True)  # there only where the guardian was killed
