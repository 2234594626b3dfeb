"""A capture that goes on as a stream of pcapng: ``labkit capture -w - | wireshark -k -i -``.

Who reads a pipe reads it once, so a secret must stand before the packets that need it (draft-ietf-opsawg-pcapng,
Decryption Secrets Block). A side logs its secrets before it sends what they protect; the other side may be the only one
that logs, a round trip later. So a packet is held back for that long.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from labkit.capture.frames import Frame
from labkit.capture.pcapng import Appearances, interface_block, packet_block, secrets_block, section_block

if TYPE_CHECKING:
    from labkit.network.engine import Source

LOOK_EVERY_S = 0.05
HOLD_S = 0.25  # and the longest round trip


class PcapngStream:
    """Writes blocks as frames and secrets come.

    Args:
        write: takes bytes.
        hosts: names of those that are known from the start; each is an interface.
    """

    def __init__(self, write: Callable[[bytes], object], hosts: Iterable[str]) -> None:
        self._write = write
        self._numbers: dict[str, int] = {}
        self._secrets = ""
        self._seen = Appearances()
        write(section_block() + b"".join(self._interface(host) for host in hosts))

    def _interface(self, host: str) -> bytes:
        self._numbers[host] = len(self._numbers)
        return interface_block(host)

    def add(self, frames: Iterable[Frame], secrets: str) -> None:
        """Frames in time order, each packet once; before them what is new in the key log, in whole lines.

        Raises OSError where they cannot be written.
        """
        blocks = []
        whole = secrets[: secrets.rfind("\n") + 1]
        if len(whole) > len(self._secrets):
            blocks.append(secrets_block(whole[len(self._secrets) :]))
            self._secrets = whole
        for frame in frames:
            if not self._seen.first(frame):
                continue
            if frame.host not in self._numbers:
                blocks.append(self._interface(frame.host))
            blocks.append(packet_block(frame, self._numbers[frame.host]))
        if blocks:
            self._write(b"".join(blocks))


class LiveStream:
    """Streams what crosses a wire until it is closed, in a thread.

    Args:
        source: where frames come from; owned by this.
        links: host name by kernel interface index, asked again with each look.
        secrets: returns the key log.
        hold_s: how long a packet waits for its secrets, seconds.
        target: descriptor to write to, owned by this. The stream ends when it takes nothing more.
        ended: called when it has ended, by whatever way.
    """

    def __init__(
        self,
        source: Source,
        *,
        links: Callable[[], Mapping[int, str]],
        secrets: Callable[[], str],
        hold_s: float,
        target: int,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._source, self._links, self._secrets, self._hold_s = source, links, secrets, hold_s
        self._target, self._ended = target, ended
        self._held: deque[Frame] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="labkit-stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._stream = PcapngStream(self._write, self._links().values())
            stopped = False
            while not stopped:
                stopped = self._stop.wait(LOOK_EVERY_S)
                self._look(everything=stopped)
        except OSError:
            """Its reader has gone, which is how a live view ends."""
        finally:
            self._source.close()
            os.close(self._target)
            self._ended()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._target, data) :]

    def _look(self, everything: bool) -> None:
        links = self._links()
        if everything:
            self._source.flush()
        else:
            self._source.collect()
        self._source.read()
        seen = sorted(self._source.frames, key=lambda frame: frame.time_ns)
        self._source.frames.clear()
        for frame in seen:
            # The wire hands out what a host receives and takes in what a host sends.
            host, sent = links.get(frame.interface, ""), not frame.outgoing
            self._held.append(Frame(frame.time_ns, frame.data, host, sent, frame.length))
        until = float("inf") if everything else time.time_ns() - self._hold_s * 1e9
        due = []
        while self._held and self._held[0].time_ns <= until:
            due.append(self._held.popleft())
        self._stream.add(due, self._secrets())

    def close(self) -> None:
        """Write what is held back, and end. Closing twice is fine."""
        self._stop.set()
        self._thread.join()
