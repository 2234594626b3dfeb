"""What a capture holds: frames as the kernel saw them, and transits, the same frames seen crossing the wire."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One Ethernet frame at one place, once.

    Attributes:
        time_ns: kernel time stamp, CLOCK_REALTIME, nanoseconds.
        data: the frame from the Ethernet header on.
        host: the host whose link it was seen on.
        sent: True where the host sent it, False where the frame was going to the host.
        length: bytes the frame had on the wire (``len(data)`` unless it was cut).
    """

    time_ns: int
    data: bytes
    host: str
    sent: bool
    length: int


@dataclass(frozen=True, slots=True)
class Transit:
    """One frame's way across the wire.

    Attributes:
        sent_ns: when it left the sender, or None where only its arrival was seen.
        received_ns: when it reached the receiver, or None where the wire dropped it (or only its sending was seen).
        source: name of the host that sent it; "" where unknown.
        destination: name of the host that received it; "" where unknown or dropped.
        data: the frame from the Ethernet header on.
    """

    sent_ns: int | None
    received_ns: int | None
    source: str
    destination: str
    data: bytes

    @property
    def time_ns(self) -> int:
        """The first time stamp that the frame has."""
        time_ns = self.sent_ns if self.sent_ns is not None else self.received_ns
        assert time_ns is not None
        return time_ns


def pair_frames(frames: Iterable[Frame]) -> list[Transit]:
    """Pair each frame's sending with its arrival, by its bytes, first in first out.

    Args:
        frames: frames of one capture, in time order. A capture on the wire sees each delivered frame twice.

    Returns:
        transits in the order of their first time stamp. A dropped frame has no arrival, a duplicated one
        appears once for each arrival.
    """
    transits: list[Transit] = []
    in_flight: dict[bytes, deque[int]] = defaultdict(deque)
    delivered: dict[bytes, Transit] = {}
    for frame in frames:
        if frame.sent:
            in_flight[frame.data].append(len(transits))
            transits.append(Transit(frame.time_ns, None, frame.host, "", frame.data))
        elif waiting := in_flight.get(frame.data):
            index = waiting.popleft()
            sent = transits[index]
            transits[index] = Transit(sent.sent_ns, frame.time_ns, sent.source, frame.host, frame.data)
            delivered[frame.data] = transits[index]
        elif frame.data in delivered:
            first = delivered[frame.data]
            transits.append(Transit(first.sent_ns, frame.time_ns, first.source, frame.host, frame.data))
        else:
            transits.append(Transit(None, frame.time_ns, "", frame.host, frame.data))
    return sorted(transits, key=lambda transit: transit.time_ns)
