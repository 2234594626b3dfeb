"""A ladder as a picture: hosts are lines, time runs down, a packet is an arrow from its sending to its arrival."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from labkit import checks
from labkit.network.tiers import LOOPBACK, origin
from labkit.plots.picture import Picture
from labkit.plots.style import COLOURS, GREY, INK, SIZE, VERMILION, add_note, new_figure, set_title

if TYPE_CHECKING:
    from labkit.capture.ladder import Ladder, Row

MAX_ROWS = 60
LINE = 0.21  # inches of height for one line of text
WRAP = 62  # letters in a line of a label
ENCRYPTED = {"early", "handshake", "application", "unknown"}  # anybody can compute Initial keys: they hide nothing


def plot_ladder(ladder: Ladder, title: str | None = None, rtt_ms: float | None = None) -> Picture:
    """Draw a ladder.

    Time runs down, but is stretched where packets crowd and shortened where nothing happens, so that each can be
    read; the times stand at the edges.

    Args:
        ladder: its rows and hosts, from ``capture.ladder()``. Of a long one the first 60 rows are drawn.
        title: what it shows; by default how many packets in how many milliseconds.
        rtt_ms: write times in round trips of this many milliseconds as well.

    Returns:
        the picture; its alternative text is the ladder in text.
    """
    checks.optional(checks.text, "title", title, "A handshake")
    checks.optional(checks.number, "rtt_ms", rtt_ms, 0.001, 60_000, unit="milliseconds")
    rows = ladder.rows[:MAX_ROWS]
    heights = _heights(rows)
    bottom = max(heights.values(), default=0) + 1.2
    figure, axes = new_figure(1.1 + LINE * bottom)
    axes.set_axis_off()
    columns = {host: float(place) for place, host in enumerate(ladder.hosts)}
    for host, x in columns.items():
        axes.plot([x, x], [-0.9, bottom], color=INK, linewidth=1.2, zorder=1)
        axes.text(x, -1.3, host, ha="center", va="bottom", fontsize=SIZE + 1, weight="bold", color=INK)
    for row in rows:
        if row.source in columns and row.destination in columns:
            _draw_row(axes, row, columns, heights, rtt_ms)
    axes.set_xlim(-0.33, max(columns.values(), default=0) + 0.33)
    axes.set_ylim(bottom, -2.2)
    if title is None:
        last = max((row.received_ms or row.sent_ms for row in rows), default=0.0)
        title = f"{len(ladder.rows)} packets in {last:.1f} ms"
    set_title(axes, title)
    notes = []
    if ladder.hidden:
        notes.append(f"Bare acknowledgments left out: {ladder.hidden}.")
    if len(ladder.rows) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(ladder.rows)} packets are drawn.")
    if any(row.level in ENCRYPTED for row in rows):
        notes.append("Italics: encrypted on the wire, at least in part, and named with the session's own keys.")
    if ladder.missing:
        notes.append(f"MISSING: {ladder.missing} frames, which the kernel had no room for.")
    notes.append("Not to scale where packets crowd.")
    if ladder.tier:
        if ladder.tier == LOOPBACK and any(row.kind == "tcp" for row in rows):
            notes.insert(0, "TCP's SYN, ACK and FIN are the relay's notation for opening and closing.")
        notes.insert(0, origin(ladder.tier))
    add_note(figure, textwrap.fill(" ".join(notes), 125))
    return Picture(figure, f"{title}. Time–sequence diagram:\n{ladder}")


def _heights(rows: tuple[Row, ...]) -> dict[float, float]:
    """Where each moment stands, in lines: far enough apart to read, in order, near to scale in between."""
    need: dict[float, float] = {}  # how much room must come before this moment
    for row in rows:
        lines = sum(len(textwrap.wrap(part, WRAP)) for part in row.label)
        need[row.sent_ms] = need.get(row.sent_ms, 0.0) + max(1, lines) * 1.05
        if row.received_ms is not None:
            need.setdefault(row.received_ms, 0.0)
    moments = sorted(need)
    span = (moments[-1] - moments[0]) if len(moments) > 1 else 1.0
    lines_per_ms = 2.2 * len(rows) / max(span, 1e-6)
    heights, at, before = {}, max(0.0, need[moments[0]] - 1.05) if moments else 0.0, None
    for moment in moments:
        if before is not None:
            at += max(need[moment], min(2.5, lines_per_ms * (moment - before)), 0.15)
        heights[moment] = at
        before = moment
    return heights


def _draw_row(
    axes: Axes, row: Row, columns: dict[str, float], heights: dict[float, float], rtt_ms: float | None
) -> None:
    x0, x1 = columns[row.source], columns[row.destination]
    y0 = heights[row.sent_ms]
    lost = row.lost or row.received_ms is None
    y1 = y0 + 1.0 if row.received_ms is None else heights[row.received_ms]
    if lost:
        x1, y1 = x0 + 0.5 * (x1 - x0), y0 + 0.5 * (y1 - y0)
    colour = VERMILION if lost else COLOURS.get(row.kind, GREY)
    axes.annotate(
        "",
        xy=(x1, y1),
        xytext=(x0, y0),
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0},
        zorder=2,
    )
    if lost:
        axes.plot(x1, y1, marker="x", color=VERMILION, markersize=9, markeredgewidth=2.5, zorder=3)
    text = "\n".join(line for part in row.label for line in textwrap.wrap(part, WRAP)) + (" — lost" if lost else "")
    # Written beside the start of its arrow, where no other arrow of the same direction begins.
    to_right = x1 > x0
    axes.text(
        x0 + (0.03 if to_right else -0.03),
        y0 - 0.12,
        text,
        ha="left" if to_right else "right",
        va="bottom",
        fontsize=SIZE - 0.5,
        fontstyle="italic" if row.level in ENCRYPTED else "normal",
        color=INK,
        zorder=4,
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )
    edge = -0.03 if to_right else 0.03
    axes.text(
        x0 + edge,
        y0,
        _time(row.sent_ms, rtt_ms),
        ha="right" if to_right else "left",
        va="center",
        fontsize=SIZE - 1.5,
        color=GREY,
    )


def _time(milliseconds: float, rtt_ms: float | None) -> str:
    if rtt_ms:
        return f"{milliseconds / rtt_ms:.2f} RTT"
    return f"{milliseconds:.1f} ms"
