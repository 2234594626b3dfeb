"""``lab.router.nat("symmetric")``: a host that translates addresses, as routers at home and of carriers do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from labkit import checks, child
from labkit.errors import InvalidValue, MeasurementFailed
from labkit.network.interface import Interface
from labkit.network.netlink import ETHERNET_MTU
from labkit.network.process import Program
from labkit.network.translation import KINDS
from labkit.waiting import wait_until

READY_S = 20.0


@dataclass(frozen=True)
class Translation:
    """One mapping.

    Attributes:
        protocol: "udp", "tcp" or "icmp".
        inside: address and port of the host behind, "192.0.2.1:5000"; of an echo request its identifier is the port.
        outside: what others see in its place.
    """

    protocol: str
    inside: str
    outside: str


class Nat:
    """Address translation at work. Made by ``Host.nat``; its program ends with the lab. Closed, it lets nothing pass.

    Attributes:
        host: name of the host.
        kind: of it, a name of labkit.network.translation.KINDS.
        public_ip: the address that all who are behind it share.
    """

    def __init__(self, program: Program, host: str, kind: str, public_ip: str) -> None:
        self.host, self.kind, self.public_ip = host, kind, public_ip
        self._program = program
        try:
            wait_until(self._began, READY_S, f"the start of address translation on {host}")
        except BaseException:
            self.close()
            raise

    def _began(self) -> bool:
        if self._program.returncode is not None:
            said = self._program.stderr.strip()[-2000:]
            raise MeasurementFailed(f"address translation on {self.host} ended at once. It said: {said or 'nothing'}")
        return self._program.stdout.startswith("ready\n")

    def __enter__(self) -> Nat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Nat on {self.host}, {self.kind}, {self.public_ip}, {len(self.mappings)} mappings>"

    @property
    def mappings(self) -> Sequence[Translation]:
        """The mappings that were made so far, the first one first, those that have ended included."""
        lines = self._program.stdout.splitlines()[1:]
        return [Translation(**json.loads(line)) for line in lines if line.endswith("}")]

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._program.returncode is not None

    def close(self) -> None:
        """End it: from now on nothing passes. Closing twice is fine."""
        self._program.close()


class Translating(Protocol):
    """A host that is to translate."""

    @property
    def name(self) -> str: ...
    @property
    def interfaces(self) -> Mapping[str, Interface]: ...

    def start(self, args: Sequence[str]) -> Program: ...


def start_nat(host: Translating, kind: str, outside: str | None, timeout_s: float) -> Nat:
    """See ``Host.nat``."""
    checks.one_of("kind", kind, KINDS)
    checks.number("timeout_s", timeout_s, 0.01, 86400, unit="seconds")
    if len(host.interfaces) < 2:
        raise InvalidValue(f"{host.name} is on one network, {', '.join(host.interfaces)}: it translates between two")
    network = checks.one_of("outside", outside or list(host.interfaces)[-1], host.interfaces)
    interface = host.interfaces[network]
    mtu = interface.link.mtu or ETHERNET_MTU
    words = (interface.ip, interface.prefix_bits, interface.name, mtu, kind, timeout_s, interface.number)
    return Nat(
        host.start(child.command("labkit.network.nat_process", *words, bare=True)), host.name, kind, interface.ip
    )
