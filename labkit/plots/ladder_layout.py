"""Where the parts of a ladder's picture stand: moments, breaks, arrows, times and labels. Plain geometry.

Across, a column is at 0, 1, 2 …; down, the unit is a line of text. Time runs down, stretched where packets crowd and
shortened where nothing happens. A label stands above its own arrow, where no other arrow, label, time or host is in
its way; where there is no such place, its packet gets more room, and all is laid out again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

LABEL_LINE, TIME_HEIGHT = 0.8, 0.62  # heights of a label's line and of a time
ASIDE = 0.03  # from a column to a text beside it
BREAK = 2.4  # height of a long wait
ALONG = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)  # where a label may stand on its arrow
ROOMY = 30  # with more packets than that, gaps are smaller, and arrivals are written where there is room
ROUNDS, MORE = 8, 0.7  # how often it is laid out, and how much room a packet gets each time


class Row(Protocol):
    """What is asked of a ladder's row."""

    @property
    def sent_ms(self) -> float: ...
    @property
    def received_ms(self) -> float | None: ...
    @property
    def source(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def label(self) -> tuple[str, ...]: ...
    @property
    def lost(self) -> bool: ...


class Box(NamedTuple):
    """A text's place."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether both have a place in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class Arrow(NamedTuple):
    """From its sending to its arrival; of a lost packet, to where it was lost."""

    x0: float
    y0: float
    x1: float
    y1: float

    def at(self, x: float) -> float:
        """Its height at a place between its ends."""
        return self.y0 if self.x1 == self.x0 else self.y0 + (self.y1 - self.y0) * (x - self.x0) / (self.x1 - self.x0)

    def crosses(self, box: Box) -> bool:
        """Whether it goes through a text."""
        left, right = max(min(self.x0, self.x1), box.left), min(max(self.x0, self.x1), box.right)
        if left >= right:
            return False
        heights = self.at(left), self.at(right)
        return max(heights) > box.top and min(heights) < box.bottom


class Placed(NamedTuple):
    """A text beside a column."""

    x: float
    y: float  # of its middle; of a label, its lower edge
    align: str  # "left" or "right": which of its edges is at x
    text: str


@dataclass
class Layout:
    """What to draw.

    Attributes:
        arrows, labels: one for each row.
        times: of sending and of arrival, beside the columns; equal ones that follow each other stand once.
        breaks: top and bottom of each long wait, and its length in milliseconds.
        bottom: where the last moment is.
        crowded: rows whose label found no free place.
    """

    arrows: list[Arrow] = field(default_factory=list)
    labels: list[Placed] = field(default_factory=list)
    times: list[Placed] = field(default_factory=list)
    breaks: list[tuple[float, float, float]] = field(default_factory=list)
    bottom: float = 0.0
    crowded: list[int] = field(default_factory=list)


def lay_out(
    rows: Sequence[Row],
    columns: Mapping[str, float],
    waits: Mapping[float, float],
    *,
    wrap: int,
    width: Callable[[str, bool], float],
    time: Callable[[float], str],
) -> Layout:
    """Find a place for everything.

    Args:
        rows: of the ladder, with hosts that have columns.
        columns: host → place.
        waits: moment at which a long wait ended → its length, milliseconds.
        wrap: letters in a line of a label.
        width: of a line of text, in columns; of a time where the second argument is true.
        time: a moment in words.
    """
    more = [0.0] * len(rows)
    best: Layout | None = None
    for _ in range(ROUNDS):
        found = _one_round(rows, columns, waits, more, wrap, width, time)
        if best is not None and len(found.crowded) >= len(best.crowded) * 0.9 > 8:  # more room helps little here
            break
        if best is None or len(found.crowded) < len(best.crowded):
            best = found
        if not found.crowded:
            break
        for index in found.crowded:
            more[index] += MORE
    assert best is not None
    return best


def wrapped(row: Row, wrap: int) -> list[str]:
    """A label's lines."""
    return [line for part in row.label for line in textwrap.wrap(part, wrap)] or [""]


def _one_round(
    rows: Sequence[Row],
    columns: Mapping[str, float],
    waits: Mapping[float, float],
    more: Sequence[float],
    wrap: int,
    width: Callable[[str, bool], float],
    time: Callable[[float], str],
) -> Layout:
    layout = Layout()
    heights = _heights(layout, rows, columns, waits, more, wrap, time)
    for row in rows:
        x0, x1, y0 = columns[row.source], columns[row.destination], heights[row.sent_ms]
        y1 = y0 + 1.0 if row.received_ms is None else heights[row.received_ms]
        if row.lost or row.received_ms is None:
            x1, y1 = x0 + 0.5 * (x1 - x0), y0 + 0.5 * (y1 - y0)
        layout.arrows.append(Arrow(x0, y0, x1, y1))
    taken = [_box(each, TIME_HEIGHT, width(each.text, True), middle=True) for each in layout.times]
    last = max(columns.values(), default=0.0)
    taken += [Box(-1, top, last + 1, bottom) for top, bottom, _ in layout.breaks]
    lines = [Box(x - 0.004, -2, x + 0.004, layout.bottom + 9) for x in columns.values()]
    for index, (row, arrow) in enumerate(zip(rows, layout.arrows, strict=True)):
        text = wrapped(row, wrap)
        if row.lost or row.received_ms is None:
            text[-1] += " — lost"
        size = max(width(line, False) for line in text), LABEL_LINE * len(text)
        others = [other for number, other in enumerate(layout.arrows) if number != index]
        placed, free = _place("\n".join(text), size, arrow, others, [*taken, *lines])
        if not free:
            layout.crowded.append(index)
        layout.labels.append(placed)
        taken.append(_box(placed, size[1], size[0]))
    return layout


def _box(placed: Placed, height: float, width: float, middle: bool = False) -> Box:
    left = placed.x if placed.align == "left" else placed.x - width
    bottom = placed.y + height / 2 if middle else placed.y
    return Box(left, bottom - height, left + width, bottom)


def _place(
    text: str, size: tuple[float, float], arrow: Arrow, arrows: Sequence[Arrow], taken: Sequence[Box]
) -> tuple[Placed, bool]:
    """The first free place along an arrow, or the one nearest to its start; and whether it is free."""
    width, height = size
    sign = 1 if arrow.x1 >= arrow.x0 else -1
    room = max(abs(arrow.x1 - arrow.x0) - width - 2 * ASIDE, 0.0)
    places = []
    for part in ALONG if room else ALONG[:1]:
        x = arrow.x0 + sign * (ASIDE + part * room)
        placed = Placed(x, arrow.at(x) - 0.12, "left" if sign > 0 else "right", text)
        places.append(placed)
        box = _box(placed, height, width)
        if not any(box.meets(other) for other in taken) and not any(other.crosses(box) for other in arrows):
            return placed, True
    return places[0], False


def _times(
    rows: Sequence[Row], columns: Mapping[str, float], time: Callable[[float], str]
) -> dict[float, dict[tuple[float, str], bool]]:
    """The times to write at each moment: beside which column, and on which side; and whether it is one of sending.

    Of sending always; of arrival where the time next to it in the same place is not the same.
    """
    events: dict[tuple[float, str], list[tuple[float, bool]]] = {}  # column and side → moments, and whether of sending
    for row in rows:
        x0, x1 = columns[row.source], columns[row.destination]
        before, behind = ("right", "left") if x1 >= x0 else ("left", "right")
        events.setdefault((x0, before), []).append((row.sent_ms, True))
        if row.received_ms is not None and not row.lost:
            events.setdefault((x1, behind), []).append((row.received_ms, False))
    found: dict[float, dict[tuple[float, str], bool]] = {}
    for side, moments in events.items():
        moments.sort()
        sendings = {time(moment) for moment, sending in moments if sending}
        last = ""
        for moment, sending in moments:
            text = time(moment)
            if sending or (text != last and text not in sendings):
                found.setdefault(moment, {})[side] = sending
                last = text
    return found


def _heights(
    layout: Layout,
    rows: Sequence[Row],
    columns: Mapping[str, float],
    waits: Mapping[float, float],
    more: Sequence[float],
    wrap: int,
    time: Callable[[float], str],
) -> dict[float, float]:
    """Where each moment stands: far enough apart to read, in order, near to scale in between."""
    need: dict[float, float] = {}  # how much room must come before this moment
    sides = _times(rows, columns, time)
    for row, extra in zip(rows, more, strict=True):
        need[row.sent_ms] = need.get(row.sent_ms, 0.0) + len(wrapped(row, wrap)) * 1.05 + extra
        if row.received_ms is not None:
            need.setdefault(row.received_ms, 0.0)
    moments = sorted(need)
    waited = sum(waits.get(moment, 0.0) for moment in moments)
    span = (moments[-1] - moments[0] - waited) if len(moments) > 1 else 1.0
    lines_per_ms = 2.2 * len(rows) / max(span, 1e-6)
    heights: dict[float, float] = {}
    written: dict[tuple[float, str], Placed] = {}  # the last time beside a column
    widest = 2.5 if len(rows) <= ROOMY else 1.5
    at = max(0.0, need[moments[0]] - 1.05) if moments else 0.0
    before_ms: float | None = None
    for moment in moments:
        if before_ms is not None:
            if moment in waits:
                layout.breaks.append((at + 0.7, at + BREAK - 0.2, waits[moment]))
                at += BREAK + need[moment]
            else:
                at += max(need[moment], min(widest, lines_per_ms * (moment - before_ms)), 0.15)
        beside = dict(sides.get(moment, {}))
        for side, sending in list(beside.items()):
            free = written[side].y + TIME_HEIGHT + 0.04 if side in written else at
            if free > at and not sending and len(rows) > ROOMY:
                del beside[side]
            else:
                at = max(at, free)
        heights[moment] = at
        for x, align in beside:
            placed = Placed(x + (ASIDE if align == "left" else -ASIDE), at, align, time(moment))
            written[x, align] = placed
            layout.times.append(placed)
        before_ms = moment
    layout.bottom = at
    return heights
