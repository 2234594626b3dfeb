"""The picture of the section "Send and receive queues"."""

from __future__ import annotations

from book.execution.buffers_experiments import busiest
from labkit.network.tiers import origin
from labkit.plots import Picture, style
from labkit.queues.history import History


def plot_limits(history: History, title: str, *, rtt_ms: float, segment: int) -> Picture:
    """What a writer has in flight, and the two limits: its own and the peer's.

    Args:
        history: of a watch on the writer's host that looked at the connections, too.
        title: the finding.
        rtt_ms: of the lab.
        segment: bytes of payload in a full segment.
    """
    queues = busiest(history)
    drawn = {
        "receive window\nof the peer": (queues.send_window, 1, style.SKY, 5.0),
        "congestion window,\nin bytes": (queues.cwnd, segment, style.ORANGE, 5.0),
        "in flight": (queues.unacknowledged, 1, style.INK, 1.6),
    }
    begins = next(n for n, value in enumerate(queues.unacknowledged.values) if value)
    first_s = queues.unacknowledged.times_s[begins]
    figure, axes = style.new_figure(3.1)
    for label, (steps, unit, colour, width) in drawn.items():
        trips = [(time_s - first_s) * 1000 / rtt_ms for time_s in steps.times_s]
        kilobytes = [value * unit / 1000 for value in steps.values]
        if steps is not queues.unacknowledged:  # of a connection that has gone they are 0
            kilobytes = [value or float("nan") for value in kilobytes]
        axes.step(trips, kilobytes, where="post", color=colour, lw=width, label=label)
    axes.set_ylim(0, 1.5 * queues.unacknowledged.peak / 1000)
    axes.set_xlim(-1, None)
    axes.set_xlabel(f"round trips after the first byte (1 RTT = {rtt_ms:g} ms)")
    axes.set_ylabel("kilobytes")
    axes.legend(frameon=False, fontsize=style.SIZE, loc="upper left", bbox_to_anchor=(1.02, 1))
    style.set_title(axes, title)
    style.add_note(figure, origin(history.tier, "Sampled"))
    peaks = f"in flight {queues.unacknowledged.peak:,} bytes at most"
    return Picture(figure, f"{title}. {peaks}, window {queues.send_window.peak:,} at most.")
