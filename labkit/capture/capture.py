"""``with lab.capture() as cap:`` — frames from the kernel's ring, looked at when somebody asks.

While the block runs, frames lie in memory that the kernel fills; a thread empties it every few milliseconds and
keeps raw bytes and kernel time stamps. Nothing is dissected before somebody looks, so that capturing costs the
code under study as little as possible.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from labkit.capture.captured import Captured
from labkit.capture.frames import Frame
from labkit.errors import LabClosed

if TYPE_CHECKING:
    from labkit.network.network import Source

LOOK_EVERY_S = 0.05


def _collect(reference: weakref.ref[Capture], stop: threading.Event) -> None:
    """Empty the ring again and again. Holds the capture, and the lab behind it, only while it does."""
    while not stop.wait(LOOK_EVERY_S) and (capture := reference()) is not None:
        capture._drain()
        del capture


class Capture(Captured):
    """Frames seen at one place of the lab. Made by ``lab.capture()``; starts at once, stops at the end of its block.

    Args:
        source: where the frames come from, a kernel's ring mostly; the capture owns it.
        links: host name by kernel interface index, for a capture in the middle of the wire; empty on a host.
        at: "wire", or the name of the host.
        hosts: host name by the last byte of its MAC address.
        secrets: returns the session's key log, read when somebody looks.
        settle: waits for the frames that are still on the wire, and tells since when it has been quiet (CLOCK_REALTIME,
            ns; None where it never was); called at the end of the block.
        tier: tier of the lab, which stands on every picture.
    """

    def __init__(
        self,
        source: Source,
        *,
        links: Mapping[int, str],
        at: str,
        hosts: Mapping[int, str],
        secrets: Callable[[], str],
        settle: Callable[[], int | None],
        tier: str,
    ) -> None:
        super().__init__([], hosts=hosts, at=at, tier=tier)
        self.closed = False
        self._source, self._links = source, dict(links)
        self._secrets, self._settle = secrets, settle
        self._dropped = 0
        self._secrets_read = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        weakref.finalize(self, source.close).atexit = False  # at the interpreter's end the thread may still read it
        collecting = weakref.ref(self), self._stop
        self._thread = threading.Thread(target=_collect, args=collecting, name=f"labkit-capture-{at}", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._lock:
            if self.closed:
                return
            for frame in self._source.frames(1 << 30):
                if self.at == "wire":
                    # The wire hands out what a host receives and takes in what a host sends.
                    host, sent = self._links.get(frame.interface, ""), not frame.outgoing
                else:
                    host, sent = self.at, frame.outgoing
                self._frames.append(Frame(frame.time_ns, frame.data, host, sent, frame.length))
            self._dropped = self._source.dropped()

    def __enter__(self) -> Capture:
        if self.closed:
            raise LabClosed("this capture has ended: take a new one with lab.capture()")
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        quiet_since_ns = None
        try:
            if kind is None:
                quiet_since_ns = self._settle()
        finally:
            self.close()
        if quiet_since_ns is not None:
            self._end_at(quiet_since_ns)

    def _end_at(self, moment_ns: int) -> None:
        """Leave out what was sent after a moment at which the wire was quiet.

        A late acknowledgment, for instance, would be seen leaving and not arriving, and be taken for a lost packet.
        """
        late: set[tuple[int | None, bytes]] = set()
        for transit in self.transits:
            if transit.sent_ns is not None and transit.sent_ns > moment_ns:
                late |= {(transit.sent_ns, transit.data), (transit.received_ns, transit.data)}
        self._frames = [frame for frame in self._frames if (frame.time_ns, frame.data) not in late]

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
                self._source.close()

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
    def secrets(self) -> str:
        """The session's key log (NSS format), as far as it is written."""
        with contextlib.suppress(FileNotFoundError):  # the lab is closed: what was read last holds
            self._secrets_read = self._secrets()
        return self._secrets_read
