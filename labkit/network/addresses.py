"""The addresses of a lab's hosts, from ranges that are kept for documentation and that no network routes.

So a program that was not started on a host by mistake, and looks for one, finds nobody instead of a stranger.

Sources: RFC 5737 (IPv4 address blocks reserved for documentation), RFC 3849 (the IPv6 prefix).
"""

from __future__ import annotations

# The lab's own network, then those that further networks of the lab take. Each has 24 bits of prefix.
NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
PREFIX = 24
# Network n of the lab is 2001:db8:0:n::/64.
NETWORK6 = "2001:db8"
PREFIX6 = 64


def ipv4(number: int, network: int = 0) -> str:
    """The IPv4 address of host `number` in a network of the lab: its last byte is that number."""
    return f"{NETWORKS[network]}.{number}"


def ipv6(number: int, network: int = 0) -> str:
    """The IPv6 address of host `number` in a network of the lab, as the kernel writes it: 2001:db8::2."""
    return f"{NETWORK6}:0:{network:x}::{number:x}" if network else f"{NETWORK6}::{number:x}"


def number_of(address: str) -> int | None:
    """The number of the host that has an IPv4 address of the lab's own network; None for any other address."""
    network, _, number = address.rpartition(".")
    return int(number) if network == NETWORKS[0] and number.isdigit() else None
