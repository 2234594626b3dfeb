"""Servers under load side by side: throughput, latency, accept queue, and what their threads did."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from labkit.errors import InvalidValue
from labkit.load.load import LIMIT
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SIZE,
    SKY,
    VERMILION,
    WIDTH_INCHES,
    add_note,
    set_title,
)

if TYPE_CHECKING:
    from book.execution.trial import Trial
    from labkit.load.load import Load
    from labkit.queues.run_queue import ThreadTimes

MOST = 6
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
MARKERS = ("o", "s", "^", "D", "v", "P")
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
ALONE = 12  # so many threads of a single trial have a bar each
IDLE = 0.5  # percent of a core: threads that did less have no bar
SMALL = SIZE - 1


@dataclass(frozen=True)
class Bar:
    """A line of the CPU panel: a thread, or all threads of a role, in percent of one core."""

    name: str
    running: tuple[float, ...]
    waiting: tuple[float, ...]

    @property
    def words(self) -> str:
        return f"{sum(self.running):.0f} + {sum(self.waiting):.0f}"


def plot_trials(trials: Sequence[Trial], title: str | None = None) -> Picture:
    """One server under load, or up to six side by side.

    Four panels: requests a second with the errors; latency at percentiles; the accept queue over time; how much CPU
    the threads used and how long they waited for one. Threads with the same name but for a number are one role and
    lie in one bar; those of a single trial have a bar each, if they are few.

    Args:
        trials: from ``trial()``, one to six. A colour and a marker each, the same in all panels.
        title: what was found; by default which one completed the most requests a second.

    Returns:
        the picture; its alternative text has the numbers of all panels.

    Raises:
        InvalidValue: more than six.
    """
    if len(trials) > MOST:
        raise InvalidValue(f"{len(trials)} trials: give at most {MOST}, more could not be read")
    bars = [_bars(each, alone=len(trials) == 1) for each in trials]
    rows = sum(len(each) + (len(trials) > 1) for each in bars)
    failed = any(_errors(each.load) for each in trials)
    above = max(2.3, 0.9 + (0.62 if failed else 0.46) * len(trials))
    below = max(2.0, 0.75 + 0.72 * len(trials), 0.8 + 0.21 * rows)
    figure = Figure(figsize=(WIDTH_INCHES, 0.7 + above + below), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[above, below])
    _draw_throughput(_axes(figure, grid[0, 0]), trials, failed)
    _draw_latency(_axes(figure, grid[0, 1]), trials)
    _draw_accept_queues(figure, grid[1, 0], trials)
    _draw_threads(_axes(figure, grid[1, 1]), trials, bars)
    title = title or _finding(trials)
    set_title(figure.axes[0], textwrap.fill(title, 96))
    add_note(figure, textwrap.fill(_small_print(trials), 125))
    words = " ".join(_in_words(each, its_bars) for each, its_bars in zip(trials, bars, strict=True))
    return Picture(figure, f"{title}. {words}")


def _axes(figure: Figure, place: SubplotSpec) -> Axes:
    axes = figure.add_subplot(place)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=SMALL, colors=INK)
    return axes


def _draw_throughput(axes: Axes, trials: Sequence[Trial], failed: bool) -> None:
    """The panel which is the legend of the others, too."""
    most = max([each.load.throughput for each in trials], default=0.0) or 1.0
    for place, each in enumerate(trials):
        rate = each.load.throughput
        axes.barh(place, rate, 0.3, color=COLOURS[place])
        axes.plot(rate, place, MARKERS[place], color=COLOURS[place], markersize=8, markeredgecolor="white")
        axes.annotate(
            f"{rate:.0f}", (rate, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=SIZE
        )
        axes.annotate(
            each.name, (0, place - 0.2), xytext=(1, 1), textcoords="offset points", va="bottom", fontsize=SIZE
        )
        if wrong := _errors(each.load):
            axes.annotate(
                textwrap.shorten(wrong, 58, placeholder=" …"), (0, place + 0.18), xytext=(1, 0),
                textcoords="offset points", va="top", fontsize=SMALL, color=VERMILION,
            )  # fmt: skip
    axes.set_xlim(0, 1.18 * most)
    axes.set_ylim(max(len(trials), 2) - (0.45 if failed else 0.7), -0.65)  # a single bar is no block
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("requests completed a second", fontsize=SMALL)


def _draw_latency(axes: Axes, trials: Sequence[Trial]) -> None:
    for place, each in enumerate(trials):
        values = [each.load.percentile_ms(p) for p in PERCENTILES.values()]
        axes.plot(
            range(len(values)), values, marker=MARKERS[place], color=COLOURS[place], linewidth=1.5, markersize=6,
            markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
        if len(trials) == 1:
            for x, value in enumerate(values):
                if not math.isnan(value):
                    axes.annotate(
                        f"{value:.3g}", (x, value), xytext=(-3, 5), textcoords="offset points", ha="right", va="bottom",
                        fontsize=SMALL,
                    )  # fmt: skip  # above on the left: percentiles never fall
    axes.set_xticks(range(len(PERCENTILES)), list(PERCENTILES))
    axes.set_xlim(-0.7 if len(trials) == 1 else -0.35, len(PERCENTILES) - 0.65)
    if any(each.load.completed for each in trials):  # a logarithmic scale of nothing is an error
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.margins(y=0.22)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("latency at percentiles, ms", fontsize=SMALL)


def _draw_accept_queues(figure: Figure, place: SubplotSpec, trials: Sequence[Trial]) -> None:
    """A strip for each trial: six queues in one would be one tangle."""
    strips = place.subgridspec(max(1, len(trials)), 1)
    top = 1.15 * max([each.history.accept_queue.peak for each in trials], default=0) or 1.0
    end_s = max([each.history.duration_s for each in trials], default=0.0) or 1.0
    axes = None
    for row, each in enumerate(trials):
        axes = _axes(figure, strips[row])
        steps = each.history.accept_queue
        if steps.values:
            times, values = [*steps.times_s, each.history.duration_s], [*steps.values, steps.last]
            axes.step(times, values, where="post", color=COLOURS[row], linewidth=1.4)
        axes.set_xlim(0, end_s)
        axes.set_ylim(-0.05 * top, top)
        axes.yaxis.set_major_locator(MaxNLocator(2 if len(trials) > 1 else 5, integer=True))
        if len(trials) > 1:
            peak = f"{textwrap.shorten(each.name, 38, placeholder=' …')}: {steps.peak} at most"
        else:
            peak = f"{steps.peak} at most"
        axes.set_title(peak, fontsize=SMALL, loc="left", color=INK, pad=2)
        axes.tick_params(labelbottom=row == len(trials) - 1)
    if axes:
        axes.set_xlabel("connections in the accept queue, over seconds", fontsize=SMALL)


def _draw_threads(axes: Axes, trials: Sequence[Trial], bars: Sequence[Sequence[Bar]]) -> None:
    at, ticks, names = 0.0, [], []
    most = max((sum(bar.running) + sum(bar.waiting) for its_bars in bars for bar in its_bars), default=0.0) or 1.0
    for place, (each, its_bars) in enumerate(zip(trials, bars, strict=True)):
        if len(trials) > 1:
            name = textwrap.shorten(each.name, 48, placeholder=" …")
            nothing = "" if its_bars else ": idle"
            axes.annotate(
                f"{name}{nothing}", (0, at), xytext=(1, -2), textcoords="offset points", va="center", fontsize=SMALL
            )
            at += 1
        for bar in its_bars:
            left = 0.0
            for parts, hatch in ((bar.running, ""), (bar.waiting, "/////")):
                for part in parts:
                    # Thin white joints show how evenly the threads of a role shared its work.
                    axes.barh(
                        at, part, 0.72, left, color="white" if hatch else COLOURS[place],
                        edgecolor=COLOURS[place] if hatch else "white", hatch=hatch, linewidth=0.4,
                    )  # fmt: skip
                    left += part
            axes.annotate(bar.words, (left, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL)
            ticks.append(at)
            names.append(bar.name)
            at += 1
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(at, 3) - 0.4, -0.6)
    axes.set_xlim(0, 1.28 * most)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("% of one core: on a CPU + waiting for one (hatched)", fontsize=SMALL)


def _bars(each: Trial, *, alone: bool) -> list[Bar]:
    """Threads by role, and each on its own where there is room for it; without those that hardly ran."""
    groups: dict[str, list[ThreadTimes]] = {}
    for times in each.threads:
        groups.setdefault(_role(times.name), []).append(times)
    percent = 100 / each.observed_s if each.observed_s else 0.0
    bars = []
    for role, threads in groups.items():
        single = alone and len(each.threads) <= ALONE
        parts = [(times.name, [times]) for times in threads] if single else [(_called(role, threads), threads)]
        for name, members in parts:
            running = tuple(times.running_s * percent for times in members)
            waiting = tuple(times.waiting_s * percent for times in members)
            if sum(running) + sum(waiting) >= IDLE:
                bars.append(Bar(name, running, waiting))
    return bars


def _role(name: str) -> str:
    """A thread's name without its number: "reader" of "reader 12", "Thread" of "Thread-3"."""
    return re.sub(r"[-_ #]*\d+", "", name) or name


