"""A TCP connection over time, as its sender's kernel saw it: windows, what is in flight, round-trip time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit import checks
from labkit.errors import InvalidValue
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import BLUE, GREY, INK, ORANGE, SIZE, SKY, VERMILION, WIDTH_INCHES, add_note, set_title

if TYPE_CHECKING:
    from labkit.queues.history import History, Steps, TcpHistory


def plot_tcp(history: History, client: str | None = None, title: str | None = None) -> Picture:
    """Congestion window, slow start threshold and segments in flight over time, and below the round-trip time.

    Args:
        history: of the host that sends, sampled with ``lab.watch(port, host, tcp=True)``.
        client: which connection: address and port of its client, a key of ``history.tcp``. By default the one that had
            the most acknowledged.
        title: what was found; by default said from the numbers.

    Returns:
        the picture; its alternative text has the peaks and how many segments were sent again.

    Raises:
        InvalidValue: a connection that was not seen, or a history without any.
    """
    checks.optional(checks.text, "title", title, "One loss halves the window")
    client = _client(history, client)
    connection, end_s = history.tcp[client], max(history.duration_s, 1e-3)
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    windows, times = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for axes in (windows, times):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=SIZE, colors=INK)
    _draw(windows, connection.in_flight, end_s, SKY, "in flight", 1.2)
    _draw(windows, connection.cwnd, end_s, BLUE, "congestion window", 2.0)
    _draw(windows, connection.ssthresh, end_s, ORANGE, "slow start threshold", 1.4, gaps=True)
    repeated = _rises(connection.retransmissions)
    if repeated:
        windows.plot(
            repeated, [0] * len(repeated), "|", color=VERMILION, markersize=9, clip_on=False, label="sent again"
        )
    windows.set_ylabel("segments", fontsize=SIZE, color=INK)
    # A threshold that no window comes near would press the rest flat.
    windows.set_ylim(0, 1.1 * max(connection.cwnd.peak, connection.in_flight.peak, 3))
    _draw(times, connection.rtt_us, end_s, BLUE, "smoothed", 1.6, scale=1000, gaps=True)
    _draw(times, connection.min_rtt_us, end_s, GREY, "least so far", 1.2, scale=1000, gaps=True)
    times.set_ylim(bottom=0)
    times.set_xlim(0, end_s)
    times.set_ylabel("RTT, ms", fontsize=SIZE, color=INK)
    times.set_xlabel("seconds", fontsize=SIZE, color=INK)
    for axes in (windows, times):
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=SIZE, frameon=False)
    title = title or _finding(connection)
    set_title(windows, title)
    add_note(figure, f"{origin(history.tier, 'Sampled')} {history.rate_hz:.0f} looks a second at {client}.")
    return Picture(figure, f"{title}. {_in_words(client, connection)}")


def _client(history: History, client: str | None) -> str:
    if not history.tcp:
        raise InvalidValue(f"{history!r} has no TCP_INFO: sample with lab.watch(port, host, tcp=True)")
    if client is None:
        return max(history.tcp, key=lambda each: history.tcp[each].bytes_acked.peak)
    return checks.one_of("client", client, history.tcp)


def _draw(
    axes: Axes, steps: Steps, end_s: float, colour: str, label: str, width: float, *, scale: int = 1, gaps: bool = False
) -> None:
    """Steps as a line; with gaps where the value is 0, which then means that there is none."""
    values = [value / scale if value or not gaps else float("nan") for value in steps.values]
    if values:
        axes.step([*steps.times_s, end_s], [*values, values[-1]], where="post", color=colour, linewidth=width,
                  label=label)  # fmt: skip


def _rises(steps: Steps) -> list[float]:
    """When a counter went up."""
    pairs = list(zip(steps.times_s, steps.values, strict=True))
    return [time_s for (_, before), (time_s, value) in zip([(0.0, 0), *pairs], pairs, strict=False) if value > before]


def _finding(connection: TcpHistory) -> str:
    again = connection.retransmissions.peak
    if not again:
        return f"The congestion window grew to {connection.cwnd.peak} segments, and nothing was sent again"
    segments = "1 segment" if again == 1 else f"{again} segments"
    return f"{segments} sent again; the congestion window reached {connection.cwnd.peak}"


def _in_words(client: str, connection: TcpHistory) -> str:
    return (
        f"Connection of {client}: congestion window {connection.cwnd.peak} segments at most, in flight "
        f"{connection.in_flight.peak} at most, threshold {connection.ssthresh.last} at the end, RTT up to "
        f"{connection.rtt_us.peak / 1000:.1f} ms, {connection.retransmissions.peak} sent again."
    )
