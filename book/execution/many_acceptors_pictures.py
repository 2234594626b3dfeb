"""The picture of the section "Many acceptors on one socket"."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_wakes(results: Mapping[str, Mapping[str, tuple[int, int]]], clients: int, title: str, tier: str) -> Picture:
    """How many connections each acceptor served, beside how often it went to sleep.

    Args:
        results: for each way to wait, by acceptor: connections served, times it went to sleep.
        clients: how many came.
        title: the finding.
        tier: of the lab, or "recorded …".
    """
    figure, axes = style.new_figure(3.4)
    ticks, at = {}, 0
    for way, found in results.items():
        for name, (served, slept) in found.items():
            axes.bar(at - 0.2, served, 0.4, color=style.BLUE)
            axes.bar(at + 0.2, slept, 0.4, color=style.ORANGE)
            ticks[at] = name.removeprefix("acceptor ")
            at += 1
        axes.annotate(
            way, (at - len(found) / 2 - 0.5, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=style.SIZE
        )
        at += 1
    axes.bar(0, 0, color=style.BLUE, label="connections served")
    axes.bar(0, 0, color=style.ORANGE, label="times it went to sleep")
    axes.axhline(clients, color=style.GREY, linestyle=":", linewidth=1)
    axes.annotate(f"{clients} connections", (at - 1.2, clients), fontsize=style.NOTE_SIZE, va="bottom", ha="right")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("acceptor", fontsize=style.SIZE)
    axes.set_ylabel("count", fontsize=style.SIZE)
    axes.set_ylim(0, 1.45 * max(slept for found in results.values() for _, slept in found.values()))
    axes.legend(fontsize=style.SIZE, frameon=False, ncols=2, loc="upper right")
    axes.set_title(title, fontsize=style.TITLE_SIZE, loc="left", pad=24)
    style.add_note(figure, origin(tier, "Counted"))
    told = "; ".join(f"{way}: served and slept {list(found.values())}" for way, found in results.items())
    return Picture(figure, f"{title}. {told}.")
