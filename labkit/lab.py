"""The lab: a network whose packets can be captured and whose servers can be trusted."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import InvalidValue, NameTaken
from labkit.network.host import Host
from labkit.network.link import Link
from labkit.network.network import Network
from labkit.network.ring import ETH_P_ALL, Ring

if TYPE_CHECKING:
    from labkit.capture.capture import Capture
    from labkit.servers.authority import Authority


# What is live in each tier.
TIERS = {
    "kernel": "everything in this book runs live",
    "kernel, fixed sysctls": "everything runs live but what needs a kernel setting: a TFO server, queue limits",
    "unavailable": "this machine gives no lab yet",
}


class Lab(Network):
    """A small network on this machine's kernel: `client` and `server`, and any further hosts.

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
        seed: for every random decision of the wire, so that an experiment with loss can be repeated.
        name: opening a second lab of this name closes the first, so that a cell can be run twice.

    Raises:
        InvalidValue, NameTaken: a value that cannot be; nothing was started.
        LabUnavailable: this machine gives no lab; the message says why and what would.
    """

    def __init__(
        self,
        rtt_ms: float = 40.0,
        *,
        loss: float = 0.0,
        rate_mbps: float | None = None,
        jitter_ms: float = 0.0,
        hosts: Iterable[str] | Mapping[str, Link] = (),
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        links = {
            "client": Link(rtt_ms=rtt_ms, loss=loss, rate_mbps=rate_mbps, jitter_ms=jitter_ms),
            "server": Link(),
        }
        if isinstance(hosts, str) or not isinstance(hosts, Iterable):
            raise InvalidValue(f"hosts={hosts!r}: give a list of names, for instance [{str(hosts)!r}]")
        further = hosts.items() if isinstance(hosts, Mapping) else ((host, Link()) for host in hosts)
        for host, link in further:
            if host in links:
                raise NameTaken(f"host {host!r} is there already: choose another name, or change it with set_link")
            links[host] = link
        super().__init__(links, seed=seed, name=name)
        try:
            self.keylog_path.touch(mode=0o600)
        except BaseException:
            self.close()
            raise
        self.program_environment["SSLKEYLOGFILE"] = str(self.keylog_path)

    def __repr__(self) -> str:
        hosts = ", ".join(f"{host.fqdn} {host.ip}" for host in self.hosts.values())
        state = "closed" if self.closed else f"tier {self.tier}"
        rtt = self.hosts["client"].link.rtt_ms if "client" in self.hosts else 0
        return f"<Lab {hosts}, RTT {rtt:g} ms, {state}>"

    @property
    def tier(self) -> str:
        """What this machine lets a lab do: a name of TIERS."""
        fixed = any(name.startswith("net.") for name in self.refused)
        return "kernel, fixed sysctls" if fixed else "kernel"

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

    @cached_property
    def authority(self) -> Authority:
        """The certificate authority of this session, which the lab's servers and clients trust."""
        from labkit.servers.authority import authority_of

        authority = authority_of(self)
        for variable in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            self.program_environment[variable] = str(authority.ca_path)
        return authority

    def capture(self, at: Host | str = "wire") -> Capture:
        """Capture packets, from now to the end of a ``with`` block.

        Args:
            at: "wire" for the middle of the wire, where each frame is seen when it was sent and when it arrives;
                or a host, which also sees its own loopback.

        Raises:
            InvalidValue: no such host. LabClosed.
        """
        from labkit.capture.capture import RING_BYTES, Capture

        self.check_open()
        everything = socket.htons(ETH_P_ALL)
        if at == "wire":
            packet_socket = self.open_wire_socket(socket.AF_PACKET, socket.SOCK_RAW, everything)
            place = "wire"
        else:
            host = at if isinstance(at, Host) else self[at]
            packet_socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, everything)
            place = host.name
        capture = Capture(
            Ring(packet_socket, size_bytes=RING_BYTES),
            links={host.interface_index: host.name for host in self.hosts.values()},
            at=place,
            hosts={host.number: host.name for host in self.hosts.values()},
            secrets=self.keylog_path.read_text,
            settle=lambda: self.closed or self.wire.settle(),
            tier=self.tier,
        )
        self.register(capture)
        return capture
