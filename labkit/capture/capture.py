"""``with lab.capture() as cap:`` — frames from the kernel's ring, looked at when somebody asks.

While the block runs, frames lie in memory that the kernel fills; a thread empties it every few milliseconds and
keeps raw bytes and kernel time stamps. Nothing is dissected before somebody looks, so that capturing costs the
code under study as little as possible.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.capture.frames import Frame, Transit, pair_frames
from labkit.errors import LabClosed
from labkit.network.ring import Ring

if TYPE_CHECKING:
    from labkit.capture.ladder import Ladder
    from labkit.capture.messages import Dissected

RING_BYTES = 32 << 20  # some 20,000 frames: at 20,000 packets a second (each twice) half a second without a look
LOOK_EVERY_S = 0.05


def _collect(reference: weakref.ref[Capture], stop: threading.Event) -> None:
    """Empty the ring again and again. Holds the capture, and the lab behind it, only while it does."""
    while not stop.wait(LOOK_EVERY_S) and (capture := reference()) is not None:
        capture._drain()
        del capture


class Capture:
    """Frames seen at one place of the lab. Made by ``lab.capture()``; starts at once, stops at the end of its block.

    Args:
        ring: where the kernel puts the frames; the capture owns it.
        links: host name by kernel interface index, for a capture in the middle of the wire; empty on a host.
        at: "wire", or the name of the host.
        hosts: host name by the last byte of its MAC address.
        secrets: returns the session's key log, read when somebody looks.
        settle: waits for the frames that are still on the wire; called at the end of the block.
        tier: tier of the lab, which stands on every picture.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        links: Mapping[int, str],
        at: str,
        hosts: Mapping[int, str],
        secrets: Callable[[], str],
        settle: Callable[[], object],
        tier: str,
    ) -> None:
        self.at = at
        self.tier = tier
        self.closed = False
        self._ring, self._links, self._hosts = ring, dict(links), dict(hosts)
        self._secrets, self._settle = secrets, settle
        self._frames: list[Frame] = []
        self._dropped = 0
        self._secrets_read = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        weakref.finalize(self, ring.close).atexit = False  # at the interpreter's end the thread may still read it
        collecting = weakref.ref(self), self._stop
        self._thread = threading.Thread(target=_collect, args=collecting, name=f"labkit-capture-{at}", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._lock:
            if self.closed:
                return
            for frame in self._ring.frames(1 << 30):
                if self.at == "wire":
                    # The wire hands out what a host receives and takes in what a host sends.
                    host, sent = self._links.get(frame.interface, ""), not frame.outgoing
                else:
                    host, sent = self.at, frame.outgoing
                self._frames.append(Frame(frame.time_ns, frame.data, host, sent, frame.length))
            self._dropped = self._ring.dropped()

    def __enter__(self) -> Capture:
        if self.closed:
            raise LabClosed("this capture has ended: take a new one with lab.capture()")
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None:
                self._settle()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "stopped" if self.closed else "running"
        lost = f", {self.dropped} DROPPED BY THE KERNEL" if self.dropped else ""
        return f"<Capture at {self.at}, {len(self.frames)} frames{lost}, {state}>"

    def close(self) -> None:
        """Stop. What was captured stays. Closing twice is fine."""
        self._stop.set()
        self._thread.join()
        self._drain()
        with self._lock:
            if not self.closed:
                self.closed = True
                _ = self.secrets
                self._ring.close()

    @property
    def dropped(self) -> int:
        """Frames that the kernel had no room for. Any but 0 means that the capture has holes."""
        self._drain()
        return self._dropped

    @property
    def frames(self) -> list[Frame]:
        """Every frame so far, at every place it was seen, in the order of the kernel's time stamps."""
        self._drain()
        with self._lock:
            return sorted(self._frames, key=lambda frame: frame.time_ns)

    @property
    def transits(self) -> list[Transit]:
        """Each frame once, with the times of its sending and its arrival, and both hosts' names."""
        named = []
        for transit in pair_frames(self.frames):
            destination = transit.destination or self._hosts.get(transit.data[5], "")
            source = transit.source or self._hosts.get(transit.data[11], "")
            named.append(Transit(transit.sent_ns, transit.received_ns, source, destination, transit.data))
        return named

    @property
    def secrets(self) -> str:
        """The session's key log (NSS format), as far as it is written."""
        with contextlib.suppress(FileNotFoundError):  # the lab is closed: what was read last holds
            self._secrets_read = self._secrets()
        return self._secrets_read

    @property
    def packets(self) -> Any:
        """scapy's packets, a PacketList: each frame once, ``.time`` in seconds, ``.sniffed_on`` the sender's name."""
        from scapy.layers.inet import TCP  # noqa: F401  IPv4, TCP, UDP are dissected once their module is loaded
        from scapy.layers.inet6 import IPv6  # noqa: F401
        from scapy.layers.l2 import Ether
        from scapy.packet import Packet
        from scapy.plist import PacketList

        packets: list[Packet] = []
        for transit in self.transits:
            packet = Ether(transit.data)
            packet.time = transit.time_ns / 1e9
            packet.sniffed_on = transit.source
            packets.append(packet)
        return PacketList(packets, name=f"capture at {self.at}")

    @property
    def messages(self) -> list[Dissected]:
        """What each packet carries, TLS and QUIC decrypted with the session's own secrets."""
        from labkit.capture.dissect import dissect
        from labkit.capture.keylog import KeyLog

        return dissect(self.transits, KeyLog.parse(self.secrets))

    def table(self) -> str:
        """The packets as a table of text, a line each."""
        from labkit.capture.ladder import table

        return table(self.messages) + self._holes()

    def ladder(self, hosts: Sequence[str] | None = None, *, acks: bool = False) -> Ladder:
        """A time–sequence diagram: ``str()`` of it is text, a notebook shows it as a picture.

        Args:
            hosts: names of the hosts from left to right, by default in the order in which the lab made them.
            acks: show packets that only acknowledge.
        """
        from labkit.capture.ladder import build_ladder

        ladder = build_ladder(self.messages, list(self._hosts.values()) if hosts is None else hosts, acks=acks)
        return replace(ladder, tier=self.tier, missing=self.dropped)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a pcapng file with the session's secrets inside: Wireshark opens it decrypted.

        Returns:
            the path. Raises OSError where it cannot be written.
        """
        from labkit.capture.pcapng import write_pcapng

        target = Path(path)
        write_pcapng(target, self.frames, self.secrets)
        return target

    def _holes(self) -> str:
        lost = self.dropped
        return f"\n{lost} frames are missing: the kernel had no room for them.\n" if lost else ""
