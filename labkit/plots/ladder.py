"""A ladder as a picture: hosts are lines, time runs down, a packet is an arrow from its sending to its arrival."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

from labkit import checks
from labkit.capture.ladder import in_words
from labkit.network.tiers import LOOPBACK, origin
from labkit.plots.ladder_layout import Arrow, Placed, lay_out
from labkit.plots.picture import Picture
from labkit.plots.style import COLOURS, GREY, INK, SIZE, VERMILION, WIDTH_INCHES, add_note, new_figure, set_title

if TYPE_CHECKING:
    from labkit.capture.ladder import Ladder, Row

MAX_ROWS = 60
LINE = 0.21  # inches of height for one line of text
WRAP = 62  # letters in a line of a label, between two hosts
MARGIN = 0.33  # of a column, at both edges
LABEL_SIZE, TIME_SIZE = SIZE - 0.5, SIZE - 1.5
ENCRYPTED = {"early", "handshake", "application", "unknown"}  # anybody can compute Initial keys: they hide nothing


def plot_ladder(ladder: Ladder, title: str | None = None, rtt_ms: float | None = None) -> Picture:
    """Draw a ladder.

    Time runs down, but is stretched where packets crowd and shortened where nothing happens, so that each can be
    read. Beside the columns stand the times of sending and of arrival; a long wait is a break, with its length.

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
    columns = {host: float(place) for place, host in enumerate(ladder.hosts)}
    last = max(columns.values(), default=0.0)
    across = (last + 2 * MARGIN) / (WIDTH_INCHES * 72)  # columns a point

    def width(text: str, is_time: bool) -> float:
        return _points(text, TIME_SIZE if is_time else LABEL_SIZE) * across + 0.008

    drawn = replace(ladder, rows=rows)
    wrap = WRAP if last < 2 else max(20, int(WRAP / last))
    layout = lay_out(rows, columns, drawn.waits, wrap=wrap, width=width, time=partial(_time, rtt_ms=rtt_ms))
    bottom = layout.bottom + 1.2
    figure, axes = new_figure(1.1 + LINE * bottom)
    axes.set_axis_off()
    for host, x in columns.items():
        axes.plot([x, x], [-0.9, bottom], color=INK, linewidth=1.2, zorder=1)
        axes.text(x, -1.3, host, ha="center", va="bottom", fontsize=SIZE + 1, weight="bold", color=INK)
    for top, low, length_ms in layout.breaks:
        for x in columns.values():
            axes.plot([x, x], [top, low], color="white", linewidth=4, zorder=1.1)
            axes.plot([x, x], [top, low], color=INK, linewidth=1.6, linestyle=(0, (0.6, 2.4)), zorder=1.2)
        _write(axes, Placed(last / 2, (top + low) / 2, "center", in_words(length_ms)), "center", SIZE, GREY, "italic")
    for row, arrow in zip(rows, layout.arrows, strict=True):
        _draw_arrow(axes, row, arrow)
        for x in columns.values():
            if min(arrow.x0, arrow.x1) < x < max(arrow.x0, arrow.x1):  # it passes by this host, behind its line
                y = arrow.at(x)
                axes.plot([x, x], [y - 0.3, y + 0.3], color="white", linewidth=9, zorder=2.1, solid_capstyle="butt")
                axes.plot([x, x], [y - 0.32, y + 0.32], color=INK, linewidth=1.2, zorder=2.2)
    for row, label in zip(rows, layout.labels, strict=True):
        _write(axes, label, "bottom", LABEL_SIZE, INK, "italic" if row.level in ENCRYPTED else "normal")
    for each in layout.times:
        _write(axes, each, "center", TIME_SIZE, GREY, "normal")
    axes.set_xlim(-MARGIN, last + MARGIN)
    axes.set_ylim(bottom, -2.2)
    if title is None:
        last = max((row.received_ms or row.sent_ms for row in rows), default=0.0)
        title = f"{len(ladder.rows)} packets in {last:.1f} ms"
    set_title(axes, title)
    notes = []
    if ladder.hidden:
        notes.append(f"Bare acknowledgments left out: {ladder.hidden}.")
    if len(ladder.rows) > MAX_ROWS:
        notes.append(
            f"The first {MAX_ROWS} of {len(ladder.rows)} packets are drawn. Choose by connection, stream, between."
        )
    if ladder.left_out:
        notes.append(f"Packets that were not chosen: {ladder.left_out}.")
    if (roles := {row.role for row in rows}) & {"request", "response"}:
        said = [
            words for role, words in (("request", "Blue: requests"), ("response", "purple: responses")) if role in roles
        ]
        notes.append(f"{', '.join(said)[0].upper()}{', '.join(said)[1:]}.")
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
    return Picture(figure, f"{title}. Time–sequence diagram:\n{drawn}")


def _draw_arrow(axes: Axes, row: Row, arrow: Arrow) -> None:
    lost = row.lost or row.received_ms is None
    colour = VERMILION if lost else COLOURS.get(row.role, COLOURS.get(row.kind, GREY))
    axes.annotate(
        "",
        xy=(arrow.x1, arrow.y1),
        xytext=(arrow.x0, arrow.y0),
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0},
        zorder=2,
    )
    if lost:
        axes.plot(arrow.x1, arrow.y1, marker="x", color=VERMILION, markersize=9, markeredgewidth=2.5, zorder=3)


def _write(axes: Axes, placed: Placed, vertical: str, size: float, colour: str, style: str) -> None:
    axes.text(
        placed.x,
        placed.y,
        placed.text,
        ha=placed.align,
        va=vertical,
        fontsize=size,
        fontstyle=style,
        color=colour,
        zorder=4,
        # Where a text found no free place, it stands before what is in its way.
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
    )


@cache
def _points(text: str, size: float) -> float:
    """The width of a line of text, in points."""
    font = get_font(findfont(FontProperties()))
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64  # FreeType counts in 64ths


def _time(milliseconds: float, rtt_ms: float | None) -> str:
    if rtt_ms:
        return f"{milliseconds / rtt_ms:.2f} RTT"
    return f"{milliseconds:.1f} ms"
