"""The pictures of the section "Request–response": what parsers cost, and how an upload gets on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_parsers(times: Mapping[str, Sequence[float]], title: str) -> Picture:
    """What one request costs each parser: the median of the rounds, and their spread.

    Args:
        times: microseconds of processor time for a request, of each round, by parser.
        title: the finding.
    """
    figure, axes = style.new_figure(2.6)
    words = []
    for place, (name, rounds) in enumerate(times.items()):
        middle = median(rounds)
        axes.barh(place, middle, color=style.BLUE)
        axes.plot([min(rounds), max(rounds)], [place, place], color=style.INK, linewidth=1.5)
        said = f"{middle:.1f} µs, {1e6 / middle:,.0f} requests a second"
        axes.text(max(rounds), place, f"  {said}", va="center", fontsize=9, color=style.INK)
        words.append(f"{name}: {said}")
    axes.set_yticks(range(len(times)), list(times))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * max(max(rounds) for rounds in times.values()))
    axes.set_xlabel("µs of processor time for a request; the line goes from the least to the most")
    style.set_title(axes, title)
    style.add_note(figure, "In turn, on one thread of this machine. Nothing is read from a network.")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_uploads(uploads: Mapping[str, Sequence[tuple[float, int]]], size: int, title: str, tier: str) -> Picture:
    """What the server has of a file, over time.

    Args:
        uploads: by name, when (seconds) the server had how many bytes.
        size: of the file.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.8)
    words = []
    for colour, (name, progress) in zip((style.VERMILION, style.BLUE), uploads.items(), strict=False):
        start = progress[0][0]
        seconds = [moment - start for moment, _ in progress]
        axes.step(seconds, [there / 1000 for _, there in progress], where="post", color=colour, linewidth=2, label=name)
        words.append(f"{name}: complete after {seconds[-1]:.1f} s")
    axes.axhline(size / 1000, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.15 * size / 1000)
    axes.set_xlabel("seconds")
    axes.set_ylabel("kB at the server")
    axes.legend(frameon=False, fontsize=9, loc="lower center")
    style.set_title(axes, title)
    style.add_note(figure, f"Dotted: the whole file. {origin(tier, 'Run')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")
