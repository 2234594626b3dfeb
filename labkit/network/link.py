"""What the wire does to frames: the values that notebooks set and the wire process obeys."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from labkit.errors import InvalidValue


def number(name: str, value: object, low: float, high: float = math.inf, *, unit: str = "") -> float:
    """A finite number between two bounds, or InvalidValue that quotes it."""
    allowed = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == math.inf:
        raise InvalidValue(f"{name}={value!r}: give a number {allowed}{' ' + unit if unit else ''}")
    return float(value)


def whole(name: str, value: object, low: int, high: int, *, unit: str = "") -> int:
    """A whole number between two bounds, or InvalidValue that quotes it."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValue(f"{name}={value!r}: give a whole number from {low} to {high}{' ' + unit if unit else ''}")
    return value


def check_port(port: object, low: int = 1) -> int:
    """A port, or InvalidValue that quotes it. `low` is 0 where the kernel may choose."""
    if isinstance(port, bool) or not isinstance(port, int) or not low <= port <= 65535:
        bounds = "from 1 to 65535" if low else "from 0 (a free one) to 65535"
        raise InvalidValue(f"port {port!r}: give a whole number {bounds}")
    return port


@dataclass(frozen=True)
class Link:
    """The link between a host and the switch in the middle. The RTT of two hosts is the sum of their links' RTTs.

    Args:
        rtt_ms: round-trip time that this link adds, milliseconds; half of it in each direction.
        loss: probability from 0 to 1 that a frame is lost, each direction.
        rate_mbps: rate in Mbit/s in each direction, None for as fast as the machine can.
        jitter_ms: largest random delay added to a frame, milliseconds. Frames keep their order.
        reorder: probability that a frame overtakes those before it: it crosses without this link's delay.
        duplicate: probability that a frame arrives twice.
        queue_ms: how much a rate-limited link queues before it drops, in milliseconds of its own rate.
        mtu: the longest IP packet that it carries, bytes, from 1280 (RFC 8200 section 5) to 1500; None for 1500. The
            host's kernel is told: it splits longer packets, or says that they are too long. What the wire brings for
            the host and is longer gets lost, as on any link whose two ends do not agree.

    Raises:
        InvalidValue: a value out of its range.
    """

    rtt_ms: float = 0.0
    loss: float = 0.0
    rate_mbps: float | None = None
    jitter_ms: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    queue_ms: float = 100.0
    mtu: int | None = None

    def __post_init__(self) -> None:
        number("rtt_ms", self.rtt_ms, 0, 60_000, unit="milliseconds")
        number("jitter_ms", self.jitter_ms, 0, 60_000, unit="milliseconds")
        number("queue_ms", self.queue_ms, 0, 60_000, unit="milliseconds")
        for name in ("loss", "reorder", "duplicate"):
            number(name, getattr(self, name), 0, 1)
        if self.rate_mbps is not None:
            number("rate_mbps", self.rate_mbps, 0.001, 1e6, unit="Mbit/s, or None for no limit")
        if self.mtu is not None:
            whole("mtu", self.mtu, 1280, 1500, unit="bytes, or None for 1500")

    def changed(self, **changes: Any) -> Link:
        """A copy with some values changed. Raises InvalidValue for a name that a link does not have."""
        unknown = sorted(set(changes) - set(asdict(self)))
        if unknown:
            raise InvalidValue(f"{unknown[0]}={changes[unknown[0]]!r}: a link has {', '.join(asdict(self))}")
        return replace(self, **changes)


ACTIONS = ("drop", "delay", "duplicate", "cut")
PROTOCOLS = ("tcp", "udp", "icmp", "icmpv6")
FLAG_BITS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}


