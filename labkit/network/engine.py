"""What makes a lab's hosts and carries their frames: the one interface of all tiers.

A lab, its hosts, their programs and ``lab.wire`` hold an engine and ask nothing else. labkit.network.isolation
implements it by a helper process with namespaces, labkit.loopback.engine by a relay between sockets of 127.0.0.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from labkit.errors import LabClosed
from labkit.network.addresses import Subnet, subnet
from labkit.network.link import Counts, Link, Rule

if TYPE_CHECKING:
    from labkit.network.ring import RingFrame


class Closable(Protocol):
    """Anything that a lab can own."""

    def close(self) -> None: ...


class Source(Protocol):
    """Where a capture takes frames from."""

    frames: list[RingFrame]  # those that were read

    def collect(self) -> int:
        """Take what has come out of the kernel's memory, unread. Returns how many of its blocks that were."""

    def flush(self) -> None:
        """Collect all that was sent before this call."""

    def read(self) -> None:
        """Read what was collected into ``frames``. Something else may be collected meanwhile."""

    def dropped(self) -> int:
        """How many there was no room for, in all."""

    def close(self) -> None: ...


class Running(Protocol):
    """A program on a host. Who closes it before its end does not want it any more: it is ended."""

    pid: int  # as the engine knows it

    def fileno(self) -> int:
        """A descriptor that can be read once it has ended."""

    def wait(self, timeout_s: float) -> int:
        """Its exit status; negative: the signal that ended it. Raises TimeoutError."""

    def close(self) -> None: ...


