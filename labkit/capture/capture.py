"""``with lab.capture() as cap:`` — frames from the kernel's ring, looked at when somebody asks.

While the block runs, frames lie in memory that the kernel fills; a thread empties it every few milliseconds, by copying
whole blocks. Nothing is read before somebody looks, so that capturing costs the code under study as little as possible.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from labkit.capture.captured import Captured, Result
from labkit.capture.frames import Frame
from labkit.errors import LabClosed

if TYPE_CHECKING:
    from labkit.network.engine import Source

LOOK_EVERY_S = 0.02
SOON_S = 0.002
MUCH = 4  # blocks since the last look: the next one comes soon


class _Collector:
    """Empties a source again and again, in a thread that knows neither the capture nor its lab."""

    def __init__(self, source: Source) -> None:
        self.frames = source.frames
        self.dropped = 0
        self.stop = threading.Event()
        self._source = source
        self._lock = threading.Lock()  # for taking what there is, which is quick
        self._reading = threading.Lock()  # for reading it, which is not
        self._wanted = True
        self._closed = False

    def run(self) -> None:
        pause_s = LOOK_EVERY_S
        while self._wanted and not self.stop.wait(pause_s):
            with self._lock:
                blocks = self._source.collect() if self._open else 0
            pause_s = SOON_S if blocks >= MUCH else LOOK_EVERY_S
        if not self._wanted:
            self.close()

    @property
    def _open(self) -> bool:
        return self._wanted and not self._closed

    def flush(self) -> None:
        """Take all that there is, unread."""
        with self._lock:
            if self._open:
                self._source.flush()
                self.dropped = self._source.dropped()

    def read(self) -> None:
        """Read all that there is."""
        with self._reading:
            self.flush()
            self._source.read()

    def close(self) -> None:
        """Take what there is for the last time. It can still be read. Closing twice is fine."""
        self.flush()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._source.close()

    def abandon(self) -> None:
        """The capture has gone, with a garbage collection perhaps, which comes at any moment, in any thread.

        So nothing is waited for: if the lock is taken, then by the thread, which will see that nobody wants this.
        """
        self._wanted = False
        if self._lock.acquire(blocking=False):
            try:
                self._closed = True
                self._source.close()
            finally:
                self._lock.release()


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
        self._links = dict(links)
        self._secrets, self._settle = secrets, settle
        self._until_ns: int | None = None
        self._final: Result | None = None  # of a capture that has ended, once somebody has looked
        self._looking = threading.Lock()
        self._collector = _Collector(source)
        weakref.finalize(self, self._collector.abandon).atexit = False  # at the interpreter's end the thread may drain
        self._thread = threading.Thread(target=self._collector.run, name=f"labkit-capture-{at}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Capture:
        if self.closed:
            raise LabClosed("this capture has ended: take a new one with lab.capture()")
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None:
                self._until_ns = self._settle()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "stopped" if self.closed else "running"
        lost = f", {self.dropped} DROPPED BY THE KERNEL" if self.dropped else ""
        return f"<Capture at {self.at}, {len(self.frames)} frames{lost}, {state}>"

    def close(self) -> None:
        """Stop. What was captured stays. Closing twice is fine."""
        self._collector.stop.set()
        self._thread.join()
        self._collector.close()
        if not self.closed:
            _ = self.secrets
            self.closed = True

    @property
    def dropped(self) -> int:
        """Frames that the kernel had no room for. Any but 0 means that the capture has holes."""
        self._collector.flush()
        return self._collector.dropped

    @property
    def secrets(self) -> str:
        """The session's key log (NSS format), as far as it is written."""
        with contextlib.suppress(FileNotFoundError):  # the lab is closed: what was read last holds
            self._secrets_read = self._secrets()
        return self._secrets_read

    def _now(self) -> Result:
        if not self.closed:
            return self._so_far()
        with self._looking:  # of several threads one reads
            if self._final is None:
                self._final = self._so_far()
                self._collector.frames.clear()
            return self._final

    def _so_far(self) -> Result:
        self._collector.read()
        frames = []
        for frame in list(self._collector.frames):
            if self.at == "wire":
                # The wire hands out what a host receives and takes in what a host sends.
                host, sent = self._links.get(frame.interface, ""), not frame.outgoing
            else:
                host, sent = self.at, frame.outgoing
            frames.append(Frame(frame.time_ns, frame.data, host, sent, frame.length))
        return Result(frames, self.hosts, self._until_ns)
