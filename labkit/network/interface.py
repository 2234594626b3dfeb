"""An interface of a host, with its link; most hosts have one. And a link that is cut, and mended."""

from __future__ import annotations

from typing import Any

from labkit import checks
from labkit.network.engine import Address, Engine
from labkit.network.link import Link, Rule
from labkit.network.wire_control import RuleHandle

WAYS = ("both", "up", "down")


class Interface:
    """One interface of a host: ``lab.router.interfaces["outside"]``.

    Attributes:
        label: what rules and the wire's counts call it: the host's name, and "router/outside" of a further one.
        host: name of the host.
        network: name of the network that it is in.
        name: what the host's kernel calls it: "eth0".
        index: by which the host's kernel knows it.
        ip, ip6: its addresses, "" where there is no such protocol.
        number: last byte of its MAC address.
        wire_index: kernel index of its link at the wire's end, as captures on the wire name it.
    """

    def __init__(self, engine: Engine, label: str, address: Address, network: str) -> None:
        self._engine, self.label, self.network = engine, label, network
        self._subnet = address.subnet
        self.host, self.name, self.index = address.name, address.device, address.device_index
        self.ip, self.ip6, self.number, self.wire_index = (
            address.ip, address.ip6, address.number, address.interface_index,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Interface {self.host} {self.name} {self.ip} in {self.network}>"

    @property
    def link(self) -> Link:
        """The link between this interface and the middle of its network."""
        return self._engine.links[self.label]

    @property
    def prefix_bits(self) -> int:
        """Length of the IPv4 prefix of its network."""
        return self._engine.subnets[self._subnet].bits

    def set_link(self, *, seed: int | None = None, **changes: Any) -> Link:
        """Change the link while it runs. Arguments, result and errors as of ``Host.set_link``."""
        checks.optional(checks.whole, "seed", seed)
        link = self.link.changed(**changes)
        self._engine.set_link(self.label, link, seed)
        return link

    def cut(self, way: str = "both") -> Cut:
        """Cut the link. See ``Host.cut``."""
        return Cut(self._engine, self.label, way)


class Cut:
    """A link that carries nothing until ``mend()``, or the end of a ``with`` block.

    Args:
        engine: of the lab.
        name: of the host, which cuts all its links, or of one interface.
        way: "both", "up" (what the host sends) or "down" (what it would receive).

    Raises:
        InvalidValue: another way.
    """

    def __init__(self, engine: Engine, name: str, way: str) -> None:
        checks.one_of("way", way, WAYS)
        self.name, self.way = name, way
        self._engine = engine
        self._rules: list[RuleHandle] = []
        try:
            for one, rule in (("up", Rule("cut", source=name)), ("down", Rule("cut", destination=name))):
                if way in ("both", one):
                    self._rules.append(RuleHandle(engine, engine.add_rule(rule), rule))
        except BaseException:
            self.mend()
            raise

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *exc: object) -> None:
        self.mend()

    def __repr__(self) -> str:
        return f"<Cut of {self.name}, {self.way}>"

    @property
    def lost(self) -> int:
        """Frames that it took so far."""
        return sum(rule.acted for rule in self._rules)

    def mend(self) -> None:
        """Let the link carry again what is sent from now on. Mending twice is fine."""
        for rule in self._rules:
            rule.remove()
