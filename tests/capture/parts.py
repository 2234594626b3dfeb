"""Parts of a capture."""

from __future__ import annotations

from labkit import Captured


def from_packet(capture: Captured, index: int) -> Captured:
    """A capture of a lab's wire that begins with this packet. What was on its way at that moment is not in it."""
    kept = {(ns, transit.data) for transit in capture.transits[index:] for ns in (transit.sent_ns, transit.received_ns)}
    frames = [frame for frame in capture.frames if (frame.time_ns, frame.data) in kept]
    return Captured(frames, hosts=capture.hosts, at="wire", tier="kernel", secrets=capture.secrets)
