"""The lab's network: its hosts, the wire that joins them, and what must end with them, on an engine."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import checks
from labkit.errors import InvalidValue, NameTaken, NotAvailableHere
from labkit.network.addresses import Subnet, subnet
from labkit.network.engine import Address, Closable, Engine, Start
from labkit.network.link import Link

# Further modules are imported where they are used: by then the lab's first process has been started, and both begin at
# the same time (labkit.network.isolation).
if TYPE_CHECKING:
    from labkit.network.host import Host
    from labkit.network.interface import Interface

MOST_HOSTS = 250  # the number of an interface is one byte of its addresses
FIRST_NETWORK = "lab"
ENDS = ("client", "server")  # no routers, on however many networks they are
HOST_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
# Attributes of a lab that its class does not show.
RESERVED = {"name", "seed", "hosts", "networks", "program_environment", "directory", "engine", "wire"}

_named: weakref.WeakValueDictionary[str, Network] = weakref.WeakValueDictionary()


class Network:
    """Hosts joined by a wire, without privilege.

    Args:
        links: the hosts, in the order of their addresses (192.0.2.1, 192.0.2.2, …), each with its link.
        networks: the hosts on each network, where there are several. A host on more than one is a router, but for
            `client` and `server`.
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
        networks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        plan = {FIRST_NETWORK: list(links)} if networks is None else {key: list(networks[key]) for key in networks}
        self._check_plan(plan, links)
        for host_name, link in links.items():
            self._check_name(host_name)
            if not isinstance(link, Link):
                raise InvalidValue(f"link of host {host_name!r} is {link!r}: give a labkit.Link")
        if (interfaces := sum(map(len, plan.values()))) > MOST_HOSTS:
            raise InvalidValue(f"{interfaces} hosts: a lab holds {MOST_HOSTS}")
        checks.whole("seed", seed)
        checks.optional(checks.text, "name", name, "my lab")
        if name is not None and (predecessor := _named.get(name)) is not None:
            predecessor.close()
        self.name = name
        self.seed = seed
        self.hosts: dict[str, Host] = {}
        self.networks: dict[str, Subnet] = {}
        self._routed: dict[Any, tuple[str, str]] = {}  # see labkit.network.connect
        self.program_environment: dict[str, str] = {}
        self._owned: list[Closable] = []
        self._owned_names: dict[str, Closable] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self.directory = Path(tempfile.gettempdir(), f"labkit-{os.urandom(6).hex()}")
        first = next(iter(plan))
        self.engine = engine(self.directory, seed, plan[first])
        self.engine.name = name or self.engine.name
        from labkit.network import within
        from labkit.network.wire_control import WireControl

        within.install()
        self._finalizer = weakref.finalize(self, _end, self.engine)
        try:
            self.wire = WireControl(self.engine)
            self.networks[first] = self.engine.subnets[0]
            for address in self.engine.hosts.values():
                self._know(address, links[address.name])
            for network in list(plan)[1:]:
                self._lay_out(network, plan[network], links)
        except BaseException:
            self.close()
            raise
        if name is not None:
            _named[name] = self

    def add_host(self, name: str, link: Link | None = None, *, network: str | None = None) -> Host:
        """One more host, reachable from all the others at once.

        Args:
            name: letters, digits and underscores; the host answers to ``name.lab``.
            link: what its link does to frames; by default no delay and no loss.
            network: the one that it is on; by default the lab's first.

        Raises:
            InvalidValue, NameTaken: a name that cannot be. OSError: the kernel refused.
        """
        self._check_new_host(name)
        checks.optional(checks.instance, "link", link, Link, "a labkit.Link")
        host = self._know(self.engine.add_host(name, self._number_of(network)), link)
        self._connect()
        return host

    def add_network(self, name: str) -> Subnet:
        """One more network, with addresses of its own and nobody on it yet.

        Args:
            name: letters, digits and underscores.

        Returns:
            its addresses: ``.cidr`` is "198.51.100.0/24", ``.cidr6`` "2001:db8:0:1::/64".

        Raises:
            InvalidValue, NameTaken: a name that cannot be, or one network too many. NotAvailableHere: on "loopback".
        """
        self.check_open()
        self._check_network_name(name)
        if name in self.networks:
            raise NameTaken(f"network {name!r} is there already, with {self.networks[name].cidr}: choose another name")
        self.networks[name] = self.engine.add_subnet()
        return self.networks[name]

    def add_router(self, name: str, networks: Sequence[str]) -> Host:
        """A host on several networks that forwards packets. Each host gets routes to the networks behind it.

        Args:
            name: as of ``add_host``.
            networks: those that it joins, in the order of its interfaces.

        Raises:
            As ``add_host``, and InvalidValue for a network that is not there.
        """
        named = checks.texts("networks", networks, list(self.networks))
        if len(set(named)) < 2 or len(set(named)) < len(named):
            raise checks.wrong(
                "networks", networks, f"a router joins two at least, each once: {', '.join(self.networks)}"
            )
        self._check_new_host(name, len(networks))
        for network in networks:
            self.engine.next_addresses(self._number_of(network))  # before there is half a router
        host = self._know(self.engine.add_host(name, self._number_of(networks[0])), None)
        for network in networks[1:]:
            self._plug(host, network)
        host.forwarding = True
        self._connect()
        return host

    def add_interface(self, host: Host | str, network: str, link: Link | None = None) -> Interface:
        """One more interface of a host, in another network. It does not make a router of it: see ``Host.forwarding``.

        Args:
            host: which one.
            network: one that the host is not on yet.
            link: what its link does to frames; by default no delay and no loss.

        Returns:
            the interface, which is ``host.interfaces[network]`` from now on.

        Raises:
            InvalidValue, NameTaken: no such host or network, or it is there already. OSError: the kernel refused.
        """
        self.check_open()
        owner = self._host("host", host)
        self._number_of(network)
        checks.optional(checks.instance, "link", link, Link, "a labkit.Link")
        if network in owner.interfaces:
            raise NameTaken(f"{owner.name} is on {network!r} already: {owner.interfaces[network]!r}")
        self._check_room(f"interface of {owner.name}")
        interface = self._plug(owner, network)
        if link is not None and link != Link():
            self.engine.set_link(interface.label, link)
        if owner.forwarding:
            owner.forwarding = True  # its new interface, too
        self._connect()
        return interface

    def _lay_out(self, network: str, hosts: Sequence[str], links: Mapping[str, Link]) -> None:
        """The next network of a lab that begins, and who is on it."""
        number = self.add_network(network).number
        for name in hosts:
            if name not in self.hosts:
                self._know(self.engine.add_host(name, number), links[name])
            else:
                self._plug(self.hosts[name], network)
                self.hosts[name].forwarding = name not in ENDS
        self._connect()

    def _know(self, address: Address, link: Link | None) -> Host:
        from labkit.network.host import Host
        from labkit.network.interface import Interface

        host = self.hosts[address.name] = Host(self.engine, address, self)
        network = list(self.networks)[address.subnet]
        host.interfaces[network] = Interface(self.engine, host.name, address, network)
        if link is not None and link != Link():
            self.engine.set_link(host.name, link)
        return host

    def _plug(self, host: Host, network: str) -> Interface:
        label = f"{host.name}/{network}"
        address = self.engine.add_interface(host.name, label, self.networks[network].number)
        from labkit.network.interface import Interface

        host.interfaces[network] = interface = Interface(self.engine, label, address, network)
        return interface

    def _connect(self) -> None:
        """Give every host the routes to what stands behind routers. What a notebook has changed since stays."""
        if len(self.networks) < 2:
            return
        from labkit.network.connect import connect

        self._routed = connect(self.hosts, self.networks, self._routed)

    def _host(self, argument: str, given: object) -> Host:
        """A host of this lab, by itself or by its name. Raises InvalidValue."""
        from labkit.network.host import Host

        if isinstance(given, str):
            return self[given]
        if not isinstance(given, Host) or given.lab is not self:
            raise checks.wrong(argument, given, f"give a host of this lab, which has {', '.join(self.hosts)}")
        return given

    def _number_of(self, network: str | None) -> int:
        if network is not None and (not isinstance(network, str) or network not in self.networks):
            raise InvalidValue(f"no network {network!r} in this lab, which has {', '.join(self.networks)}")
        return 0 if network is None else self.networks[network].number

    def _check_new_host(self, name: str, interfaces: int = 1) -> None:
        self.check_open()
        self._check_name(name)
        if name in self.hosts:
            raise NameTaken(f"host {name!r} is there already: choose another name, or use lab.{name}")
        self._check_room(f"host {name!r}", interfaces)

    def _check_room(self, what: str, interfaces: int = 1) -> None:
        if len(self.engine.interfaces) + interfaces > MOST_HOSTS:
            raise InvalidValue(f"{what} would be number {MOST_HOSTS + 1}: a lab holds {MOST_HOSTS}")

    def _check_plan(self, plan: Mapping[str, Sequence[str]], links: Mapping[str, Link]) -> None:
        for number, (network, hosts) in enumerate(plan.items()):
            self._check_network_name(network)
            subnet(number).addresses(len(hosts))
            for name in hosts:
                if name not in links or list(hosts).count(name) > 1:
                    raise InvalidValue(f"networks={{{network!r}: {list(hosts)!r}}}: {name!r} stands there twice")
        if not plan:
            raise InvalidValue("networks={}: name one at least, or leave it out")
        if missing := [name for name in links if not any(name in hosts for hosts in plan.values())]:
            raise InvalidValue(f"host {missing[0]!r} is on none of the networks {', '.join(plan)}: put it on one")

    def _check_network_name(self, name: object) -> None:
        if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
            raise InvalidValue(f"network name {name!r}: lower-case letters, digits and underscores, a letter first")

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
        if not isinstance(name, str) or name not in self.hosts:
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

    def terminal(self, host: Any) -> Any:
        """A link to a terminal on a host: what labkit.lab.Lab has. Raises NotAvailableHere."""
        raise NotAvailableHere(f"a terminal on {host.name} is what a labkit.Lab gives, not a bare network")

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
    from labkit.network import within

    within.uninstall()
    engine.end()
