"""The wire: a process that reads each host's frames, holds them for the path's delay, and sends them on.

Many kernels have no netem (small virtual machines, some containers), so the wire is the same one everywhere.
It stands in the middle of the star: frames of a host enter by the host's link ("up") and leave by the
receiver's link ("down"), and each link has a delay, a loss and a rate of its own.

::

    client ──up──▶ ring ─▶ fate ─▶ queue of the path ─▶ send ──down──▶ server

A frame's fate is decided when it enters: what loses it, and when it is due at the other end. A rate is kept as
the time at which the link is free again. Frames of a path stay in order, except those that are meant to overtake.

This module runs in the lab's helper without site-packages: standard library only.
"""

from __future__ import annotations

import gc
import heapq
import os
import random
import select
import socket
import threading
import time
import traceback
from collections import deque
from dataclasses import asdict
from typing import Any

from labkit.network import rpc
from labkit.network.link import Counts, Link
from labkit.network.ring import Ring

BATCH = 64
# How long before a frame is due the wire stops sleeping and watches the clock. Waking from sleep takes 50 to 150 µs on
# a virtual machine, which would be added to every packet's delay.
AWAKE_NS = 150_000
RING_BYTES = 8 << 20
IPPROTO = {6: "tcp", 17: "udp"}


class Direction:
    """One direction of one host's link: its settings, its random numbers, its counts."""

    def __init__(self, host: str, way: str, seed: int) -> None:
        self.link = Link()
        # A stream of random numbers for each direction, so that what one direction carries never changes
        # which frames the other loses: the same seed and traffic give the same losses.
        self.random = random.Random(f"{seed}/{host}/{way}")
        self.counts = Counts()
        self.free_at_ns = 0

    @property
    def plain(self) -> bool:
        """Nothing but a delay."""
        link = self.link
        return not (link.loss or link.jitter_ms or link.reorder or link.duplicate) and link.rate_mbps is None


class Port:
    """Where one host is plugged in: the ring that its frames come from, whose socket also takes frames to it."""

    def __init__(self, host: str, interface: str, seed: int) -> None:
        self.host = host
        packet_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.ring = Ring(packet_socket, interface, size_bytes=RING_BYTES, ignore_outgoing=True)
        self.send = packet_socket.send
        self.up = Direction(host, "up", seed)
        self.down = Direction(host, "down", seed)

    def missed(self) -> int:
        """Frames that this process was too slow to take."""
        return self.ring.dropped()

    def waiting(self) -> bool:
        """Whether a frame is there that was not taken yet."""
        return self.ring.wait(0)


class Path:
    """Frames under way from one port to another, in the order of their due times."""

    def __init__(self, source: Port, destination: Port) -> None:
        self.source, self.destination = source, destination
        self.queue: deque[tuple[int, bytes]] = deque()
        self.last_due_ns = 0
        self.plain = True
        self.delay_ns = 0
        self.settle()

    def settle(self) -> None:
        """Work out once what holds for every frame, after the settings of a link have changed."""
        self.plain = self.source.up.plain and self.destination.down.plain
        rtt_ms = self.source.up.link.rtt_ms + self.destination.down.link.rtt_ms
        self.delay_ns = round(rtt_ms * 1_000_000 / 2)


class ActiveRule:
    """A rule at work (see link.Rule) and how often it matched and acted."""

    def __init__(self, identity: int, message: dict[str, Any]) -> None:
        self.identity = identity
        self.action: str = message["action"]
        self.conditions = {
            key: message[key]
            for key in ("source", "destination", "protocol", "tcp_flags", "payload")
            if message[key] is not None
        }
        self.port = message["port"]
        self.contains = None if message["contains"] is None else bytes.fromhex(message["contains"])
        self.skip, self.count = message["skip"], message["count"]
        self.delay_ns = round(message["delay_ms"] * 1_000_000)
        self.matched = self.acted = 0

    def acts_on(self, packet: dict[str, Any]) -> bool:
        """Whether the rule acts on this packet. Counts it where it matches."""
        if any(packet.get(key) != wanted for key, wanted in self.conditions.items()):
            return False
        if self.port is not None and self.port not in packet.get("ports", ()):
            return False
        if self.contains is not None and self.contains not in packet.get("data", b""):
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.count is not None and self.acted >= self.count):
            return False
        self.acted += 1
        return True