@dataclass(frozen=True)
class Rule:
    """A fault for the packets that match: every condition given must hold.

    Args:
        action: "drop", "delay" (by `delay_ms`), "duplicate", or "cut": drop, and count as lost by a cut link.
        source: name of the sending host. Of a packet that goes through a router each part of its way counts for itself:
            first the router is the destination, then it is the source. "router/outside" is one of its interfaces.
        destination: name of the receiving host, the same way.
        protocol: "tcp", "udp", "icmp" or "icmpv6". Of a packet in fragments the first one has a protocol.
        tcp_flags: exactly these TCP flags, as tcpdump writes them: "S" a SYN, "SA" a SYN-ACK. PSH is not compared.
        port: source or destination port.
        payload: True for packets with TCP or UDP payload, False for those without.
        contains: bytes that stand anywhere in the payload of one packet. What two segments of a TCP stream share is
            not found, nor what stands under encryption.
        icmp_type: type of an ICMP message, with `protocol`: 3 of "icmp" is "destination unreachable" (RFC 792).
        icmp_code: its code: 4 of type 3 is "fragmentation needed".
        skip: matching packets to let pass first.
        count: how many to act on after that, None for all.
        delay_ms: milliseconds that "delay" adds. Later frames may overtake the delayed one.

    Raises:
        InvalidValue: an action, protocol, flag or number that cannot be.
    """

    action: str
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None
    tcp_flags: str | None = None
    port: int | None = None
    payload: bool | None = None
    contains: bytes | None = None
    skip: int = 0
    count: int | None = None
    delay_ms: float = 0.0
    icmp_type: int | None = None
    icmp_code: int | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InvalidValue(f"action={self.action!r}: the wire can {', '.join(ACTIONS)}")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise InvalidValue(f"protocol={self.protocol!r}: one of {', '.join(PROTOCOLS)}, or None for any")
        if self.tcp_flags is not None and (not self.tcp_flags or set(self.tcp_flags) - set(FLAG_BITS)):
            raise InvalidValue(f"tcp_flags={self.tcp_flags!r}: letters of {''.join(FLAG_BITS)}, for instance 'SA'")
        if self.contains is not None and not isinstance(self.contains, bytes):
            raise InvalidValue(f"contains={self.contains!r}: give bytes, for instance b'HTTP/1.1 200'")
        for name in ("icmp_type", "icmp_code"):
            if (value := getattr(self, name)) is not None:
                whole(name, value, 0, 255)
                if self.protocol not in ("icmp", "icmpv6"):
                    raise InvalidValue(f"{name}={value}: give protocol='icmp' or 'icmpv6', too; their numbers differ")
        number("delay_ms", self.delay_ms, 0, 60_000, unit="milliseconds")
        number("skip", self.skip, 0)
        if self.count is not None:
            number("count", self.count, 1)
        if self.port is not None:
            check_port(self.port)

    def as_message(self) -> dict[str, Any]:
        """The rule as JSON values for the wire process; flags as a bit mask."""
        message = asdict(self)
        message["contains"] = None if self.contains is None else self.contains.hex()
        if self.tcp_flags is not None:
            message["tcp_flags"] = sum(FLAG_BITS[letter] for letter in set(self.tcp_flags) - {"P"})
        return message


@dataclass
class Counts:
    """What the wire did in one direction of one link, in frames.

    Once the wire is quiet, over all links and directions: frames + duplicated = delivered + lost + overflowed
    + ruled_out + cut + too_long + unaddressed, as long as nothing was missed.

    Attributes:
        frames: frames that entered.
        bytes: bytes that entered, Ethernet headers included.
        delivered: frames handed to the receiving host, duplicates included.
        lost: dropped by the link's `loss`.
        overflowed: dropped because the queue of a rate-limited link was full.
        ruled_out: dropped by a rule.
        cut: sent while the link was cut.
        too_long: longer than the link's `mtu`.
        duplicated: copies that were added.
        reordered: frames that overtook others.
        unaddressed: frames for no host of the lab, such as broadcast; they go nowhere.
        missed: frames that the wire itself was too slow to take. Any but 0 spoils a measurement.
    """

    frames: int = 0
    bytes: int = 0
    delivered: int = 0
    lost: int = 0
    overflowed: int = 0
    ruled_out: int = 0
    cut: int = 0
    too_long: int = 0
    duplicated: int = 0
    reordered: int = 0
    unaddressed: int = 0
    missed: int = 0
