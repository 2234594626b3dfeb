"""The pictures of the section "Synchronous and asynchronous workloads": a stall, and the price of a patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from book.execution.one_thread_experiments import Answers, sooner
from book.patterns.stall import unread_over_time
from labkit.network.tiers import origin
from labkit.plots import Picture, style
from labkit.queues.history import History


def plot_stall(runs: Mapping[str, tuple[Answers, History, float]], title: str) -> Picture:
    """A row for each server: from each request to its answer at the left, unread bytes at the right.

    Args:
        runs: name of a server → what ``behind_a_report`` found.
        title: the finding.
    """
    figure, axes = style.new_figure(0.9 + 1.05 * len(runs))
    axes.remove()
    panels = figure.subplots(len(runs), 2, sharex="col", sharey="col", squeeze=False, width_ratios=(3, 2))
    words = []
    longest = max(left_s for answered, *_ in runs.values() for *_, left_s in answered)
    for (bars, queue), (name, (answered, history, came_s)) in zip(panels, runs.items(), strict=True):
        for place, (slow, asked_s, left_s) in enumerate(sorted(answered, reverse=True)):
            colour = style.VERMILION if slow else style.BLUE
            bars.plot([asked_s, left_s], [place] * 2, color=colour, linewidth=2)
            bars.plot(left_s, place, "s" if slow else "o", color=colour, markersize=4.5, markeredgecolor="white")
        times, values = unread_over_time(history, came_s)
        queue.fill_between([*times, longest], [*values, 0], step="post", color=style.PURPLE, alpha=0.6, linewidth=0)
        said = f"{sooner(answered)} of {len(answered) - 1} before the report"
        for panel, text in ((bars, f"{name}: {said}"), (queue, f"{max(values, default=0)} bytes at most")):
            panel.set_title(text, fontsize=style.SIZE, loc="left", color=style.INK, pad=3)
            for side in ("top", "right", "left"):
                panel.spines[side].set_visible(False)
        bars.set_yticks([])
        queue.set_yticks([])
        queue.set_xlim(-0.02, longest)
        words.append(f"{name}: {said}, {max(values, default=0)} bytes unread at most")
    panels[-1][0].invert_yaxis()
    panels[-1][0].set_xlabel("s since the report's request came (■); ● a fan's score", fontsize=style.SIZE)
    panels[-1][1].set_xlabel("s; unread bytes in the server's kernel", fontsize=style.SIZE)
    figure.suptitle(title, fontsize=style.TITLE_SIZE, color=style.INK, x=0.01, ha="left")
    style.add_note(figure, origin(next(iter(runs.values()))[1].tier, "Captured"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_price(times_us: Mapping[str, Sequence[float]], title: str) -> Picture:
    """Microseconds for a task, each run a dot.

    Args:
        times_us: by how the interpreter was prepared.
        title: the finding.
    """
    figure, axes = style.new_figure(1.9)
    words = []
    for place, (name, times) in enumerate(times_us.items()):
        axes.plot(times, [place] * len(times), "o", color=style.BLUE, alpha=0.6)
        axes.plot([median(times)] * 2, [place - 0.25, place + 0.25], color=style.VERMILION, linewidth=2)
        words.append(f"{name}: median {median(times):.1f} µs, from {min(times):.1f} to {max(times):.1f}")
    axes.set_yticks(range(len(times_us)), list(times_us))
    axes.set_ylim(len(times_us) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("µs of processor time for a task; a dot for each fresh interpreter, a line at the median")
    style.set_title(axes, title)
    return Picture(figure, f"{title}. {'; '.join(words)}.")
