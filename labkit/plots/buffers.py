"""Where the bytes of one connection wait, over time: unsent, unacknowledged, unread."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from labkit import checks
from labkit.errors import InvalidValue
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import BLACK, GREEN, GREY, INK, ORANGE, SIZE, SKY, add_note, new_figure, set_title

if TYPE_CHECKING:
    from labkit.queues.history import History, Steps

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
    checks.optional(checks.text, "title", title, "A closed window")
    client = _client(sender, receiver, client)
    waiting = _Waiting(sender, receiver, client)
    figure, axes = new_figure(3.6)
    top = _draw_areas(axes, waiting)
    if waiting.told:
        top = _draw_window(axes, waiting, top)
    axes.set_xlim(0, waiting.end_s)
    axes.set_ylim(-0.02 * top / KIB, 1.08 * top / KIB)  # a window of 0 is a line above the axis
    axes.set_xlabel("seconds", fontsize=SIZE, color=INK)
    axes.set_ylabel("KiB that wait", fontsize=SIZE, color=INK)
    _add_legend(axes, len(waiting.areas))
    title = title or _finding(client, waiting)
    set_title(axes, title)
    notes = [origin(sender.tier, "Sampled"), f"{sender.rate_hz:.0f} looks a second."]
    if "unread" in waiting.areas:
        notes.append(
            "A byte that has arrived counts twice until its acknowledgment is back: unread, and unacknowledged."
        )
    add_note(figure, textwrap.fill(" ".join(notes), 125))
    return Picture(figure, f"{title}. {_in_words(client, waiting)}")


class _Waiting:
    """What waits of one connection, by area, at every moment at which something changes on one of the hosts.

    Attributes:
        times: seconds since the first of the two looked for the first time.
        areas: bytes at these times, by area, those that were sampled.
        window: the peer's receive window, bytes; ``told`` is False on kernels that do not tell it, and then it is 0.
        alive, closed: whether the connection was there; whether its window was closed.
    """

    def __init__(self, sender: History, receiver: History | None, client: str) -> None:
        watched = [history for history in (sender, receiver) if history]
        start_ns = min(history.started_ns for history in watched)
        late_s = [(history.started_ns - start_ns) / 1e9 for history in watched]
        self.end_s = max(1e-3, *(late + history.duration_s for late, history in zip(late_s, watched, strict=True)))
        columns: dict[str, tuple[Steps, float]] = {}
        if receiver and (other := receiver.connections.get(client)):
            columns["unread"] = other.receive_queue, late_s[1]
        if connection := sender.connections.get(client):
            for name in ("unacknowledged", "unsent", "send_window", "cwnd"):
                columns[name] = getattr(connection, name), late_s[0]
        changes = [moment + late for steps, late in columns.values() for moment in steps.times_s]
        self.times = np.unique([0.0, self.end_s, *changes])
        series = {name: _sample(steps, late, self.times) for name, (steps, late) in columns.items()}
        nothing = np.zeros(len(self.times))
        self.areas = {area: series[area] for area in AREAS if area in series}
        self.stacked = sum(self.areas.values(), nothing)
        self.window = series.get("send_window", nothing)
        self.told = bool(connection and connection.send_window.peak)
        self.alive = series.get("cwnd", nothing) > 0
        self.closed = self.alive & (self.window == 0) & self.told
        self.closed_s = float(np.diff(self.times) @ self.closed[:-1])

    @property
    def held(self) -> float:
        """The most bytes that waited at the sender while the window was closed."""
        return float(((self.areas["unsent"] + self.areas["unacknowledged"]) * self.closed).max())


def _draw_areas(axes: Axes, waiting: _Waiting) -> float:
    """Returns the height of what waits, at least 1 KiB."""
    if waiting.areas:
        axes.stackplot(
            waiting.times,
            *(area / KIB for area in waiting.areas.values()),
            labels=[AREAS[area][0] for area in waiting.areas],
            colors=[AREAS[area][1] for area in waiting.areas],
            step="post",
            linewidth=0,
        )
    axes.plot(waiting.times, waiting.stacked / KIB, drawstyle="steps-post", color=INK, linewidth=0.8)
    return max(float(waiting.stacked.max()), KIB)


def _draw_window(axes: Axes, waiting: _Waiting, top: float) -> float:
    """Returns the height of the picture: a window far above what waits is not drawn to its full height."""
    times, highest = waiting.times, float(waiting.window.max())
    far = f",\nup to {highest / KIB:.0f} KiB" if highest > FAR * top else ""
    axes.plot(
        times, np.where(waiting.alive, waiting.window, np.nan) / KIB, drawstyle="steps-post", color=BLACK,
        linewidth=1.6, linestyle="--", label=f"peer’s receive window{far}",
    )  # fmt: skip
    if waiting.closed_s:
        moments = zip(times, times[1:], waiting.closed, strict=False)
        spans = [(begin, end - begin) for begin, end, shut in moments if shut]
        shade = axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), label="window closed")
        shade.set(facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, alpha=0.6, zorder=0)
    return max(top, min(highest, FAR * top))


def _add_legend(axes: Axes, areas: int) -> None:
    """Beside the axes, where it hides nothing, and the areas in the order in which they lie."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        order = [*reversed(range(areas)), *range(areas, len(handles))]
        axes.legend(
            [handles[n] for n in order], [labels[n] for n in order],
            loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=SIZE, frameon=False,
        )  # fmt: skip


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


def _finding(client: str, waiting: _Waiting) -> str:
    if not client:
        return "No connection was seen"
    if waiting.closed_s:
        return (
            f"The receiver’s window was closed for {waiting.closed_s:.2g} s: "
            f"up to {waiting.held / KIB:.0f} KiB waited at the sender"
        )
    never = ", and the receiver’s window never closed" if waiting.told else ""
    return f"Up to {float(waiting.stacked.max()) / KIB:.0f} KiB waited between the two applications{never}"


def _in_words(client: str, waiting: _Waiting) -> str:
    if not client:
        return f"In {waiting.end_s:.1f} s."
    most = ", ".join(f"{AREAS[area][0]} {int(sizes.max()) / KIB:.0f} KiB" for area, sizes in waiting.areas.items())
    window = "The kernel did not tell the peer’s receive window."
    if waiting.told:
        highest = waiting.window.max() / KIB
        window = f"The peer’s receive window: up to {highest:.0f} KiB, closed for {waiting.closed_s:.2f} s."
    return f"Connection of {client}, in {waiting.end_s:.1f} s, at most: {most}. {window}"
