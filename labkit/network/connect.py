"""Routes from every host to every network of a lab. Loaded where a lab has several."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.network.addresses import Subnet
from labkit.network.host import FORWARDING6, Host
from labkit.network.paths import wanted_routes

Routed = dict[tuple[str, str], tuple[str, str]]


def connect(hosts: Mapping[str, Host], networks: Mapping[str, Subnet], before: Routed) -> Routed:
    """Bring the hosts' routes from what was wanted before to what is wanted now.

    Args:
        hosts, networks: of the lab, by name.
        before: what the last call returned: (host, network or "default") → (network, router).

    Returns:
        what is wanted now. A route that a notebook has added stays, and one that it has removed does not come back.
    """
    members = {net: [host.name for host in hosts.values() if net in host.interfaces] for net in networks}
    wanted = wanted_routes(members, [host.name for host in hosts.values() if host.forwarding])
    for (name, target), (network, router) in {**before, **wanted}.items():
        host, gateway = hosts[name], hosts[router].interfaces[network]
        ways = {gateway.ip: networks[target].cidr if target in networks else "0.0.0.0/0"}
        if gateway.ip6 and FORWARDING6 not in host.engine.refused:
            ways[gateway.ip6] = networks[target].cidr6 if target in networks else "::/0"
        for via, prefix in ways.items():
            if (name, target) not in wanted:
                if any(route.via == via and str(route.prefix) == prefix for route in host.routes):
                    host.routes.remove(prefix)
            elif before.get((name, target)) != (network, router):
                host.routes.add(prefix, via=via)
    return wanted
