"""Which router takes a packet on: the shortest way from each host to each network. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


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


def wanted_routes(
    networks: Mapping[str, Sequence[str]], routers: Collection[str]
) -> dict[tuple[str, str], tuple[str, str]]:
    """The routes that let every host reach every network: (host, network or "default") → (network, router).

    A host that is no router and has one way out gets a default route, as hosts mostly do.
    """
    routes = {}
    for host, hops in next_hops(networks, routers).items():
        if host not in routers and len(set(hops.values())) == 1:
            routes[host, "default"] = next(iter(hops.values()))
        else:
            routes.update({(host, target): hop for target, hop in hops.items()})
    return routes
