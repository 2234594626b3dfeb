"""The addresses of a lab's networks and hosts, from ranges that are kept for documentation and that no network routes.

So a program that was not started on a host by mistake, and looks for one, finds nobody instead of a stranger.

Sources: RFC 5737 (IPv4 address blocks reserved for documentation), RFC 3849 (the IPv6 prefix).
"""

from __future__ import annotations

from typing import NamedTuple

from labkit.errors import InvalidValue

# The lab's own network and its second one have 24 bits of prefix; further ones share the third block.
WHOLE, SHARED = ("192.0.2", "198.51.100"), "203.0.113"
PREFIX, SHARED_PREFIX = 24, 28
MOST_NETWORKS = len(WHOLE) + (1 << (SHARED_PREFIX - PREFIX))
# Network n of the lab is 2001:db8:0:n::/64.
NETWORK6 = "2001:db8"
PREFIX6 = 64


class Subnet(NamedTuple):
    """The addresses of one network.

    Attributes:
        number: of the network in its lab, from 0 on.
        bits: length of its IPv4 prefix.
        base: the first three bytes of its IPv4 addresses, "198.51.100".
        first: the last byte of its first address.
        base6: its IPv6 prefix, "2001:db8:0:1::".
    """

    number: int
    bits: int
    base: str
    first: int
    base6: str

    @property
    def cidr(self) -> str:
        """Its IPv4 prefix, "198.51.100.0/24"."""
        return f"{self.base}.{self.first}/{self.bits}"

    @property
    def cidr6(self) -> str:
        """Its IPv6 prefix, "2001:db8:0:1::/64"."""
        return f"{self.base6}/{PREFIX6}"

    def addresses(self, place: int) -> tuple[str, str]:
        """The IPv4 and the IPv6 address of its host number `place`, from 1 on. Raises InvalidValue for one too many."""
        room = (1 << (32 - self.bits)) - 2
        if place > room:
            raise InvalidValue(f"host number {place} on the network {self.cidr}, which has addresses for {room}")
        return f"{self.base}.{self.first + place}", f"{self.base6}{place:x}"


def subnet(number: int) -> Subnet:
    """The addresses of network `number` of a lab, from 0 on. Raises InvalidValue for one too many."""
    if number >= MOST_NETWORKS:
        raise InvalidValue(f"network number {number + 1}: there are addresses for {MOST_NETWORKS} networks in a lab")
    base6 = f"{NETWORK6}:0:{number:x}::" if number else f"{NETWORK6}::"
    if number < len(WHOLE):
        return Subnet(number, PREFIX, WHOLE[number], 0, base6)
    return Subnet(number, SHARED_PREFIX, SHARED, (number - len(WHOLE)) << (32 - SHARED_PREFIX), base6)


def ipv4(number: int) -> str:
    """The IPv4 address of host `number` in the lab's own network: its last byte is that number."""
    return f"{WHOLE[0]}.{number}"


def number_of(address: str) -> int | None:
    """The number of the host that has an IPv4 address of the lab's own network; None for any other address."""
    network, _, number = address.rpartition(".")
    return int(number) if network == WHOLE[0] and number.isdigit() else None
