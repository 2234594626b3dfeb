"""A host's routes: ``lab.client.routes``, read from its kernel and changed there, by rtnetlink.

A packet takes the route with the longest prefix that its destination matches (RFC 1812 section 5.2.4.3).
Sources: rtnetlink(7), ip-route(8), linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from labkit import checks
from labkit.errors import InvalidValue, LabClosed
from labkit.network.engine import Named, OnHost
from labkit.network.netlink import (
    IFLA_IFNAME,
    LINK_HEADER_BYTES,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    ROUTE,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTM_DELROUTE,
    RTM_F_CLONED,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTPROT_STATIC,
    RouteSocket,
    attribute,
    attributes,
    link_header,
)

if TYPE_CHECKING:
    from labkit.network.interface import Interface

RTAX_MTU, RTAX_HOPLIMIT = 2, 10
KINDS = {"unicast": RTN_UNICAST, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_NAMES = {number: name for name, number in KINDS.items()}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Route:
    """One route, as ip-route(8) would show it.

    Attributes:
        destination: "198.51.100.0/24", or "default".
        via: address of the router that takes it from here, "" where the destination is on the link.
        device: the interface, "eth0"; "" where no packet leaves.
        kind: "unicast"; "blackhole" drops and says nothing; "unreachable" and "prohibit" say so by ICMP.
        metric: of two routes to the same prefix the one with the lower metric is taken.
        mtu: longest packet on this way, bytes, as it was set or learned; 0 for that of the interface.
        ttl: what the host writes into packets on this way as TTL or hop limit; 0 for the host's own.
        source: the address that the host sends from, "" where it may choose.
        ipv6: whether it is one for IPv6.
    """

    destination: str
    via: str = ""
    device: str = ""
    kind: str = "unicast"
    metric: int = 0
    mtu: int = 0
    ttl: int = 0
    source: str = ""
    ipv6: bool = False

    @property
    def prefix(self) -> Network:
        """The destination as a network; "default" is everything."""
        everything = "::/0" if self.ipv6 else "0.0.0.0/0"
        return ipaddress.ip_network(everything if self.destination == "default" else self.destination)

    def __str__(self) -> str:
        words = [] if self.kind == "unicast" else [self.kind]
        words.append(self.destination)
        told = [("via", self.via), ("dev", self.device), ("src", self.source)]
        numbers = [("metric", self.metric), ("mtu", self.mtu), ("hoplimit", self.ttl)]
        return " ".join([*words, *(f"{name} {value}" for name, value in [*told, *numbers] if value)])


class Routed(OnHost, Protocol):
    """A host whose routes are asked for."""

    @property
    def interfaces(self) -> Mapping[str, Interface]: ...


class Routes:
    """The routes of one host: ``print(lab.client.routes)``. Iterating gives each ``Route``, the longest prefix first.

    Raises:
        NotAvailableHere: on the tier "loopback". OSError: the kernel's own, for a change that it refuses.
    """

    def __init__(self, host: Routed) -> None:
        self._host = host

    def _open(self) -> RouteSocket:
        descriptor = self._host.open_descriptor(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        return RouteSocket(socket.socket(fileno=descriptor))

    def __iter__(self) -> Iterator[Route]:
        found: list[Route] = []
        devices = self._devices()
        with self._open() as netlink:
            for family in (socket.AF_INET, socket.AF_INET6):
                for body in netlink.ask(RTM_GETROUTE, ROUTE.pack(family, *[0] * 8), NLM_F_DUMP):
                    table, flags = body[4], ROUTE.unpack_from(body)[8]
                    if table == RT_TABLE_MAIN and not flags & RTM_F_CLONED and body[7] in _NAMES:
                        found.append(_read(body, devices))
        return iter(sorted(found, key=lambda route: (route.ipv6, -route.prefix.prefixlen, route.metric)))

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no routes"

    def __repr__(self) -> str:
        try:
            return str(self)
        except LabClosed:
            return f"<Routes of {self._host.name}, which is closed>"

    def add(
        self,
        destination: str,
        *,
        via: Named | str | None = None,
        kind: str = "unicast",
        metric: int = 0,
        mtu: int | None = None,
        ttl: int | None = None,
    ) -> None:
        """Add a route, in place of one to the same prefix with the same metric.

        Args:
            destination: "198.51.100.0/24", one address, or "default".
            via: the router that takes it from here: a host of the lab, or an address on a network of this host.
            kind: "unicast", "blackhole" (drop it), "unreachable" or "prohibit" (drop it and say so by ICMP).
            metric: of two routes to the same prefix the one with the lower metric is taken.
            mtu: longest packet on this way, bytes, from 68 to 65535; None for that of the interface.
            ttl: TTL or hop limit of packets that this host sends on this way, 1 to 255; None for the host's own.

        Raises:
            InvalidValue: a value that cannot be. OSError: the kernel's own: the router cannot be reached, for instance.
        """
        checks.one_of("kind", kind, KINDS)
        if (kind == "unicast") != (via is not None):
            raise InvalidValue(f"kind={kind!r}, via={via!r}: a unicast route goes via a router, and no other does")
        metrics = {}
        if mtu is not None:
            metrics[RTAX_MTU] = checks.whole("mtu", mtu, 68, 65535, unit="bytes")
        if ttl is not None:
            metrics[RTAX_HOPLIMIT] = checks.whole("ttl", ttl, 1, 255)
        checks.whole("metric", metric, 0, 2**31 - 1)
        prefix = self._prefix(destination, via)
        extra = {RTA_PRIORITY: struct.pack("=I", metric)} if metric else {}
        if via is not None:
            extra[RTA_GATEWAY] = self._router(via, prefix.version).packed
        if metrics:
            extra[RTA_METRICS] = b"".join(attribute(key, struct.pack("=I", value)) for key, value in metrics.items())
        message = _message(prefix, KINDS[kind], RT_SCOPE_UNIVERSE, extra)
        with self._open() as netlink:
            netlink.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, message)

    def remove(self, destination: str, *, metric: int = 0) -> None:
        """Remove the route to a prefix.

        Args:
            destination: as for ``add``; "::/0" is the default route of IPv6.
            metric: of which one, where there are several; 0 for the first.

        Raises:
            InvalidValue: there is no such route.
        """
        prefix = self._prefix(destination, None)
        extra = {RTA_PRIORITY: struct.pack("=I", checks.whole("metric", metric, 0, 2**31 - 1))} if metric else {}
        with self._open() as netlink:
            try:
                netlink.request(RTM_DELROUTE, 0, _message(prefix, 0, RT_SCOPE_NOWHERE, extra))
            except OSError as exc:
                if exc.errno != errno.ESRCH:
                    raise
                raise InvalidValue(f"no route to {destination!r} on {self._host.name}, which has:\n{self}") from None

    def to(self, address: Named | str) -> Route:
        """The route that the kernel takes to an address, now: what ``ip route get`` says. Raises OSError for none.

        Its ``mtu`` is what path MTU discovery has learned, where it has (RFC 1191).
        """
        target = self._address(address)
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        message = ROUTE.pack(family, target.max_prefixlen, *[0] * 7) + attribute(RTA_DST, target.packed)
        devices = self._devices()
        with self._open() as netlink:
            (answer,) = netlink.ask(RTM_GETROUTE, message)
            return _read(answer, devices)

    def matching(self, address: Named | str) -> list[Route]:
        """The routes whose prefix an address matches. The first one has the longest prefix, and is the one taken."""
        target = self._address(address)
        return [route for route in self if target.version == route.prefix.version and target in route.prefix]

    def _devices(self) -> dict[int, str]:
        with self._open() as netlink:
            links = list(netlink.ask(RTM_GETLINK, link_header(), NLM_F_DUMP))
        names = {
            struct.unpack_from("=i", body, 4)[0]: attributes(body[LINK_HEADER_BYTES:])[IFLA_IFNAME] for body in links
        }
        return {index: name.rstrip(b"\0").decode() for index, name in names.items()}

    def _address(self, of: Named | str, argument: str = "address") -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        text = str(of if isinstance(of, str) else getattr(of, "ip", of))
        known: Mapping[str, Any] = self._host.lab.hosts
        if (host := known.get(text.removesuffix(".lab"))) is not None:
            text = host.ip
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            raise checks.wrong(argument, of, "give a host of this lab, or '198.51.100.2'") from None

    def _router(self, via: Named | str, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        name = via.removesuffix(".lab") if isinstance(via, str) else getattr(via, "name", "")
        router: Any = self._host.lab.hosts.get(name)
        if router is None:
            return self._address(via, "via")
        for network, interface in router.interfaces.items():
            if network in self._host.interfaces:
                return ipaddress.ip_address(interface.ip if version == 4 else interface.ip6)
        ours = ", ".join(self._host.interfaces)
        raise InvalidValue(f"via={name!r}: it is on no network of {self._host.name}, which is on {ours}")

    def _prefix(self, destination: str, via: Named | str | None) -> Network:
        if checks.text("destination", destination, "198.51.100.0/24") == "default":
            six = isinstance(via, str) and ":" in via
            return ipaddress.ip_network("::/0" if six else "0.0.0.0/0")
        try:
            return ipaddress.ip_network(destination)
        except ValueError as exc:
            example = "for instance '198.51.100.0/24' or 'default'"
            raise InvalidValue(f"destination={destination!r}: {exc}. Give a prefix, {example}") from None


def _message(prefix: Network, kind: int, scope: int, extra: Mapping[int, bytes]) -> bytes:
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    header = ROUTE.pack(family, prefix.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC if kind else 0, scope, kind, 0)
    destination = {RTA_DST: prefix.network_address.packed} if prefix.prefixlen else {}
    return header + b"".join(attribute(key, value) for key, value in {**destination, **extra}.items())


def _read(body: bytes, devices: Mapping[int, str]) -> Route:
    family, length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(body)
    said = attributes(body[ROUTE.size :])
    metrics = attributes(said.get(RTA_METRICS, b""))

    def address(of: int) -> str:
        return socket.inet_ntop(family, said[of]) if of in said else ""

    def number(within: Mapping[int, bytes], of: int) -> int:
        return int(struct.unpack("=I", within[of])[0]) if of in within else 0

    return Route(
        destination=f"{address(RTA_DST)}/{length}" if length else "default",
        via=address(RTA_GATEWAY),
        device=devices.get(number(said, RTA_OIF), "") if _NAMES.get(kind) == "unicast" else "",
        kind=_NAMES.get(kind, "unicast"),
        metric=number(said, RTA_PRIORITY),
        mtu=number(metrics, RTAX_MTU),
        ttl=number(metrics, RTAX_HOPLIMIT),
        source=address(RTA_PREFSRC),
        ipv6=family == socket.AF_INET6,
    )
