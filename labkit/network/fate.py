"""What happens to a frame: whether it is lost, how often it arrives, and when. Pure: no socket, no clock.

Frames enter by their sender's link ("up") and leave by the receiver's ("down"). Each link has a delay, a loss and a
rate of its own, and its own random numbers. A frame's fate is decided when it enters: what loses it, and when it is due
at the other end. A rate is kept as the time at which the link is free again. Frames of a path stay in order, except
those that are meant to overtake. The same seed, frames and times give the same fates.

Who has the frames (labkit.network.wire, labkit.loopback.relay) tells the time and takes away what is due. Standard
library only.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from labkit.network.ring import RingFrame

if TYPE_CHECKING:
    from labkit.network.link import Link

IPPROTO = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
ICMP = (1, 58)
ETHERNET_HEADER = 14
OLDEST_NS = 50_000_000  # a frame that is older was not held up: a clock was set


class Settings:
    """A link's settings, which labkit.network.link.Link has checked in the notebook.

    This and Tally are no dataclasses: the module of those takes longer to import than all that the wire needs.
    """

    rtt_ms = 0.0
    loss = 0.0
    rate_mbps: float | None = None
    jitter_ms = 0.0
    reorder = 0.0
    duplicate = 0.0
    queue_ms = 100.0
    mtu: int | None = None

    def __init__(self, **checked: Any) -> None:
        vars(self).update(checked)


class Tally:
    """What happened in one direction of a link, as labkit.network.link.Counts names it."""

    def __init__(self) -> None:
        self.frames = self.bytes = self.delivered = self.lost = self.overflowed = self.ruled_out = 0
        self.cut = self.too_long = self.duplicated = self.reordered = self.unaddressed = self.missed = 0


class Direction:
    """One direction of one interface's link: its settings, its random numbers, its counts."""

    def __init__(self, host: str, label: str, way: str, seed: int) -> None:
        self.host, self.label, self.way = host, label, way
        self.names = host, label
        self.link: Settings | Link = Settings()
        self.random = random.Random()
        self.seed(seed)
        self.counts = Tally()
        self.free_at_ns = 0

    def seed(self, seed: int) -> None:
        # A stream of random numbers for each direction, so that what one direction carries never changes
        # which frames the other loses: the same seed and traffic give the same losses.
        self.random.seed(f"{seed}/{self.label}/{self.way}")

    @property
    def plain(self) -> bool:
        """Nothing but a delay."""
        link = self.link
        faults = link.loss or link.jitter_ms or link.reorder or link.duplicate
        return not faults and link.rate_mbps is None and link.mtu is None


class Path:
    """Frames under way from one host to another, in the order of their due times."""

    def __init__(self, up: Direction, down: Direction, to: int) -> None:
        self.up, self.down, self.to = up, down, to
        self.queue: deque[tuple[int, bytes]] = deque()
        self.last_due_ns = 0
        self.plain = True
        self.delay_ns = 0
        self.settle()

    def settle(self) -> None:
        """Work out once what holds for every frame, after the settings of a link have changed."""
        self.plain = self.up.plain and self.down.plain
        self.delay_ns = round((self.up.link.rtt_ms + self.down.link.rtt_ms) * 1_000_000 / 2)


