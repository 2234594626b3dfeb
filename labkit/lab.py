"""The lab: a network whose packets can be captured and whose servers can be trusted."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from labkit import checks
from labkit.errors import LabUnavailable, NameTaken
from labkit.network.engine import Engine
from labkit.network.isolation import Isolation
from labkit.network.link import Link
from labkit.network.network import Network
from labkit.network.tiers import FIXED, KERNEL, LOOPBACK, TIERS, allows, forced

if TYPE_CHECKING:
    from labkit.capture.capture import Capture
    from labkit.capture.stream import LiveStream
    from labkit.network.attach import Door
    from labkit.network.host import Host
    from labkit.queues.watch import Watch
    from labkit.servers.authority import Authority
    from labkit.servers.terminal_link import TerminalLink

T = TypeVar("T")


class Lab(Network):
    """A small network on this machine: `client` and `server`, and any further hosts.

    ::

        client ──link(rtt_ms, loss, …)── wire ── server
                                          └───── further hosts, each with a link of its own

    Args:
        rtt_ms: round-trip time of the client's link, milliseconds.
        loss: probability from 0 to 1 that the client's link loses a frame, in each direction.
        rate_mbps: rate of the client's link in Mbit/s, None for as fast as the machine can.
        jitter_ms: largest random delay that the client's link adds to a frame, milliseconds.
        hosts: further hosts: names, or a mapping from names to links. Without a link a host stands in the middle,
            with no delay of its own. The RTT of two hosts is the sum of their links' RTTs.
        networks: the hosts on each network, where one is not enough: ``{"inside": ["client", "router"], "outside":
            ["router", "server"]}``. A host on more than one is a router, but for `client` and `server`, which then
            have several interfaces. Each host has routes to all networks.
        seed: for every random decision of the wire, so that an experiment with loss can be repeated.
        name: opening a second lab of this name closes the first, so that a cell can be run twice.

    The hosts are network namespaces of this machine's kernel where it gives them, else names for sockets on 127.0.0.1:
    see ``lab.tier``, labkit.network.tiers and `labkit doctor`. The variable LABKIT_TIER asks for a lower tier.

    Raises:
        InvalidValue, NameTaken: a value that cannot be; nothing was started.
        LabUnavailable: LABKIT_TIER asks for more than this machine gives.
    """

    def __init__(
        self,
        rtt_ms: float = 40.0,
        *,
        loss: float = 0.0,
        rate_mbps: float | None = None,
        jitter_ms: float = 0.0,
        hosts: Iterable[str] | Mapping[str, Link] = (),
        networks: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        links = {
            "client": Link(rtt_ms=rtt_ms, loss=loss, rate_mbps=rate_mbps, jitter_ms=jitter_ms),
            "server": Link(),
        }
        if isinstance(hosts, str) or not isinstance(hosts, Iterable):
            raise checks.wrong("hosts", hosts, f"give a list of names, for instance [{str(hosts)!r}]")
        further = hosts.items() if isinstance(hosts, Mapping) else ((host, Link()) for host in hosts)
        for host, link in further:
            if host in links:
                raise NameTaken(f"host {host!r} is there already: choose another name, or change it with set_link")
            links[host] = link
        if networks is not None:
            further_names = (name for each in _hosts_of(networks) for name in each)
            links.update((name, Link()) for name in further_names if name not in links)
        self._authority: Authority | None = None
        self._door: Door | None = None
        self._first = threading.Lock()
        super().__init__(links, seed=seed, name=name, engine=best_engine, networks=networks)
        try:
            self.keylog_path.touch(mode=0o600)
            from labkit.network import environment

            self.program_environment |= environment.configuration(self.directory)
        except BaseException:
            self.close()
            raise
        self.program_environment["SSLKEYLOGFILE"] = str(self.keylog_path)

    def __repr__(self) -> str:
        hosts = ", ".join(f"{host.fqdn} {host.ip}" for host in self.hosts.values())
        state = "closed" if self.closed else f"tier {self.tier}"
        rtt = self.hosts["client"].link.rtt_ms if "client" in self.hosts else 0
        told = f"<Lab {hosts}, RTT {rtt:g} ms, {state}>"
        return told if self.tier == KERNEL else f"{told}\nTier {self.tier!r}: {TIERS[self.tier]}."

    @property
    def why_lower(self) -> str:
        """On the tier "loopback" the reason for which there are no namespaces, and the way out; else ""."""
        return self.engine.why_lower

    def can(self, need: str) -> bool:
        """Whether this lab's tier has what a lesson needs: "kernel" or "sysctls". Raises InvalidValue for another."""
        return allows(self.tier, need)

    def live_or_recorded(self, key: str, function: Callable[..., T], *args: Any, needs: str = "kernel") -> T:
        """Make a run here; where this lab's tier cannot, give the recorded one.

        Args:
            key: the section's id and a name, "https.basics/a lost request": under it the run is recorded.
            function: makes the run. What it returns can be recorded: captures, histories of queues, loads, trials,
                counters, numbers, texts, and lists, tuples and dictionaries of them. The ``tier`` of a recorded
                capture, history, load or trial says that it is one.
            args: for the function.
            needs: what the run needs, "kernel" or "sysctls", see ``can``.

        Raises:
            NotAvailableHere: this tier cannot make the run, and it was not recorded.
            InvalidValue: a key or a need that cannot be. What the function raises.
        """
        from labkit.recorded import check_key, keep, recall, recording_to

        check_key(key)
        checks.function("function", function)
        if not self.can(needs):
            value: T = recall(key, tier=self.tier)
            return value
        value = function(*args)
        if (folder := recording_to()) is not None:
            keep(key, value, folder)
        return value

    @property
    def rtt_ms(self) -> float:
        """Round-trip time between the client and a host without a delay of its own, such as the server."""
        return self.hosts["client"].link.rtt_ms

    def set_link(self, *, seed: int | None = None, **changes: float | None) -> Link:
        """Change the client's link while the lab runs: ``lab.set_link(rtt_ms=100)``. See ``Host.set_link``."""
        return self.hosts["client"].set_link(seed=seed, **changes)

    @property
    def keylog_path(self) -> Path:
        """The session's TLS and QUIC secrets in NSS format, in the lab's own directory of mode 0700."""
        return self.directory / "keylog.txt"

    @property
    def authority(self) -> Authority:
        """The certificate authority of this session, which the lab's servers and clients trust."""
        from labkit.servers.authority import Authority

        with self._first:  # of two threads that come first at once, one makes it
            if self._authority is None:
                self._authority = Authority(self.directory, self.keylog_path)
                for variable in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
                    self.program_environment[variable] = str(self._authority.ca_path)
            return self._authority

    def capture(self, at: Host | str = "wire") -> Capture:
        """Capture packets, from now to the end of a ``with`` block.

        Args:
            at: "wire" for the middle of the wire, where each frame is seen when it was sent and when it arrives;
                or a host, which also sees its own loopback.

        Raises:
            InvalidValue: no such host. LabClosed.
        """
        from labkit.capture.capture import Capture

        self.check_open()
        host = None if isinstance(at, str) and at == "wire" else self._host("at", at).name
        capture = Capture(
            self.engine.tap(host),
            links={each.interface_index: each.name for each in self.engine.interfaces.values()},
            at=host or "wire",
            hosts={each.number: each.name for each in self.engine.interfaces.values()},
            secrets=self.keylog_path.read_text,
            settle=lambda: None if self.closed else self.wire.quiet_since(),
            tier=self.tier,
        )
        self.register(capture)
        return capture

    def terminal(self, host: Host | str) -> TerminalLink:
        """See ``Host.terminal``."""
        from labkit.servers.terminal_link import TerminalLink

        where = self._host("host", host)
        self.open_door()
        return TerminalLink(where.name, where.fqdn, self.directory)

    def open_door(self) -> None:
        """Let this user's other processes get in: `labkit attach`, `labkit capture -w -`. Twice is fine.

        Raises LabClosed; NotAvailableHere on another system than Linux.
        """
        from labkit.network.attach import Door

        self.check_open()
        with self._first:
            if self._door is None:
                self._door = Door(self)
                self.register(self._door)
                weakref.finalize(self, self._door.close)

    def stream(self, target: int, ended: Callable[[], None] = lambda: None) -> LiveStream:
        """Write what crosses the wire to a descriptor from now on, as pcapng with the session's secrets.

        Args:
            target: the descriptor, which stays yours.
            ended: called when nothing more is written, because it was closed or nobody reads any more.

        Returns:
            the stream: ``close()`` writes what is held back, and ends it. Raises LabClosed.
        """
        from labkit.capture.stream import HOLD_S, LiveStream

        self.check_open()
        copy = os.dup(target)
        longest = max(link.rtt_ms for link in self.engine.links.values())
        stream = LiveStream(
            self.engine.tap(None),
            links=lambda: {each.interface_index: each.name for each in self.engine.interfaces.values()},
            secrets=self.keylog_path.read_text,
            hold_s=HOLD_S + longest / 1000,
            target=copy,
            ended=ended,
        )
        self.register(stream)
        return stream

    def watch(
        self,
        port: int,
        at: Host | str = "server",
        *,
        every_us: float = 1000,
        connections: bool = False,
        tcp: bool = False,
    ) -> Watch:
        """Sample the kernel's queues of a port, from now to the end of a ``with`` block.

        Args:
            port: a server's. On its host the SYN queue, the accept queue and the connections are seen; on a client's
                host the client's connections to such a port.
            at: the host whose kernel is asked.
            every_us: from one look to the next, microseconds.
            connections: look at each connection, too: receive queue, send queue, windows, RTT.
            tcp: look at all that the kernel knows of each connection (TCP_INFO): congestion window and threshold,
                segments in flight and sent again, RTT, rates, what was the limit. It is in ``history.tcp``.

        Raises:
            InvalidValue: no such host, port or period. LabClosed. NotAvailableHere: the tier "loopback".
        """
        from labkit.queues.watch import Watch

        self.check_open()
        return Watch(self._host("at", at), port, every_us=every_us, connections=connections, tcp=tcp)


