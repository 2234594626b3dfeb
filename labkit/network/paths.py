"""Which router takes a packet on: the shortest way from each host to each network. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


def next_hops(networks: Mapping[str, Sequence[str]], routers: Collection[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """The first step of the shortest ways.

    Args:
        networks: the hosts on each network.
        routers: the hosts among them that forward packets.

    Returns:
        for each host, for each network that it is not on and that can be reached: the network on which the packet
        leaves it, and the router there. Of ways with as many routers the one that stands first in `networks`.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {host: {} for hosts in networks.values() for host in hosts}
    for target in networks:
        steps: dict[str, tuple[int, str]] = {target: (0, "")}  # routers on the way, and the first of them
        waiting = [target]
        for here in waiting:
            for router in (host for host in networks[here] if host in routers):
                for beyond, hosts in networks.items():
                    if router in hosts and beyond not in steps:
                        steps[beyond] = steps[here][0] + 1, router
                        waiting.append(beyond)
        for host, hops in found.items():
            ways = [(steps[net][0], net) for net, hosts in networks.items() if host in hosts and net in steps]
            if ways and host not in networks[target]:
                _, network = min(ways, key=lambda way: way[0])
                hops[target] = network, steps[network][1]
    return found


class Wanted(NamedTuple):
    """A route that a host should have.

    Attributes:
        host: whose route it is.
        target: name of the network, or "default".
        order: 0 for the way that is taken; a way by another interface has 1 and more.
    """

    host: str
    target: str
    order: int = 0


def wanted_routes(networks: Mapping[str, Sequence[str]], routers: Collection[str]) -> dict[Wanted, tuple[str, str]]:
    """The routes that let every host reach every network, each with the network and the router there.

    A host that is no router and has one way out gets a default route, as hosts mostly do. One on several networks, with
    others behind them, gets a default route by each of them that has a router, the first one before the others.
    """
    routes: dict[Wanted, tuple[str, str]] = {}
    for host, hops in next_hops(networks, routers).items():
        on = [network for network, hosts in networks.items() if host in hosts]
        if host in routers:
            routes.update({Wanted(host, target): hop for target, hop in hops.items()})
        elif len(on) > 1 and hops:
            exits = [(network, router) for network in on for router in networks[network] if router in routers]
            first = dict(reversed(exits))
            ways = [(network, first[network]) for network in on if network in first]
            routes.update({Wanted(host, "default", order): way for order, way in enumerate(ways)})
        elif len(set(hops.values())) == 1:
            routes[Wanted(host, "default")] = next(iter(hops.values()))
        else:
            routes.update({Wanted(host, target): hop for target, hop in hops.items()})
    return routes