class ActiveRule:
    """A rule at work (see link.Rule) and how often it matched and acted."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.action: str = message["action"]
        self.conditions = {
            key: message[key]
            for key in ("protocol", "tcp_flags", "payload", "icmp_type", "icmp_code")
            if message[key] is not None
        }
        self.ends = [(end, message[end]) for end in ("source", "destination") if message[end] is not None]
        self.port = message["port"]
        self.contains = None if message["contains"] is None else bytes.fromhex(message["contains"])
        self.tails: dict[tuple[Any, Any], tuple[int, bytes]] = {}  # of each stream: its next byte's number, its end
        self.skip, self.count = message["skip"], message["count"]
        self.delay_ns = round(message["delay_ms"] * 1_000_000)
        self.matched = self.acted = 0

    def acts_on(self, packet: dict[str, Any]) -> bool:
        """Whether the rule acts on this packet. Counts it where it matches."""
        if any(packet.get(key) != wanted for key, wanted in self.conditions.items()):
            return False
        if any(name not in packet[end] for end, name in self.ends):
            return False
        if self.port is not None and self.port not in packet.get("ports", ()):
            return False
        data = b"" if self.contains is None else self._with_tail(packet)
        matches = self.contains is None or self.contains in data
        self.matched += matches
        acts = matches and self.matched > self.skip and (self.count is None or self.acted < self.count)
        self.acted += acts
        if self.contains is not None and data and "seq" in packet and not (acts and self.action in ("drop", "cut")):
            # What is dropped will be sent again, and is then found again.
            following = (packet["seq"] + len(packet["data"])) % 2**32
            tail = data[max(0, len(data) - len(self.contains) + 1) :]
            self.tails[packet["source"], packet["ports"]] = following, tail
        return acts

    def _with_tail(self, packet: dict[str, Any]) -> bytes:
        """What the packet carries; behind the end of the segment before it, if this one follows it in the stream."""
        data: bytes = packet.get("data", b"")
        following, tail = self.tails.get((packet["source"], packet.get("ports", ())), (None, b""))
        return tail + data if data and following == packet.get("seq") else data


def describe(frame: bytes, source: tuple[str, ...], destination: tuple[str, ...]) -> dict[str, Any]:
    """What rules can ask of a frame: protocol, ports, TCP flags, ICMP type, payload. No more than the headers say.

    Args:
        source, destination: the names by which a rule may call the sender and the receiver.
    """
    packet: dict[str, Any] = {"source": source, "destination": destination}
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == 0x0800 and len(frame) >= 34:
        protocol, start = frame[23], 14 + 4 * (frame[14] & 15)
        end = 14 + int.from_bytes(frame[16:18], "big")
    elif ethertype == 0x86DD and len(frame) >= 54:
        protocol, start = frame[20], 54
        end = 54 + int.from_bytes(frame[18:20], "big")
    else:
        return packet
    later_fragment = ethertype == 0x0800 and int.from_bytes(frame[20:22], "big") & 0x1FFF
    if protocol not in IPPROTO or later_fragment or len(frame) < start + 8:
        return packet
    packet["protocol"] = IPPROTO[protocol]
    if protocol in ICMP:
        packet["icmp_type"], packet["icmp_code"] = frame[start], frame[start + 1]
        return packet
    packet["ports"] = tuple(int.from_bytes(frame[at : at + 2], "big") for at in (start, start + 2))
    header = 8
    if protocol == 6 and len(frame) >= start + 20:
        packet["seq"] = int.from_bytes(frame[start + 4 : start + 8], "big")
        packet["tcp_flags"] = frame[start + 13] & ~0x08
        header = 4 * (frame[start + 12] >> 4)
    packet["data"] = frame[start + header : end]
    packet["payload"] = bool(packet["data"])
    return packet


class Fate:
    """The links of a lab's hosts and what is under way between them. Times are of one monotonic clock, ns.

    Attributes:
        links: each interface's two directions, up and down, by its number, the last byte of its MAC address.
        networks: the number of the network that it is in, by the same.
        paths: by the numbers of sender and receiver.
        overtaking: frames outside the order of their path: a heap of due time, tie-breaker, frame, path.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.links: dict[int, tuple[Direction, Direction]] = {}
        self.networks: dict[int, int] = {}
        self.paths: dict[tuple[int, int], Path] = {}
        self.rules: dict[int, ActiveRule] = {}
        self.overtaking: list[tuple[int, int, bytes, Path]] = []
        self.sequence = 0

    def attach(self, number: int, host: str, label: str = "", network: int = 0) -> None:
        """One more interface, with a path to and from each other of its network."""
        up, down = (Direction(host, label or host, way, self.seed) for way in ("up", "down"))
        for other, (other_up, other_down) in self.links.items():
            if self.networks[other] == network:
                self.paths[number, other] = Path(up, other_down, other)
                self.paths[other, number] = Path(other_up, down, number)
        self.links[number], self.networks[number] = (up, down), network

    def set_link(self, number: int, link: Settings | Link, seed: int | None) -> None:
        """Other settings for frames that enter from now on. A seed starts the link's random numbers again."""
        for direction in self.links[number]:
            direction.link = link
            if seed is not None:
                direction.seed(seed)
        for path in self.paths.values():
            path.settle()

    def add_rule(self, message: dict[str, Any]) -> int:
        """Put a rule to work, see link.Rule.as_message. Returns the number by which it is known."""
        self.sequence += 1
        self.rules[self.sequence] = ActiveRule(message)
        return self.sequence

    def take(self, number: int, frames: Iterable[RingFrame], wall_ns: int, now_ns: int) -> None:
        """Decide the fate of frames that a host has sent, which the kernel has stamped with its wall clock.

        Counting the delay from the stamp keeps a busy machine from adding to the RTT. A frame that came after the two
        clocks were read has a negative age.
        """
        counts, paths, rules = self.links[number][0].counts, self.paths, self.rules
        for frame in frames:
            data = frame.data
            counts.frames += 1
            counts.bytes += len(data)
            path = paths.get((number, data[5]))
            if path is None or data[0] & 1:  # broadcast and multicast go nowhere: neighbours are permanent
                counts.unaddressed += 1
                continue
            age = wall_ns - frame.time_ns
            entered = now_ns - age if abs(age) < OLDEST_NS else now_ns
            if path.plain and not rules:
                due = entered + path.delay_ns
                if due < path.last_due_ns:
                    due = path.last_due_ns
                path.last_due_ns = due
                path.queue.append((due, data))
            else:
                self.decide(path, data, entered)

    def decide(self, path: Path, data: bytes, entered_ns: int, *, lossless: bool = False) -> None:
        """The fate of a frame on a path with faults, in the order in which it meets them.

        `lossless` leaves out what only a protocol that repairs it could bear: loss, full queues, copies, overtaking.
        """
        up, down = path.up, path.down
        extra_ns, copies, overtakes = 0, 1, False
        if self.rules:
            packet = describe(data, up.names, down.names)
            for rule in self.rules.values():
                if rule.acts_on(packet):
                    if rule.action == "drop":
                        up.counts.ruled_out += copies
                        return
                    if rule.action == "cut":
                        up.counts.cut += copies
                        return
                    if rule.action == "duplicate":
                        if not lossless:
                            copies += 1
                            up.counts.duplicated += 1
                    else:
                        extra_ns += rule.delay_ns
                        overtakes = not lossless
        due = entered_ns
        for direction in (up, down):
            link, chance = direction.link, direction.random.random
            if link.mtu is not None and len(data) > link.mtu + ETHERNET_HEADER:
                direction.counts.too_long += copies
                return
            if link.loss and not lossless and chance() < link.loss:
                direction.counts.lost += copies
                return
            if link.rate_mbps is not None:
                start = max(due, direction.free_at_ns)
                if start - due > link.queue_ms * 1_000_000 and not lossless:
                    direction.counts.overflowed += copies
                    return
                due = direction.free_at_ns = start + round(copies * len(data) * 8_000 / link.rate_mbps)
            if link.duplicate and not lossless and chance() < link.duplicate:
                direction.counts.duplicated += copies
                copies *= 2
            if link.reorder and not lossless and chance() < link.reorder:
                direction.counts.reordered += 1
                overtakes = True
                continue
            due += round(link.rtt_ms * 500_000)
            if link.jitter_ms:
                due += round(chance() * link.jitter_ms * 1_000_000)
        if overtakes:
            for _ in range(copies):
                self.sequence += 1
                heapq.heappush(self.overtaking, (due + extra_ns, self.sequence, data, path))
            return
        path.last_due_ns = due = max(due + extra_ns, path.last_due_ns)
        path.queue.extend([(due, data)] * copies)

    def under_way(self) -> int:
        """How many frames have entered and were not taken away yet, copies included."""
        return len(self.overtaking) + sum(len(path.queue) for path in self.paths.values())

    def next_due_ns(self) -> int | None:
        """When the next frame is due, None for no frame."""
        earliest = self.overtaking[0][0] if self.overtaking else None
        for path in self.paths.values():  # a loop by hand: the wire asks after every look
            if path.queue and (earliest is None or path.queue[0][0] < earliest):
                earliest = path.queue[0][0]
        return earliest
