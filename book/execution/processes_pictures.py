"""The pictures of the section "Process and thread"."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.patches import Patch

from book.execution.apart import Seen
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_shares(groups: Sequence[Seen], title: str) -> Picture:
    """Stacked bars, one for each thread: the shares of the time in which it ran, queued for a CPU, and slept.

    Args:
        groups: experiments, from top to bottom.
        title: the finding.
    """
    count = sum(len(seen.threads) for seen in groups)
    figure, axes = style.new_figure(1.3 + 0.26 * count + 0.3 * len(groups))
    labels, places, words, y = [], [], [], 0.0
    for seen in groups:
        axes.text(0, y, seen.name, fontsize=style.SIZE, color=style.INK, weight="bold", va="center")
        y += 1
        for times in seen.threads:
            running, waiting = times.running_s / seen.wall_s, times.waiting_s / seen.wall_s
            if times.voluntary == 0 and running + waiting > 0:
                waiting = 1 - running  # it never slept; the kernel counts a wait when it is over, one is still open
            sleeping = max(0.0, 1 - running - waiting)
            left = 0.0
            for share, (colour, hatch, _) in zip((running, waiting, sleeping), STATES, strict=True):
                axes.barh(y, share * 100, left=left * 100, color=colour, hatch=hatch, edgecolor="white", height=0.8)
                left += share
            labels.append(times.name)
            places.append(y)
            y += 1
        number = len(seen.threads) or 1
        words.append(
            f"{seen.name}: each {seen.running / number:.0%} running and {seen.waiting / number:.0%} waiting for a CPU"
        )
        y += 0.4
    axes.set_yticks(places, labels)
    axes.set_ylim(y - 0.8, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time, %", fontsize=style.SIZE)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white") for colour, hatch, _ in STATES]
    figure.legend(
        handles,
        [label for _, _, label in STATES],
        loc="outside upper right",
        ncols=3,
        fontsize=style.SIZE,
        frameon=False,
    )
    style.set_title(axes, title)
    style.add_note(figure, f"From /proc/…/schedstat. {origin(groups[0].tier, 'Measured')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


STATES = (
    (style.BLUE, "", "running"),
    (style.ORANGE, "//", "waiting for a CPU"),
    ("#d9d9d9", "", "sleeping"),
)


def plot_answers(rows: Mapping[str, Sequence[float]], interval_ms: float, title: str, tier: str) -> Picture:
    """Latencies on a logarithmic scale, a row of dots for each experiment, its median marked.

    Args:
        rows: name of an experiment → milliseconds of its answers.
        interval_ms: the switch interval, drawn as a line.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(1.5 + 0.42 * len(rows))
    words = []
    for y, (name, times_ms) in enumerate(rows.items()):
        middle = statistics.median(times_ms)
        axes.plot(times_ms, [y] * len(times_ms), "o", color=style.SKY, markersize=5, alpha=0.5)
        axes.plot(middle, y, "D", color=style.VERMILION, markersize=7)
        words.append(f"{name}: median {middle:.2g} ms")
    axes.axvline(interval_ms, color=style.GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"time to the answer, ms (dashed: {interval_ms:g} ms; diamond: median)", fontsize=style.SIZE)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_crowd(crowds: Mapping[str, Sequence[float]], title: str, tier: str) -> Picture:
    """How many requests had their answer by when, a line for each server.

    Args:
        crowds: name of a server → milliseconds from the requests to each answer.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(3.2)
    words = []
    for (name, times_ms), colour, line in zip(
        crowds.items(), (style.VERMILION, style.BLUE, style.GREEN), ("-", "--", ":"), strict=False
    ):
        shares = [0.0, *(time_ms / max(times_ms) * 100 for time_ms in sorted(times_ms))]
        axes.step(shares, range(len(shares)), where="post", color=colour, linestyle=line, linewidth=2, label=name)
        words.append(f"{name}: mean {statistics.mean(times_ms):.0f} ms, last {max(times_ms):.0f} ms")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, None)
    axes.set_xlabel("time since the requests, % of the time to the last answer", fontsize=style.SIZE)
    axes.set_ylabel("answers", fontsize=style.SIZE)
    axes.legend(loc="upper left", fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")
