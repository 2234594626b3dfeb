"""A host of the lab: its own kernel network stack, its programs, its settings and its counters."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from labkit import checks
from labkit.errors import InvalidValue, LabError
from labkit.network import environment, inside
from labkit.network.engine import Address, Engine, Owner, SocketAddress
from labkit.network.interface import Cut, Interface
from labkit.network.link import Link
from labkit.network.netlink import (
    IFF_MULTICAST,
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_RP_FILTER,
    IPV4_DEVCONF_SEND_REDIRECTS,
    RouteSocket,
)
from labkit.network.process import Completed, Program

if TYPE_CHECKING:
    from labkit.network.nat import Nat
    from labkit.network.routes import Routes

FORWARDING6 = "net.ipv6.conf.all.forwarding"


class Host:
    """One host. ``with host:`` makes Python's networking code run on it; see labkit.network.sockets.

    Attributes:
        name: "client".
        fqdn: "client.lab", which resolves inside the lab.
        ip: its IPv4 address.
        ip6: its IPv6 address, "" where the kernel has no IPv6.
        number: last byte of the MAC address of its first interface; of a lab with one network also of its addresses.
        interfaces: its interfaces, by the names of the networks that they are in.
        engine: what made it.
        lab: the lab it belongs to.
        sysctl: its kernel settings, a mapping: ``host.sysctl["net.ipv4.tcp_fastopen"] = 3``.
    """

    def __init__(self, engine: Engine, address: Address, lab: Owner) -> None:
        self.engine, self.lab = engine, lab
        self.number, self.name, self.ip, self.ip6, *_ = address
        self.interfaces: dict[str, Interface] = {}
        self._cuts: list[Cut] = []
        self._forwarding = False
        self._nat: Nat | None = None
        self.fqdn = f"{self.name}.lab"
        self.sysctl: MutableMapping[str, str] = Sysctl(self)

    def __repr__(self) -> str:
        return f"<Host {self.fqdn} {self.ip}{' (closed)' if self.engine.closed else ''}>"

    def __enter__(self) -> Host:
        self.engine.check_open()
        inside.enter(self)
        return self

    def __exit__(self, *exc: object) -> None:
        inside.leave()

    @property
    def link(self) -> Link:
        """The link between this host and the middle of the wire; of a host with several interfaces the first one's."""
        return self.engine.links[self.name]

    def set_link(self, *, seed: int | None = None, **changes: Any) -> Link:
        """Change the link while it runs: ``set_link(rtt_ms=80, loss=0.01)``.

        Args:
            seed: start the link's random numbers again, so that an experiment with loss can be repeated.
            changes: fields of labkit.Link.

        Returns:
            the link as it is now.

        Raises:
            InvalidValue: an unknown field or a value out of its range; nothing was changed.
        """
        return next(iter(self.interfaces.values())).set_link(seed=seed, **changes)

    def cut(self, way: str = "both") -> Cut:
        """Cut the host's links: what is sent from now on gets lost, and neither end is told. What is under way arrives.

        A kernel repeats the TCP segments that got lost, and its connections go on once the link is mended. On the tier
        "loopback" nobody does: what a connection lost stays lost.

        Args:
            way: "both", "up" (what the host sends) or "down" (what it would receive).

        Returns:
            the cut, with ``.mend()`` and ``.lost``; a context manager, too: ``with lab.client.cut():``.

        Raises:
            InvalidValue: another way.
        """
        cut = Cut(self.engine, self.name, way)
        self._cuts.append(cut)
        return cut

    def mend(self) -> None:
        """Mend what ``cut`` has cut on this host. Mending what is whole is fine."""
        while self._cuts:
            self._cuts.pop().mend()

    @cached_property
    def routes(self) -> Routes:
        """Its routes: ``print(host.routes)``, ``host.routes.add("198.51.100.0/24", via=lab.router)``."""
        from labkit.network.routes import Routes

        return Routes(self)

    @property
    def forwarding(self) -> bool:
        """Whether it is a router: takes packets that are for others on their way. False for a new host.

        Set it to make one, by rtnetlink, so that it can be set where /proc/sys is read-only, too: there for IPv4 alone,
        see ``lab.refused``. Routers send no redirects and check no source addresses.
        """
        return self._forwarding

    @forwarding.setter
    def forwarding(self, on: bool) -> None:
        checks.flag("forwarding", on)
        settings = {IPV4_DEVCONF_FORWARDING: int(on), IPV4_DEVCONF_SEND_REDIRECTS: 0, IPV4_DEVCONF_RP_FILTER: 0}
        with RouteSocket(self.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as route:
            for interface in self.interfaces.values():
                route.configure_ipv4(interface.index, settings)
                # A router joins IPv6's group of all routers, and would report that at random moments (MLD).
                route.set_flags(interface.index, 0, IFF_MULTICAST)
        if self.ip6:
            try:
                self.engine.write_file(self.name, Sysctl._path(FORWARDING6), f"{int(on)}\n")
            except OSError as exc:
                self.engine.refused[FORWARDING6] = exc.strerror or str(exc)
        self._forwarding = on

    def nat(self, kind: str = "port restricted cone", *, outside: str | None = None, timeout_s: float = 120.0) -> Nat:
        """Translate addresses on this router: all behind it share its address on one network. IPv4 alone.

        It is a process of ours on the host, and needs no module of the kernel. From now on the host itself has no
        address of its own outside. Called again, it takes the place of what runs: another kind, no mappings. It knows
        the networks, routes and MTU that were there when it began.

        Args:
            kind: "full cone", "restricted cone", "port restricted cone" or "symmetric" (RFC 3489 section 5): who may
                send to a mapping, and, for a symmetric one, that each destination gets a mapping of its own.
            outside: name of the network; by default that of the host's last interface.
            timeout_s: how long an unused mapping of UDP or ICMP lasts, seconds.

        Returns:
            the translation, with ``.mappings``, ``.public_ip`` and ``.close()``; a context manager, too.

        Raises:
            InvalidValue: no such kind or network, or a host on one network. NotReady, MeasurementFailed: no start.
        """
        from labkit.network.nat import start_nat

        if self._nat is not None:
            self._nat.close()
        self._nat = start_nat(self, kind, outside, timeout_s)
        return self._nat

    def open_descriptor(self, family: int, kind: int, protocol: int = 0) -> int:
        """A socket of this host as a bare descriptor, which the caller owns. Raises the kernel's own OSError."""
        self.engine.check_open()
        for name, value in (("family", family), ("kind", kind), ("protocol", protocol)):
            checks.whole(name, value)
        return self.engine.open_socket(self.name, family, kind, protocol)

    def namespaces(self) -> Mapping[str, int]:
        """Descriptors of the namespaces that make this host, for what enters it. Raises NotAvailableHere."""
        self.engine.check_open()
        return self.engine.namespaces(self.name)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this host, without entering it. Raises the kernel's own OSError."""
        return socket.socket(fileno=self.open_descriptor(family, kind, protocol))

    def run(
        self,
        args: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run a program on this host to its end: ``host.run(["curl", "https://server.lab/"])``.

        Args:
            args: the program and its arguments.
            timeout_s: deadline in seconds; the program is ended when it passes.
            stdin: what it reads.
            env: environment variables on top of the notebook's. Set for you: SSLKEYLOGFILE and the lab's authority.
            cwd: directory to run in, the notebook's by default.

        Raises:
            InvalidValue: an argument that cannot be; nothing was started.
            ProgramNotFound: it is not on PATH.
            NotReady: it did not end in time.
        """
        checks.number("timeout_s", timeout_s, 0, unit="seconds")
        with self.start(args, stdin=stdin, env=env, cwd=cwd) as program:
            returncode = program.wait(timeout_s)
        return Completed(program.args, returncode, program.stdout, program.stderr)

    def start(
        self,
        args: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        files: Sequence[int] | None = None,
    ) -> Program:
        """Start a program on this host and go on. It ends with the lab at the latest.

        Args:
            args, stdin, env, cwd: see ``run``.
            files: descriptors for its standard input, output and error, which stay yours; nothing is kept of what it
                says. A terminal as the first becomes the program's own, with Ctrl-C and the like.

        Raises as ``run`` does.
        """
        program = self.program(args, stdin=stdin, env=env, cwd=cwd, files=files)
        self.lab.register(program)
        return program

    def program(
        self,
        args: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        files: Sequence[int] | None = None,
    ) -> Program:
        """As ``start``, but the program is the caller's to close: the lab does not know of it."""
        asked = checks.optional(checks.environment, "env", env) or {}
        program_env = environment.of_programs(self.lab.program_environment, asked)
        return Program(self.engine, self.name, args, env=program_env, cwd=cwd, stdin=stdin, files=files)

    def terminal(self) -> Any:
        """A terminal on this host, in the learner's JupyterLab: as a cell's last line it is a link that opens it.

        Where no notebook server is known, it is the command that opens it in a terminal of this machine. It is an
        interactive shell of this user's, and ends with the lab. From then on `labkit attach` and `labkit capture -w -`
        find the lab, too.

        Returns:
            labkit.servers.terminal_link.TerminalLink. Raises LabClosed.
        """
        return self.lab.terminal(self)

    def bound(self, port: int) -> SocketAddress:
        """Where a program on this host has to listen so that others find it at this host's `port`, by TCP and UDP.

        The host's own address and `port`; on the tier "loopback" a free port of 127.0.0.1, to which the relay carries
        what others send to this host's `port`. The same until the lab ends.

        Raises:
            InvalidValue: a port that cannot be. NameTaken: "loopback", where a socket of this process listens there.
        """
        return self.engine.bound(self.name, checks.port("port", port))

    def door(self, server: Host, port: int) -> SocketAddress:
        """Where a program on this host has to connect, or send datagrams, to reach a `port` of `server`.

        The server's own address and `port`; on the tier "loopback" a port of 127.0.0.1 that stands for it: what a
        program says there crosses the wire as this host's, delayed and captured. There the program's connection is
        open at once, and closed again where nobody listens. The same until the lab ends.

        Raises:
            InvalidValue: a port that cannot be, or a host that is not this lab's.
        """
        if not isinstance(server, Host) or server.engine is not self.engine:
            raise InvalidValue(f"server={server!r}: give a host of the same lab")
        return self.engine.door(self.name, server.name, checks.port("port", port))

    @property
    def congestion_controls(self) -> tuple[str, ...]:
        """The algorithms that this kernel has: names for ``sock.setsockopt(IPPROTO_TCP, TCP_CONGESTION, b"cubic")``.

        A host's sockets begin with "reno", whatever the machine's default is. See tcp(7).
        """
        return tuple(self.sysctl["net.ipv4.tcp_available_congestion_control"].split())

    @property
    def counters(self) -> Counters:
        """The kernel's counters of this host, now. Subtract two of them to see what happened in between."""
        return Counters.parse(
            *(self.engine.read_file(self.name, f"/proc/net/{name}") for name in ("snmp", "netstat", "snmp6"))
        )


class Counters(Mapping[str, int]):
    """Kernel counters, named as nstat(8) names them: "TcpActiveOpens", "TcpExtListenOverflows"."""

    def __init__(self, values: dict[str, int]) -> None:
        self._values = values

    @classmethod
    def parse(cls, snmp: str, netstat: str, snmp6: str) -> Counters:
        """From the texts of /proc/net/snmp, netstat (a line of names, then a line of values) and snmp6."""
        values: dict[str, int] = {}
        for text in (snmp, netstat):
            lines = [line.split() for line in text.splitlines()]
            for names, numbers in zip(lines[::2], lines[1::2], strict=True):
                prefix = names[0].rstrip(":")
                values.update({prefix + name: int(n) for name, n in zip(names[1:], numbers[1:], strict=True)})
        for line in snmp6.splitlines():
            name, number = line.split()
            values[name] = int(number)
        return cls(values)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters({name: value - earlier.get(name, 0) for name, value in self._values.items()})

    def changed(self) -> dict[str, int]:
        """Those that are not 0: of a difference, what happened."""
        return {name: value for name, value in self._values.items() if value}

    def __repr__(self) -> str:
        return f"<Counters {self.changed()}>"


class Sysctl(MutableMapping[str, str]):
    """A host's kernel settings below net., as sysctl(8) names them. Values are text; numbers are taken too."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @staticmethod
    def _path(name: str) -> str:
        if not isinstance(name, str) or not name.startswith("net.") or ".." in name or "/" in name or "\0" in name:
            raise InvalidValue(f"sysctl {name!r}: a host has those below net., for instance 'net.ipv4.tcp_fastopen'")
        return "/proc/sys/" + name.replace(".", "/")

    def __getitem__(self, name: str) -> str:
        try:
            return self._host.engine.read_file(self._host.name, self._path(name)).strip()
        except (FileNotFoundError, IsADirectoryError):
            raise KeyError(f"{name}: this kernel gives a host no such setting") from None

    def __setitem__(self, name: str, value: object) -> None:
        path = self._path(name)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise checks.wrong(name, value, "give a text or a whole number")
        try:
            self._host.engine.write_file(self._host.name, path, f"{value}\n")
        except (FileNotFoundError, IsADirectoryError):
            raise KeyError(f"{name}: this kernel gives a host no such setting") from None
        except OSError as exc:
            raise LabError(
                f"{name} = {value!r} on {self._host.name}: the kernel says {exc.strerror!r}. "
                "Look at the values it takes, and whether /proc/sys can be written (labkit doctor)"
            ) from exc

    def __delitem__(self, name: str) -> None:
        raise InvalidValue(f"sysctl {name!r} cannot be deleted: set it to another value")

    def __iter__(self) -> Iterator[str]:
        text = self._host.run(["sh", "-c", "cd /proc/sys && find net -type f -perm /200"]).check().stdout
        return iter(sorted(line.replace("/", ".") for line in text.split()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Sysctl of {self._host.name}>"
