"""The lab's network: the helper process, the hosts it made, and the wire that joins them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import InvalidValue, LabClosed, NameTaken
from labkit.network import sockets
from labkit.network.host import Host
from labkit.network.isolation import Isolation, unavailable
from labkit.network.link import Link
from labkit.network.ring import RingFrame
from labkit.network.wire_control import WireControl

MOST_HOSTS = 250  # their number is one byte of their addresses
HOST_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
# Attributes of a lab that its class does not show.
RESERVED = {"name", "seed", "closed", "hosts", "program_environment", "directory", "engine", "wire", "why_lower"}

_named: weakref.WeakValueDictionary[str, Network] = weakref.WeakValueDictionary()


class Closable(Protocol):
    """Anything that a lab can own."""

    def close(self) -> None: ...


class Source(Protocol):
    """Where a capture takes frames from."""

    def frames(self, limit: int) -> Iterable[RingFrame]:
        """Those that have come since the last look, at most `limit`."""

    def dropped(self) -> int:
        """How many there was no room for, in all."""

    def close(self) -> None: ...


class Engine(Protocol):
    """What makes hosts and carries their frames. Its constructor takes the lab's directory and the seed."""

    refused: dict[str, str]

    @property
    def tier(self) -> str: ...

    @property
    def first_pid(self) -> int:
        """Process id of the first of its processes, the parent of the others."""

    def add_host(self, request: dict[str, Any]) -> dict[str, Any]: ...

    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int: ...

    def call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]: ...

    def call_wire(self, request: dict[str, Any]) -> dict[str, Any]: ...

    def open_request(self, request: dict[str, Any], descriptors: Sequence[int]) -> socket.socket: ...

    def tap(self, host: str | None) -> Source: ...

    def end(self) -> None: ...


class Network:
    """Hosts joined by a wire, without privilege.

    Args:
        links: the hosts, in the order of their addresses (10.77.0.1, 10.77.0.2, …), each with its link.
        seed: for every random decision of the wire.
        name: opening a second network of the same name closes the first, so that a cell can be run twice.
        engine: what makes the hosts: namespaces of their own by default.

    Raises:
        LabUnavailable: this machine gives no namespaces; the message says why and what would.
        InvalidValue, NameTaken: a host's name that cannot be.
    """

    def __init__(
        self,
        links: Mapping[str, Link],
        *,
        seed: int = 0,
        name: str | None = None,
        engine: Callable[[Path, int], Engine] = Isolation,
    ) -> None:
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
        self._owned: list[Closable] = []
        self._owned_names: dict[str, Closable] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        # The engine makes it, with mode 0700, and removes it: no interrupt here can leave it behind.
        self.directory = Path(tempfile.gettempdir(), f"labkit-{secrets.token_hex(6)}")
        self.engine = engine(self.directory, seed)
        sockets.install()
        self._finalizer = weakref.finalize(self, _end, self.engine)
        try:
            self.wire = WireControl(self)
            for host_name, link in links.items():
                self.add_host(host_name, link)
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError) and exc.errno is not None:  # the kernel's, not a deadline of ours
                raise unavailable(exc) from exc
            raise
        if name is not None:
            _named[name] = self

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
        reply = self.engine.add_host({"number": number, "name": name, "ip": ip, "ip6": ip6})
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
    def refused(self) -> dict[str, str]:
        """Kernel settings and the like that this machine refused, each with the kernel's word."""
        return self.engine.refused

    @property
    def tier(self) -> str:
        """What this machine lets the lab do: a name of labkit.network.tiers.TIERS."""
        return self.engine.tier

    # What the lab's parts ask of the engine.

    def check_open(self) -> None:
        """Raises LabClosed where it is."""
        if self.closed:
            raise LabClosed(f"{self.name or 'this lab'} is closed: run the cell that opens it again")

    def call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Ask the engine. Raises LabClosed, NotAvailableHere, or the kernel's own OSError."""
        self.check_open()
        return self.engine.call(request, descriptors)

    def call_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the wire. Raises LabClosed, NotAvailableHere, or the kernel's own OSError."""
        self.check_open()
        return self.engine.call_wire(request)

    def open_request(self, request: dict[str, Any], descriptors: Sequence[int]) -> socket.socket:
        """A request with more than one answer: they come on the socket returned."""
        self.check_open()
        return self.engine.open_request(request, descriptors)

    def open_descriptor(self, host: str, family: int, kind: int, protocol: int) -> int:
        """A host's socket as a bare descriptor, which the caller owns. Raises LabClosed, OSError."""
        self.check_open()
        return self.engine.open_socket(host, family, kind, protocol)

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


def _end(engine: Engine) -> None:
    """At the lab's end, or the interpreter's."""
    sockets.uninstall()
    engine.end()
