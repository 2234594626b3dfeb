"""Where the bytes of one connection wait, over time: unsent, unacknowledged, unread."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import InvalidValue
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import BLACK, GREEN, GREY, INK, ORANGE, SIZE, SKY, add_note, new_figure, set_title

if TYPE_CHECKING:
    from labkit.queues.history import ConnectionHistory, History, Steps

KIB = 1024
FAR = 3  # a window that is so many times higher than what waited would press the rest flat
# From the application that reads upwards to the one that writes.
AREAS = {
    "unread": ("unread, at the receiver", GREEN),
    "unacknowledged": ("sent, not acknowledged", ORANGE),
    "unsent": ("not sent yet", SKY),
}


def plot_buffers(
    sender: History, receiver: History | None = None, client: str | None = None, title: str | None = None
) -> Picture:
    """Where the bytes of one connection wait, over time, from the application that writes to the one that reads.

    Stacked from below: unread in the receiver's receive queue, sent and not acknowledged, not sent yet. The last two
    are the sender's send queue. The line is the peer's receive window, as the sender knows it.

    Args:
        sender: of the host that sends, sampled with ``lab.watch(port, host, connections=True)``.
        receiver: of the other host, sampled at the same time; without it the receive queue is not drawn.
        client: which connection: address and port of its client, a key of ``sender.connections``. By default the one
            of which the most bytes waited.
        title: what was found; by default said from the numbers.

    Returns:
        the picture; its alternative text has the peaks and for how long the window was closed.

    Raises:
        InvalidValue: a connection that was not seen.
    """
    client = _client(sender, receiver, client)
    figure, axes = new_figure(3.6)
    start_ns = min(history.started_ns for history in (sender, receiver) if history)
    ends_s = [(history.started_ns - start_ns) / 1e9 + history.duration_s for history in (sender, receiver) if history]
    end_s = max([*ends_s, 1e-3])
    connection = sender.connections.get(client)
    other = receiver.connections.get(client) if receiver else None
    columns: dict[str, tuple[Steps, float]] = {}
    if receiver and other:
        columns["unread"] = other.receive_queue, (receiver.started_ns - start_ns) / 1e9
    late_s = (sender.started_ns - start_ns) / 1e9
    if connection:
        for name in ("unacknowledged", "unsent", "send_window", "cwnd"):
            columns[name] = getattr(connection, name), late_s
    times = np.unique([0.0, end_s, *(t + late for steps, late in columns.values() for t in steps.times_s)])
    series = {name: _sample(steps, late, times) for name, (steps, late) in columns.items()}
    areas = [area for area in AREAS if area in series]
    if areas:
        axes.stackplot(
            times,
            *(series[area] / KIB for area in areas),
            labels=[AREAS[area][0] for area in areas],
            colors=[AREAS[area][1] for area in areas],
            step="post",
            linewidth=0,
        )
    stacked = sum((series[area] for area in areas), np.zeros(len(times)))
    axes.plot(times, stacked / KIB, drawstyle="steps-post", color=INK, linewidth=0.8)
    top = max(float(stacked.max()), KIB)
    closed_s = held = 0.0
    window = series.get("send_window", np.zeros(len(times)))
    told = bool(connection and connection.send_window.peak)  # all 0 on kernels that do not tell it
    if told:
        alive = series["cwnd"] > 0
        closed = alive & (window == 0)
        closed_s = float(np.diff(times) @ closed[:-1])
        held = float(((series["unsent"] + series["unacknowledged"]) * closed).max())
        label = "peer’s receive window"
        if window.max() > FAR * top:
            label += f",\nup to {window.max() / KIB:.0f} KiB"
        top = max(top, min(float(window.max()), FAR * top))
        axes.plot(
            times, np.where(alive, window, np.nan) / KIB, drawstyle="steps-post", color=BLACK, linewidth=1.6,
            linestyle="--", label=label,
        )  # fmt: skip
        if closed_s:
            spans = [(begin, end - begin) for begin, end, shut in zip(times, times[1:], closed, strict=False) if shut]
            shade = axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), label="window closed")
            shade.set(facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, alpha=0.6, zorder=0)
    axes.set_xlim(0, end_s)
    axes.set_ylim(-0.02 * top / KIB, 1.08 * top / KIB)  # a window of 0 is a line above the axis
    axes.set_xlabel("seconds", fontsize=SIZE, color=INK)
    axes.set_ylabel("KiB that wait", fontsize=SIZE, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Beside the axes, where it hides nothing, and the areas in the order in which they lie.
        order = [*reversed(range(len(areas))), *range(len(areas), len(handles))]
        axes.legend(
            [handles[n] for n in order], [labels[n] for n in order],
            loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=SIZE, frameon=False,
        )  # fmt: skip
    peaks = {area: int(series[area].max()) for area in areas}
    title = title or _finding(client, float(stacked.max()), closed_s, held, told)
    set_title(axes, title)
    notes = [origin(sender.tier, "Sampled"), f"{sender.rate_hz:.0f} looks a second."]
    if "unread" in areas:
        notes.append(
            "A byte that has arrived counts twice until its acknowledgment is back: unread, and unacknowledged."
        )
    add_note(figure, textwrap.fill(" ".join(notes), 125))
    return Picture(figure, f"{title}. {_in_words(client, peaks, connection, closed_s, end_s)}")


def _client(sender: History, receiver: History | None, client: str | None) -> str:
    seen = {**sender.connections, **(receiver.connections if receiver else {})}
    if client is None:

        def most(key: str) -> int:
            here = sender.connections.get(key)
            there = receiver.connections.get(key) if receiver else None
            unread = there.receive_queue.peak if there else 0
            return unread + (here.unsent.peak + here.unacknowledged.peak if here else 0)

        return max(seen, key=most, default="")
    if client not in seen:
        raise InvalidValue(f"client={client!r}: of the connections that were seen, one of {_some(seen)}")
    return client


def _some(clients: Iterable[str]) -> str:
    names = sorted(clients)
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") or "none"


def _sample(steps: Steps, late_s: float, times: Any) -> Any:
    """The values at these times on the clock that both hosts share; 0 before the first."""
    at = np.searchsorted(np.asarray(steps.times_s) + late_s, times, side="right")
    return np.concatenate([[0], np.asarray(steps.values, dtype=float)])[at]


def _finding(client: str, most: float, closed_s: float, held: float, told: bool) -> str:
    if not client:
        return "No connection was seen"
    if closed_s:
        return f"The receiver’s window was closed for {closed_s:.2g} s: up to {held / KIB:.0f} KiB waited at the sender"
    never = ", and the receiver’s window never closed" if told else ""
    return f"Up to {most / KIB:.0f} KiB waited between the two applications{never}"


def _in_words(
    client: str, peaks: dict[str, int], connection: ConnectionHistory | None, closed_s: float, end_s: float
) -> str:
    if not client:
        return f"In {end_s:.1f} s."
    most = ", ".join(f"{AREAS[area][0]} {peak / KIB:.0f} KiB" for area, peak in peaks.items())
    if connection and connection.send_window.peak:
        peak = connection.send_window.peak / KIB
        window = f"The peer’s receive window: up to {peak:.0f} KiB, closed for {closed_s:.2f} s."
    else:
        window = "The kernel did not tell the peer’s receive window."
    return f"Connection of {client}, in {end_s:.1f} s, at most: {most}. {window}"