def _called(role: str, threads: Sequence[ThreadTimes]) -> str:
    return f"{len(threads)} × {role}" if len(threads) > 1 else threads[0].name


def _errors(load: Load) -> str:
    parts = [f"{kind} {count}" for kind, count in load.errors.items() if count]
    words = f"{sum(load.errors.values())} errors: {', '.join(parts)}" if parts else ""
    return "; ".join(filter(None, [words, f"{load.unfinished} unfinished" if load.unfinished else ""]))


def _finding(trials: Sequence[Trial]) -> str:
    if not trials:
        return "Nothing was measured yet"
    best = max(trials, key=lambda each: each.load.throughput)
    worst = min(trials, key=lambda each: each.load.throughput)
    if len(trials) == 1:
        p99 = best.load.percentile_ms(99)
        late = "" if math.isnan(p99) else f", 99 % within {p99:.3g} ms"
        return f"“{best.name}”: {best.load.throughput:.0f} requests a second{late}"
    if not worst.load.throughput:
        return f"“{worst.name}” completed no request"
    factor = best.load.throughput / worst.load.throughput
    if factor < 1.05:
        every = "Both" if len(trials) == 2 else f"All {len(trials)}"
        return f"{every} completed about {best.load.throughput:.0f} requests a second"
    return f"“{best.name}” completed {factor:.1f} times as many requests as “{worst.name}”"


