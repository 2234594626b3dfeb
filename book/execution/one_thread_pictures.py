"""The pictures of the section "One thread does all"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.execution.one_thread_experiments import Answers, sooner
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_behind(runs: Mapping[str, Answers], title: str, tier: str) -> Picture:
    """From each request to its response, a panel for each server.

    Args:
        runs: name of a server → what ``answers_in`` found.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(0.9 + 1.15 * len(runs))
    axes.remove()
    panels = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    words = []
    for panel, (name, answered) in zip(panels, runs.items(), strict=True):
        for place, (slow, came_s, left_s) in enumerate(sorted(answered, reverse=True)):
            colour = style.VERMILION if slow else style.BLUE
            panel.plot([came_s, left_s], [place] * 2, color=colour, linewidth=3, linestyle="-")
            panel.plot(left_s, place, "s" if slow else "o", color=colour, markersize=6, markeredgecolor="white")
        panel.set_ylim(len(answered) - 0.3, -0.7)
        panel.set_yticks([])
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.set_title(
            f"{name}: {sooner(answered)} of {len(answered) - 1} fast ones before the slow one",
            fontsize=style.SIZE, loc="left", color=style.INK, pad=3,
        )  # fmt: skip
        words.append(f"{name}: {sooner(answered)} of {len(answered) - 1} fast responses left before the slow one")
    panels[-1].set_xlim(left=-0.01)
    panels[-1].set_xlabel(
        "seconds since the slow request (■, at the top of each group) reached the server; ● fast ones",
        fontsize=style.SIZE,
    )
    figure.suptitle(title, fontsize=style.TITLE_SIZE, color=style.INK, x=0.01, ha="left")
    style.add_note(figure, origin(tier, "Captured"))
    return Picture(figure, f"{title}. {'. '.join(words)}.")


def plot_lag(lags: Mapping[str, Sequence[Sequence[float]]], title: str, tier: str) -> Picture:
    """How late a timer of each server's loop was, over time.

    Args:
        lags: name of a server → pairs of when the timer was due and how late it was, seconds.
        title: the finding.
        tier: where they come from.
    """
    figure, axes = style.new_figure(1.1 + 0.75 * len(lags))
    axes.remove()
    panels = figure.subplots(len(lags), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    words = []
    for panel, (name, pairs) in zip(panels, lags.items(), strict=True):
        times = [due for due, _ in pairs]
        late_ms = [1000 * late for _, late in pairs]
        most_ms = max(late_ms, default=0)
        panel.vlines(times, 0, late_ms, color=style.BLUE, linewidth=1.5)
        panel.plot(times, late_ms, "o", color=style.BLUE, markersize=3.5)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        words.append(f"{name}: {most_ms:.0f} ms at most")
        panel.set_title(words[-1], fontsize=style.SIZE, loc="left", color=style.INK, pad=3)
    panels[-1].set_ylim(0, 1.25 * max((late for pairs in lags.values() for _, late in pairs), default=0) * 1000 or 1)
    panels[-1].set_xlabel("when the timer was due, seconds after the loop began", fontsize=style.SIZE)
    figure.supylabel("how late it was, ms", fontsize=style.SIZE, color=style.INK)
    figure.suptitle(title, fontsize=style.TITLE_SIZE, color=style.INK, x=0.01, ha="left")
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {', '.join(words)}.")
