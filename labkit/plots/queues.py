"""Queues of a listener over time: how many connections wait, and how many may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from labkit import checks
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SIZE,
    SKY,
    VERMILION,
    add_note,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from labkit.queues.history import History, ListenerHistory, Steps

COLOURS = (BLUE, GREEN, PURPLE, SKY, BLACK)
DASHES = ("-", "--", ":")
MOST = 12  # listeners with a line and a name of their own
FAR = 6  # a line that is so many times higher than what waited would press the rest flat


def plot_queues(
    history: History,
    title: str | None = None,
    *,
    prediction: float | None = None,
    labels: Mapping[int, str] | None = None,
) -> Picture:
    """The SYN queue and the accept queue of a port, over time.

    Several listeners of one port (SO_REUSEPORT) have a line each.

    Args:
        history: from ``watch.history`` or ``watch.so_far()``.
        title: what was found; by default said from the numbers.
        prediction: how many connections the learner said would wait at most, None for no guess; marked at the right.
        labels: what listeners are called, by inode, ``os.fstat(sock.fileno()).st_ino``; by default they are numbered.

    Returns:
        the picture; its alternative text has the peaks, the limit and the kernel's counters that moved.

    Raises:
        InvalidValue: a prediction that is no number of connections.
    """
    checks.optional(checks.text, "title", title, "A full queue")
    prediction = checks.optional(checks.number, "prediction", prediction, 0, 1e6, unit="connections, or None")
    names = _names(history, labels or {})
    figure, axes = new_figure(max(3.2, 1.7 + 0.2 * min(len(names), MOST + 1)))
    end_s = max(history.duration_s, 1e-3)
    handles: list[Artist] = [*_draw_accept_queues(axes, history, names, end_s)]
    handles += _draw(axes, history.syn_queue, end_s, ORANGE, "SYN queue", style="--" if len(names) < 2 else "-")
    peaks = [listener.accept_queue.peak for listener in history.listeners.values()]
    highest = max([*peaks, history.syn_queue.peak, 3, prediction or 0])
    rooms = {_room(listener) for listener in history.listeners.values()}
    for room in sorted(rooms):
        each = " each" if len(names) > 1 and len(rooms) == 1 else ""
        label = f"room for {room}{each}: limit {room - 1} + 1"
        if room <= FAR * highest:
            handles.append(axes.axhline(room, color=INK, linestyle=(0, (6, 4)), linewidth=1, label=label))
        else:
            handles.append(Line2D([], [], linestyle="none", label=f"{label},\nfar above"))
    if prediction is not None:
        axes.axhline(prediction, color=VERMILION, linestyle=":", linewidth=1)
        mark = axes.scatter([end_s], [prediction], marker="D", s=46, facecolor="white", edgecolor=VERMILION)
        mark.set(linewidth=1.8, zorder=5, clip_on=False, label="you said")
        handles.append(mark)
    top = 1.12 * max([highest, *(room for room in rooms if room <= FAR * highest)])
    axes.set_xlim(0, end_s)
    axes.set_ylim(-0.03 * top, top)  # what is empty all the time is a line above the axis
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("seconds", fontsize=SIZE, color=INK)
    axes.set_ylabel("connections that wait", fontsize=SIZE, color=INK)
    # Beside the axes: there it hides no step.
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=SIZE, frameon=False)
    title = title or _finding(history)
    set_title(axes, title)
    add_note(figure, f"{origin(history.tier, 'Sampled')} {history.rate_hz:.0f} looks a second at port {history.port}.")
    return Picture(figure, f"{title}. {_in_words(history, names, prediction)}")


def _names(history: History, labels: Mapping[int, str]) -> dict[int, str]:
    if len(history.listeners) == 1:
        (inode,) = history.listeners
        return {inode: labels.get(inode, "accept queue")}
    return {inode: labels.get(inode, f"listener {place}") for place, inode in enumerate(history.listeners, 1)}


def _room(listener: ListenerHistory) -> int:
    """How many connections may wait. A listener that was closed has the limit 0 since: what it had before counts."""
    return 1 + next((limit for limit in reversed(listener.limit.values) if limit), 0)


def _draw_accept_queues(axes: Axes, history: History, names: Mapping[int, str], end_s: float) -> list[Line2D]:
    deepest = sorted(names, key=lambda inode: -history.listeners[inode].accept_queue.peak)[:MOST]
    handles: list[Line2D] = []
    others: list[Line2D] = []
    for inode, name in names.items():
        place, steps = len(handles), history.listeners[inode].accept_queue
        if inode not in deepest:
            others = _draw(axes, steps, end_s, GREY, f"the other {len(names) - MOST}", width=0.8) or others
            continue
        colour, style = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS)]
        # The first is the widest: of lines that lie on each other all are seen.
        width = 1.4 + 0.8 * max(0, min(len(names), 5) - 1 - place) if len(names) > 1 else 2.2
        handles += _draw(axes, steps, end_s, colour, name, width, style)
    return handles + others


def _draw(
    axes: Axes, steps: Steps, end_s: float, colour: str, label: str, width: float = 1.6, style: str = "-"
) -> list[Line2D]:
    if not steps.values:
        return []
    times, values = [*steps.times_s, end_s], [*steps.values, steps.values[-1]]
    return axes.step(times, values, where="post", color=colour, linewidth=width, linestyle=style, label=label)


def _finding(history: History) -> str:
    if not history.listeners:
        return f"Nobody listened on port {history.port}"
    peaks = sorted((listener.accept_queue.peak for listener in history.listeners.values()), reverse=True)
    full = [each for each in history.listeners.values() if each.accept_queue.peak >= _room(each)]
    refused = history.counters.get("TcpExtListenOverflows", 0)
    if len(peaks) > 1:
        if not peaks[0]:
            return f"None of {len(peaks)} listeners let a connection wait"
        if full:
            return f"{len(full)} of {len(peaks)} accept queues filled up: the deepest held {_connections(peaks[0])}"
        return f"Of {len(peaks)} accept queues the deepest held {_connections(peaks[0])}, the emptiest {peaks[-1]}"
    if full and refused:
        times = "once" if refused == 1 else f"{refused} times"
        return f"{_connections(peaks[0])} filled the accept queue: {times} there was no room for one more"
    if full:
        return f"{_connections(peaks[0])} filled the accept queue"
    if peaks[0]:
        return f"At most {_connections(peaks[0])} waited to be accepted"
    return "No connection had to wait to be accepted"


def _connections(count: float) -> str:
    return f"{count:g} connection{'' if count == 1 else 's'}"


def _in_words(history: History, names: Mapping[int, str], prediction: float | None) -> str:
    peaks = f"Accept queue {history.accept_queue.peak}, SYN queue {history.syn_queue.peak} at most"
    if len(names) > 1:
        each = (f"{name} {history.listeners[inode].accept_queue.peak}" for inode, name in names.items())
        peaks += f", by listener: {', '.join(each)}"
    limits = [str(_room(listener) - 1) for listener in history.listeners.values()]
    limit = f" Limit {limits[0] if len(set(limits)) == 1 else ', '.join(limits)}." if limits else ""
    said = "" if prediction is None else f" You said {_connections(prediction)}."
    moved = ", ".join(f"{name} {count}" for name, count in history.counters.items() if name.startswith("TcpExt"))
    return f"{peaks}, in {history.duration_s:.1f} s.{limit}{said} Counters that moved: {moved or 'none'}."
