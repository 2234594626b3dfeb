"""The lab's network: its hosts, the wire that joins them, and what must end with them, on an engine."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.errors import InvalidValue, NameTaken
from labkit.network import sockets
from labkit.network.engine import Address, Closable, Engine, Start
from labkit.network.host import Host
from labkit.network.link import Link
from labkit.network.wire_control import WireControl

MOST_HOSTS = 250  # their number is one byte of their addresses
HOST_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
# Attributes of a lab that its class does not show.
RESERVED = {"name", "seed", "hosts", "program_environment", "directory", "engine", "wire"}

_named: weakref.WeakValueDictionary[str, Network] = weakref.WeakValueDictionary()


class Network:
    """Hosts joined by a wire, without privilege.

    Args:
        links: the hosts, in the order of their addresses (192.0.2.1, 192.0.2.2, …), each with its link.
        seed: for every random decision of the wire.
        name: opening a second network of the same name closes the first, so that a cell can be run twice.
        engine: what starts the engine that makes the hosts, see labkit.network.engine.

    Raises:
        InvalidValue, NameTaken: a host's name that cannot be; nothing was started. What `engine` raises.
    """

    def __init__(
        self,
        links: Mapping[str, Link],
        *,
        seed: int = 0,
        name: str | None = None,
        engine: Start,
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
        self.hosts: dict[str, Host] = {}
        self.program_environment: dict[str, str] = {}
        self._owned: list[Closable] = []
        self._owned_names: dict[str, Closable] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self.directory = Path(tempfile.gettempdir(), f"labkit-{secrets.token_hex(6)}")
        self.engine = engine(self.directory, seed, list(links))
        self.engine.name = name or self.engine.name
        sockets.install()
        self._finalizer = weakref.finalize(self, _end, self.engine)
        try:
            self.wire = WireControl(self.engine)
            for address in self.engine.hosts.values():
                self._know(address, links[address.name])
        except BaseException:
            self.close()
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
        if len(self.hosts) >= MOST_HOSTS:
            raise InvalidValue(f"host {name!r} would be number {MOST_HOSTS + 1}: a lab holds {MOST_HOSTS}")
        return self._know(self.engine.add_host(name), link)

    def _know(self, address: Address, link: Link | None) -> Host:
        host = self.hosts[address.name] = Host(self.engine, address, self)
        if link is not None and link != Link():
            self.engine.set_link(host.name, link)
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

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.engine.closed

    def check_open(self) -> None:
        """Raises LabClosed where it has ended."""
        self.engine.check_open()

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
                ending.callback(self._owned_names.clear)
                ending.callback(self._owned.clear)
                for one in owned:
                    ending.callback(one.close)


def _end(engine: Engine) -> None:
    """At the lab's end, or the interpreter's."""
    sockets.uninstall()
    engine.end()