class SocketAddress(NamedTuple):
    """An IPv4 address and a port, as sockets take it; in text "192.0.2.2:5432"."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


class Address(NamedTuple):
    """An interface of a host, as the engine knows it.

    Attributes:
        number: of the interface in the lab: the last byte of its MAC address.
        name: of the host.
        ip, ip6: its addresses, "" where there is no such protocol.
        interface_index: by which captures in the middle of the wire name its link.
        subnet: number of the network that it is in.
        device: what the host's kernel calls it.
        device_index: by which the host's kernel knows it.
    """

    number: int
    name: str
    ip: str
    ip6: str
    interface_index: int
    subnet: int = 0
    device: str = "eth0"
    device_index: int = 0


class Named(Protocol):
    """A host, or its Address."""

    @property
    def name(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def ip6(self) -> str: ...


class OnHost(Named, Protocol):
    """What ``with host:`` needs of a host."""

    @property
    def fqdn(self) -> str: ...
    @property
    def lab(self) -> Owner: ...

    def open_descriptor(self, family: int, kind: int, protocol: int = 0) -> int: ...
    def namespaces(self) -> Mapping[str, int]: ...


class Owner(Protocol):
    """What a host knows of its lab."""

    @property
    def hosts(self) -> Mapping[str, OnHost]: ...
    @property
    def program_environment(self) -> Mapping[str, str]: ...

    def register(self, owned: Closable, name: str | None = None) -> None: ...

    def terminal(self, host: Any) -> Any: ...


# What makes an interface: takes an address without what the engine chooses, returns it whole, and the wire end's name.
Make = Callable[[Address], tuple[Address, str]]


class Engine(ABC):
    """Hosts and the wire between them. Every method raises LabClosed after ``end``, and the kernel's own OSError.

    Args:
        directory: of the lab, mode 0700; the engine's first process makes it and removes it, so that no interrupt in
            the notebook can leave it behind.

    Attributes:
        name: of the lab, for errors.
        hosts: the first interface of each, by the hosts' names.
        interfaces, links: by label: that of a host's first interface is the host's name.
        subnets: the lab's networks, the first one first.
        refused: kernel settings and the like that this machine refused, each with the kernel's word.
        why_lower: the reason for which there is no better engine, and the way out; "" for the best.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = "this lab"
        self.closed = False
        self.hosts: dict[str, Address] = {}
        self.interfaces: dict[str, Address] = {}
        self.links: dict[str, Link] = {}
        self.subnets = [subnet(0)]
        self.refused: dict[str, str] = {}
        self.why_lower = ""

    @property
    @abstractmethod
    def tier(self) -> str:
        """A name of labkit.network.tiers.TIERS."""

    @property
    @abstractmethod
    def first_pid(self) -> int:
        """Process id of the first of its processes, the parent of the others."""

    @abstractmethod
    def end(self) -> None:
        """End all of its processes. Ending twice is fine."""

    def check_open(self) -> None:
        """Raises LabClosed where it has ended."""
        if self.closed:
            raise LabClosed(f"{self.name} is closed: run the cell that opens it again")

    # Hosts. NotAvailableHere is what an engine raises that cannot do it.

    def add_host(self, name: str, network: int = 0) -> Address:
        """One more host, plugged into the wire, in the network of that number."""
        self.hosts[name] = self._plug_in(self._make_host, name, name, network)
        return self.hosts[name]

    def _add_first_hosts(self, names: Sequence[str]) -> None:
        """The hosts that a lab begins with. All are made before the wire, which may still be starting, is told of one.

        What fails ends the engine.
        """
        interfaces = []
        for name in names:
            self.hosts[name], interface = self._make_one(self._make_host, name, name, 0)
            interfaces.append(interface)
        for name, interface in zip(names, interfaces, strict=True):
            self._attach(name, interface)

    def add_interface(self, host: str, label: str, network: int) -> Address:
        """One more interface of a host."""
        return self._plug_in(self._make_interface, host, label, network)

    def add_subnet(self) -> Subnet:
        """One more network, with nobody on it yet."""
        self.check_open()
        self.subnets.append(subnet(len(self.subnets)))
        return self.subnets[-1]

    def next_addresses(self, network: int) -> tuple[str, str]:
        """Those of the interface that comes next to a network. Raises InvalidValue where there are none left."""
        there = [each.subnet for each in self.interfaces.values()].count(network)
        return self.subnets[network].addresses(there + 1)

    def _plug_in(self, make: Make, host: str, label: str, number: int) -> Address:
        address, interface = self._make_one(make, host, label, number)
        try:
            self._attach(label, interface)
        except BaseException:
            del self.interfaces[label], self.links[label]
            raise
        return address

    def _make_one(self, make: Make, host: str, label: str, number: int) -> tuple[Address, str]:
        self.check_open()
        device = f"eth{sum(each.name == host for each in self.interfaces.values())}"
        ip, ip6 = self.next_addresses(number)
        address, interface = make(Address(len(self.interfaces) + 1, host, ip, ip6, 0, number, device))
        self.interfaces[label], self.links[label] = address, Link()
        return address, interface

    def _attach(self, label: str, interface: str) -> None:
        address = self.interfaces[label]
        request = {"op": "attach", "number": address.number, "host": address.name, "label": label}
        self._ask_wire({**request, "network": address.subnet, "interface": interface})

    @abstractmethod
    def _make_host(self, address: Address) -> tuple[Address, str]:
        """The host. Returns its first interface with what the engine chose of it, and the name of the wire's end."""

    @abstractmethod
    def _make_interface(self, address: Address) -> tuple[Address, str]:
        """One more interface of a host. Returns as `_make_host`."""

    @abstractmethod
    def _set_mtu(self, label: str, mtu: int | None) -> None:
        """Tell a host's kernel how long the packets of an interface may be; None for 1500 bytes."""

    @abstractmethod
    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int:
        """A socket as a bare descriptor, which the caller owns: on a host or (None) in the middle of the wire."""

    @abstractmethod
    def namespaces(self, host: str) -> Mapping[str, int]:
        """Descriptors of a host's namespaces by their names in /proc/self/ns, and "lab", a pidfd that is readable when
        the lab has ended. They stay the engine's.

        What enters them ends with the lab, at the latest when ``end`` returns.
        """

    @abstractmethod
    def read_file(self, host: str, path: str) -> str:
        """The text of a file as a host sees it, such as /proc/net/snmp."""

    @abstractmethod
    def write_file(self, host: str, path: str, text: str) -> None:
        """Write a file as a host sees it, such as one below /proc/sys/net."""

    @abstractmethod
    def start_program(
        self, host: str, argv: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[int]
    ) -> Running:
        """Execute a program on a host, with three descriptors as standard input, output and error.

        A terminal as standard input becomes that of the program's session."""

    @abstractmethod
    def signal_program(self, pid: int, number: int) -> None:
        """Signal a program and the processes that it started. Those that have ended are no error."""

    def bound(self, host: str, port: int) -> SocketAddress:
        """Where a program has to listen so that it is found at a host's port, by TCP and UDP. Raises NameTaken."""
        self.check_open()
        return SocketAddress(self.hosts[host].ip, port)

    def door(self, host: str, target: str, port: int) -> SocketAddress:
        """Where a program of a host has to connect, or send datagrams, so that it reaches a port of another host."""
        self.check_open()
        return SocketAddress(self.hosts[target].ip, port)

    @abstractmethod
    def tap(self, host: str | None) -> Source:
        """Every frame of a host from now on, or (None) of all links, seen from the middle of the wire."""

    # The wire.

    @abstractmethod
    def _ask_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request to labkit.network.wire.Wire, and its answer."""

    def set_link(self, label: str, link: Link, seed: int | None = None) -> None:
        """Change an interface's link. A seed starts its random numbers again."""
        if link.mtu != self.links[label].mtu:
            self._set_mtu(label, link.mtu)
        number = self.interfaces[label].number
        self._ask_wire({"op": "set", "number": number, "link": vars(link), "seed": seed})
        self.links[label] = link

    def add_rule(self, rule: Rule) -> int:
        """Put a rule to work. Returns the number by which it is known."""
        return int(self._ask_wire({"op": "rule", "rule": rule.as_message()})["identity"])

    def rule_counts(self, identity: int) -> tuple[int, int] | None:
        """How many frames a rule matched, and on how many it acted; None for one that was removed."""
        counts = self._ask_wire({"op": "rules"})["rules"].get(str(identity))
        return None if counts is None else (counts["matched"], counts["acted"])

    def remove_rule(self, identity: int) -> None:
        """Take a rule away. Twice is fine."""
        self._ask_wire({"op": "unrule", "identity": identity})

    def wire_counts(self) -> tuple[dict[str, dict[str, Counts]], int]:
        """What the wire carried by interface and way ("up", "down"), and how many frames are under way."""
        reply = self._ask_wire({"op": "counts"})
        links = {host: {way: Counts(**told) for way, told in ways.items()} for host, ways in reply["links"].items()}
        return links, int(reply["in_flight"])


# What starts an engine: the lab's directory, the seed of every random decision of the wire, names of the first hosts.
Start = Callable[[Path, int, Sequence[str]], Engine]