def _hosts_of(networks: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
    """The hosts of each network. Raises InvalidValue for what is no mapping to lists of names."""
    example = "{'inside': ['client', 'router'], 'outside': ['router', 'server']}"
    if not isinstance(networks, Mapping) or any(
        isinstance(hosts, str) or not isinstance(hosts, Sequence) for hosts in networks.values()
    ):
        raise checks.wrong("networks", networks, f"give lists of hosts by name, for instance {example}")
    if bad := [name for hosts in networks.values() for name in hosts if not isinstance(name, str)]:
        raise checks.wrong("networks", networks, f"{bad[0]!r} is no text")
    return list(networks.values())


def best_engine(directory: Path, seed: int, hosts: Sequence[str]) -> Engine:
    """The best engine that this machine gives, or the one that LABKIT_TIER asks for. Raises LabUnavailable."""
    wanted, why_lower = forced(), "LABKIT_TIER asks for it"
    if wanted != LOOPBACK:
        try:
            engine = Isolation(directory, seed, hosts, fixed_sysctls=wanted == FIXED)
        except LabUnavailable as exc:
            if wanted is not None:
                raise
            why_lower = str(exc)
        else:
            if wanted == KERNEL != engine.tier:
                engine.end()
                refused = ", ".join(sorted(engine.refused))
                raise LabUnavailable(
                    f"LABKIT_TIER asks for {wanted!r}, and this machine refuses {refused}: labkit doctor"
                )
            return engine
    from labkit.loopback.engine import Loopback  # and with it asyncio, which the other tiers do without

    loopback = Loopback(directory, seed, hosts)
    loopback.why_lower = why_lower
    return loopback


def tier_here() -> str:
    """The tier of the labs of this process: found once, by opening one."""
    return _tier_with(os.environ.get("LABKIT_TIER", ""))


@cache
def _tier_with(forced: str) -> str:
    lab = Lab(rtt_ms=0)
    lab.close()
    return lab.tier