def _small_print(trials: Sequence[Trial]) -> str:
    parts = []
    for tier in dict.fromkeys(each.tier for each in trials):
        where = origin(tier, "Measured")
        names = [each.name for each in trials if each.tier == tier]
        parts.append(where if len(names) == len(trials) else f"{', '.join(names)}: {where}")
    if any(len(each.threads) for each in trials):
        parts.append(f"Threads that used and wanted less than {IDLE:g} % of a core are left out.")
    parts += [
        f"{each.name}: the load generator was busy {each.load.busy:.0%} and may have been the limit."
        for each in trials
        if each.load.busy >= LIMIT
    ]
    return " ".join(parts)


def _in_words(each: Trial, bars: Sequence[Bar]) -> str:
    latencies = {name: each.load.percentile_ms(p) for name, p in PERCENTILES.items()}
    told = ", ".join(f"{name} {ms:.3g} ms" for name, ms in latencies.items() if not math.isnan(ms))
    threads = ", ".join(f"{bar.name} {bar.words} %" for bar in bars)
    return (
        f"{each.name}: {each.load.throughput:.0f} requests a second, {_errors(each.load) or 'no errors'}; "
        f"latency {told or 'unknown'}; accept queue {each.history.accept_queue.peak} at most; "
        f"on a CPU and waiting for one: {threads or 'hardly anything'}."
    )
