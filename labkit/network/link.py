"""What the wire does to frames: the values that notebooks set and the wire process obeys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from labkit import checks
from labkit.errors import InvalidValue


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
        for name in ("rtt_ms", "jitter_ms", "queue_ms"):
            checks.number(name, getattr(self, name), 0, 60_000, unit="milliseconds")
        for name in ("loss", "reorder", "duplicate"):
            checks.number(name, getattr(self, name), 0, 1)
        checks.optional(checks.number, "rate_mbps", self.rate_mbps, 0.001, 1e6, unit="Mbit/s, or None for no limit")
        checks.optional(checks.whole, "mtu", self.mtu, 1280, 1500, unit="bytes, or None for 1500")

    def changed(self, **changes: Any) -> Link:
        """A copy with some values changed. Raises InvalidValue for a name that a link does not have."""
        checks.options(changes, asdict(self), "a link")
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
        contains: bytes that stand anywhere in the payload of a packet. In a TCP stream they may begin in the segments
            before it: the one in which they end matches, where each comes once and in order. What stands under
            encryption is not found.
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
        checks.one_of("action", self.action, ACTIONS)
        for name in ("source", "destination"):
            checks.optional(checks.text, name, getattr(self, name), "server")
        checks.optional(checks.one_of, "protocol", self.protocol, PROTOCOLS)
        checks.optional(checks.text, "tcp_flags", self.tcp_flags, "SA")
        if self.tcp_flags is not None and (not self.tcp_flags or set(self.tcp_flags) - set(FLAG_BITS)):
            raise InvalidValue(f"tcp_flags={self.tcp_flags!r}: letters of {''.join(FLAG_BITS)}, for instance 'SA'")
        checks.optional(checks.port, "port", self.port)
        checks.optional(checks.flag, "payload", self.payload)
        checks.optional(checks.octets, "contains", self.contains, b"HTTP/1.1 200")
        checks.whole("skip", self.skip, 0)
        checks.optional(checks.whole, "count", self.count, 1)
        checks.number("delay_ms", self.delay_ms, 0, 60_000, unit="milliseconds")
        for name in ("icmp_type", "icmp_code"):
            value = checks.optional(checks.whole, name, getattr(self, name), 0, 255)
            if value is not None and self.protocol not in ("icmp", "icmpv6"):
                raise InvalidValue(f"{name}={value}: give protocol='icmp' or 'icmpv6', too; their numbers differ")

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