def describe(frame: bytes, source: str, destination: str) -> dict[str, Any]:
    """What rules can ask of a frame: protocol, ports, TCP flags, payload. Needs no more than the headers say."""
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
    packet["ports"] = tuple(int.from_bytes(frame[at : at + 2], "big") for at in (start, start + 2))
    header = 8
    if protocol == 6 and len(frame) >= start + 20:
        packet["tcp_flags"] = frame[start + 13] & ~0x08
        header = 4 * (frame[start + 12] >> 4)
    packet["data"] = frame[start + header : end]
    packet["payload"] = bool(packet["data"])
    return packet


class Wire:
    """The ports, the paths between them, and the loop. `control` carries the notebook's requests."""

    def __init__(self, control: socket.socket, seed: int) -> None:
        self.control = control
        self.seed = seed
        self.ports: dict[int, Port] = {}  # by the host's number, which is the last byte of its MAC address
        self.paths: dict[tuple[int, int], Path] = {}
        self.rules: dict[int, ActiveRule] = {}
        self.overtaking: list[tuple[int, int, bytes, Port]] = []  # heap of due time, tie-breaker, frame, receiver
        self.sequence = 0
        self.handlers: dict[str, rpc.Handler] = {
            "attach": self.attach,
            "set": self.set_link,
            "counts": self.report_counts,
            "rule": self.add_rule,
            "unrule": self.remove_rule,
            "rules": self.report_rules,
        }

    def plug_in(self, request: dict[str, Any]) -> Port:
        return Port(request["host"], request["interface"], self.seed)

    # What the notebook asks for.

    def attach(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        port = self.plug_in(request)
        number = request["number"]
        for other_number, other in self.ports.items():
            self.paths[number, other_number] = Path(port, other)
            self.paths[other_number, number] = Path(other, port)
        self.ports[number] = port
        return {}, []

    def set_link(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        port = self.ports[request["number"]]
        port.up.link = port.down.link = Link(**request["link"])
        if request["seed"] is not None:
            for way, direction in (("up", port.up), ("down", port.down)):
                direction.random.seed(f"{request['seed']}/{port.host}/{way}")
        for path in self.paths.values():
            path.settle()
        return {}, []

    def report_counts(self, *_: object) -> tuple[rpc.Reply, list[int]]:
        for port in self.ports.values():
            port.up.counts.missed = port.missed()
        links = {
            port.host: {"up": asdict(port.up.counts), "down": asdict(port.down.counts)} for port in self.ports.values()
        }
        in_flight = len(self.overtaking) + sum(len(path.queue) for path in self.paths.values())
        in_flight += sum(port.waiting() for port in self.ports.values())
        return {"links": links, "in_flight": in_flight}, []

    def add_rule(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        self.sequence += 1
        self.rules[self.sequence] = ActiveRule(self.sequence, request["rule"])
        return {"identity": self.sequence}, []

    def remove_rule(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        self.rules.pop(request["identity"], None)
        return {}, []

    def report_rules(self, *_: object) -> tuple[rpc.Reply, list[int]]:
        return {"rules": {r.identity: {"matched": r.matched, "acted": r.acted} for r in self.rules.values()}}, []

    # What happens to frames.

    def take(self, number: int, port: Port) -> None:
        """Read what a host has sent and decide the fate of each frame."""
        # The kernel stamped the frame when the host sent it. Counting the delay from that stamp, and not from
        # when this process got to it, keeps a busy machine from adding to the RTT. In this order: if this process is
        # held up between the two clocks, frames are late by that and not early, and nothing is faster than the wire.
        wall, now = time.time_ns(), time.monotonic_ns()
        counts, paths, rules = port.up.counts, self.paths, self.rules
        for frame in port.ring.frames(BATCH):
            data = frame.data
            counts.frames += 1
            counts.bytes += len(data)
            path = paths.get((number, data[5]))
            if path is None or data[0] & 1:  # broadcast and multicast go nowhere: neighbours are permanent
                counts.unaddressed += 1
                continue
            age = wall - frame.time_ns
            # A frame that came after the two clocks were read has a negative age. A clock that was set is not an age.
            entered = now - age if abs(age) < 50_000_000 else now
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
        up, down = path.source.up, path.destination.down
        extra_ns, copies, overtakes = 0, 1, False
        if self.rules:
            packet = describe(data, path.source.host, path.destination.host)
            for rule in self.rules.values():
                if rule.acts_on(packet):
                    if rule.action == "drop":
                        up.counts.ruled_out += copies
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
                heapq.heappush(self.overtaking, (due + extra_ns, self.sequence, data, path.destination))
            return
        path.last_due_ns = due = max(due + extra_ns, path.last_due_ns)
        path.queue.extend([(due, data)] * copies)

    def deliver(self) -> int | None:
        """Send on every frame that is due. Returns when the next one will be (monotonic ns), None for no frame."""
        earliest: int | None = None
        monotonic_ns = time.monotonic_ns
        now = monotonic_ns()
        for path in self.paths.values():
            queue = path.queue
            if not queue:
                continue
            taken, missed, send, counts = 0, 0, path.destination.send, path.destination.down.counts
            while queue and taken < BATCH:
                due, data = queue[0]
                if due > now:
                    now = monotonic_ns()
                    if due > now:
                        break
                queue.popleft()
                taken += 1
                try:
                    send(data)
                except OSError:
                    missed += 1
            counts.delivered += taken - missed
            counts.missed += missed
            if queue and (earliest is None or queue[0][0] < earliest):
                earliest = queue[0][0]
        while self.overtaking and self.overtaking[0][0] <= now:
            _, _, data, port = heapq.heappop(self.overtaking)
            try:
                port.send(data)
                port.down.counts.delivered += 1
            except OSError:
                port.down.counts.missed += 1
        if self.overtaking and (earliest is None or self.overtaking[0][0] < earliest):
            earliest = self.overtaking[0][0]
        return earliest

    def run(self) -> None:
        """Carry frames until the control socket closes."""
        next_due: int | None = None
        while True:
            rings = {port.ring.fileno(): (number, port) for number, port in self.ports.items()}
            waiting = [self.control.fileno(), *rings]
            changed = False
            while not changed:
                # select and not poll or epoll: its time-out is in microseconds, theirs in milliseconds.
                timeout = None if next_due is None else max(0.0, (next_due - AWAKE_NS - time.monotonic_ns()) / 1e9)
                for descriptor in select.select(waiting, [], [], timeout)[0]:
                    if descriptor in rings:
                        self.take(*rings[descriptor])
                    else:
                        rpc.answer_one(self.control, self.handlers)
                        changed = True
                next_due = self.deliver()

    def close(self) -> None:
        """Close the rings side by side: for each the kernel waits two or three RCU grace periods, some 10 ms."""
        closing = [threading.Thread(target=port.ring.close) for port in self.ports.values()]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


def main(control: socket.socket, seed: int) -> None:
    """The whole life of the wire process."""
    from labkit.network.namespaces import set_timer_slack  # Linux only, and the relay uses this module elsewhere, too

    set_timer_slack(1)
    gc.disable()  # frames make no cycles, and a collection would hold packets up
    wire = Wire(control, seed)
    try:
        wire.run()
    except rpc.Disconnected:
        wire.close()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
