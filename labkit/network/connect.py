"""Routes from every host to every network of a lab. Loaded where a lab has several."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.network.addresses import Subnet
from labkit.network.host import FORWARDING6, Host
from labkit.network.paths import Wanted, wanted_routes

Routed = dict[Wanted, tuple[str, str]]
FIRST_METRIC6, STEP = 1024, 100  # what the kernel gives to routes of IPv6 that ask for none


def connect(hosts: Mapping[str, Host], networks: Mapping[str, Subnet], before: Routed) -> Routed:
    """Bring the hosts' routes from what was wanted before to what is wanted now.

    Args:
        hosts, networks: of the lab, by name.
        before: what the last call returned.

    Returns:
        what is wanted now: each route's network and router. A route that a notebook has added stays, and one that it
        has removed does not come back.
    """
    members = {net: [host.name for host in hosts.values() if net in host.interfaces] for net in networks}
    wanted = wanted_routes(members, [host.name for host in hosts.values() if host.forwarding])
    for route, (network, router) in {**before, **wanted}.items():
        host, gateway = hosts[route.host], hosts[router].interfaces[network]
        target, metric = networks.get(route.target), STEP * route.order
        ways = [(gateway.ip, target.cidr if target else "default", metric)]
        if gateway.ip6 and FORWARDING6 not in host.engine.refused:
            ways.append((gateway.ip6, target.cidr6 if target else "::/0", FIRST_METRIC6 + metric if metric else 0))
        for via, prefix, at in ways:
            if route not in wanted:
                if any(each.via == via and str(each.prefix) == _written_out(prefix) for each in host.routes):
                    host.routes.remove(prefix, metric=at)
            elif before.get(route) != (network, router):
                host.routes.add(prefix, via=via, metric=at)
    return wanted


def _written_out(prefix: str) -> str:
    return "0.0.0.0/0" if prefix == "default" else prefix
