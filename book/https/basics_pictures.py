"""The pictures of the section "Communication basics"."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.capture.captured import Captured
from labkit.network.tiers import origin
from labkit.plots import Picture, style

COLOURS = (style.VERMILION, style.BLUE, style.GREEN)


def plot_arrivals(captures: Mapping[str, Captured], rtt_ms: float, title: str) -> Picture:
    """The bytes of a response that had reached the client, over time: a step for each flight.

    Args:
        captures: up to three by their words, each of one response on a connection of its own.
        rtt_ms: the unit of time, milliseconds.
        title: the finding.
    """
    figure, axes = style.new_figure(3.6)
    words = []
    for colour, (label, capture) in reversed(list(zip(COLOURS, captures.items(), strict=False))):
        times, kilobytes = _arrivals(capture, rtt_ms)
        axes.step(times, kilobytes, where="post", color=colour, linewidth=2)
        axes.plot(times[-1], kilobytes[-1], "o", color=colour)
        said = f"{label}, {times[-1]:.2f} RTT"
        axes.text(times[-1] - 0.07, kilobytes[-1], said, ha="right", va="center", color=style.INK)
        words.append(f"{label}: last byte after {times[-1]:.2f} RTT")
    axes.set_xlim(0, None)
    axes.set_xticks(range(int(axes.get_xlim()[1]) + 1))
    axes.set_ylim(0, None)
    axes.set_xlabel(f"round trips after the first packet (1 RTT = {rtt_ms:g} ms)")
    axes.set_ylabel("kilobytes at the client")
    style.set_title(axes, title)
    style.add_note(figure, f"Payload in packets. {origin(capture.tier)}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def _arrivals(capture: Captured, rtt_ms: float) -> tuple[list[float], list[float]]:
    """Times in round trips, and kilobytes that had reached the client by then."""
    packets = capture.messages
    times, kilobytes = [0.0], [0.0]
    for packet in packets:
        if not packet.from_client and packet.payload and packet.transit.received_ns:
            times.append((packet.transit.received_ns - packets[0].transit.time_ns) / (rtt_ms * 1e6))
            kilobytes.append(kilobytes[-1] + packet.payload / 1000)
    return times, kilobytes
