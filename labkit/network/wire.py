"""The wire: a process that reads each host's frames, holds them for the path's delay, and sends them on.

Many kernels have no netem (small virtual machines, some containers), so the wire is the same one everywhere.
It stands in the middle of the star. What happens to a frame is decided by labkit.network.fate; this module has the
sockets and the clock.

::

    client ──up──▶ ring ─▶ fate ─▶ queue of the path ─▶ send ──down──▶ server

This module runs in the lab's helper without site-packages: standard library only.
"""

from __future__ import annotations

import gc
import heapq
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any

from labkit.network import rpc
from labkit.network.fate import Fate, Settings
from labkit.network.ring import Ring, RingAhead

BATCH = 64
# How long before a frame is due the wire stops sleeping and watches the clock. Waking from sleep takes 50 to 150 µs on
# a virtual machine, which would be added to every packet's delay.
AWAKE_NS = 150_000


class Port:
    """Where one host is plugged in: the ring that its frames come from, whose socket also takes frames to it."""

    def __init__(self, ring: Ring, interface: str) -> None:
        ring.bind(interface)
        self.ring = ring
        self.send = ring.socket.send

    def missed(self) -> int:
        """Frames that this process was too slow to take."""
        return self.ring.dropped()

    def waiting(self) -> bool:
        """Whether a frame is there that was not taken yet."""
        return self.ring.wait(0)


class Wire:
    """The ports and the loop. `control` carries the notebook's requests."""

    def __init__(self, control: socket.socket, seed: int, rings: Iterable[RingAhead] = ()) -> None:
        self.control = control
        self.fate = Fate(seed)
        self._rings = list(rings)  # for the first interfaces
        self.ports: dict[int, Port] = {}  # by the host's number
        self.handlers: dict[str, rpc.Handler] = {
            "attach": self.attach,
            "set": self.set_link,
            "counts": self.report_counts,
            "rule": self.add_rule,
            "unrule": self.remove_rule,
            "rules": self.report_rules,
        }

    def plug_in(self, request: dict[str, Any]) -> Port:
        ahead = self._rings.pop() if self._rings else RingAhead()
        return Port(ahead.get(), request["interface"])

    # What the notebook asks for.

    def attach(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        number = request["number"]
        self.ports[number] = self.plug_in(request)
        self.fate.attach(number, request["host"], request["label"], request["network"])
        return {}, []

    def set_link(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        self.fate.set_link(request["number"], Settings(**request["link"]), request["seed"])
        return {}, []

    def report_counts(self, *_: object) -> tuple[rpc.Reply, list[int]]:
        links: dict[str, dict[str, Any]] = {}
        for number, (up, down) in self.fate.links.items():
            up.counts.missed = self.ports[number].missed()
            links[up.label] = {"up": vars(up.counts), "down": vars(down.counts)}
        in_flight = self.fate.under_way() + sum(port.waiting() for port in self.ports.values())
        return {"links": links, "in_flight": in_flight}, []

    def add_rule(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        return {"identity": self.fate.add_rule(request["rule"])}, []

    def remove_rule(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        self.fate.rules.pop(request["identity"], None)
        return {}, []

    def report_rules(self, *_: object) -> tuple[rpc.Reply, list[int]]:
        rules = self.fate.rules.items()
        return {"rules": {number: {"matched": rule.matched, "acted": rule.acted} for number, rule in rules}}, []

    # Frames.

    def take(self, number: int, port: Port) -> None:
        """Read what a host has sent."""
        # In this order: if this process is held up between the two clocks, frames are late by that and not early, and
        # nothing is faster than the wire.
        wall, now = time.time_ns(), time.monotonic_ns()
        self.fate.take(number, port.ring.frames(BATCH), wall, now)

    def deliver(self) -> None:
        """Send on every frame that is due."""
        monotonic_ns = time.monotonic_ns
        now = monotonic_ns()
        for path in self.fate.paths.values():
            queue = path.queue
            if not queue:
                continue
            taken, missed, send = 0, 0, self.ports[path.to].send
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
            path.down.counts.delivered += taken - missed
            path.down.counts.missed += missed
        overtaking = self.fate.overtaking
        while overtaking and overtaking[0][0] <= now:
            _, _, data, path = heapq.heappop(overtaking)
            try:
                self.ports[path.to].send(data)
                path.down.counts.delivered += 1
            except OSError:
                path.down.counts.missed += 1

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
                self.deliver()
                next_due = self.fate.next_due_ns()

    def close(self) -> None:
        """Close the rings side by side: for each the kernel waits two or three RCU grace periods, some 10 ms."""
        closing = [threading.Thread(target=port.ring.close) for port in self.ports.values()]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


def main(control: socket.socket, seed: int, rings: Iterable[RingAhead]) -> None:
    """The whole life of the wire process. Ends when its control socket closes, and by SIGTERM."""
    from labkit.network.namespaces import set_timer_slack  # Linux only, and the relay uses this module elsewhere, too

    signal.signal(signal.SIGTERM, _end)
    set_timer_slack(1)
    gc.disable()  # frames make no cycles, and a collection would hold packets up
    wire = Wire(control, seed, rings)
    try:
        wire.run()
    except rpc.Disconnected:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wire.close()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _end(*_: object) -> None:
    raise rpc.Disconnected
