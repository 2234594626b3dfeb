"""What distance costs: milliseconds to the first byte over the round-trip time."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.handshakes.variants import VARIANTS, variant
from labkit.plots.picture import Picture
from labkit.plots.style import (
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

COLOURS = (VERMILION, ORANGE, SKY, BLUE, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_gap(points: Mapping[float, Mapping[str, float]], *, tier: str) -> Picture:
    """Time to the first byte of the response over the RTT: measured points on the lines of theory.

    Args:
        points: milliseconds by variant name by RTT in milliseconds: ``{40: {"tls1.3": 121.3}}``.
        tier: tier of the lab that measured them.

    Returns:
        the picture. Raises InvalidValue for a variant that does not exist.
    """
    found = {variant(name) for column in points.values() for name in column}
    names = [each.name for each in sorted(found, key=lambda each: (-each.theory_rtts, VARIANTS.index(each)))]
    theories = sorted({variant(name).theory_rtts for name in names})
    figure, axes = new_figure(4.2)
    # As far as the measurements reach: the picture grows with them.
    reach = max(points, default=1.0) * 1.12
    shared = len(theories) < len(names)  # several variants on one line: a legend tells them apart
    for place, name in enumerate(names):
        (colour, marker), theory = _series(place), variant(name).theory_rtts
        axes.plot([0, reach], [0, theory * reach], color=GREY if shared else colour, linewidth=1.2, zorder=1)
        rtts = sorted(rtt for rtt, column in points.items() if name in column)
        axes.plot(rtts, [points[rtt][name] for rtt in rtts], marker, color=colour, markersize=6, label=name)
    for theory in theories:
        (name, *more) = (name for name in names if variant(name).theory_rtts == theory)
        text = f" {theory} RTT" if shared and more else f" {name}: {theory} RTT"
        axes.text(reach, theory * reach, text, va="center", fontsize=SIZE, color=INK)
    if shared:
        axes.legend(loc="upper left", fontsize=SIZE, frameon=False)
    axes.set_xlim(0, reach * 1.24)
    axes.set_ylim(0, None)
    axes.set_xlabel("round-trip time, ms", fontsize=SIZE)
    axes.set_ylabel("first byte of the response after, ms", fontsize=SIZE)
    title, words = "Nothing was measured yet", ""
    if names:
        # The last measured is the last in the mapping, unless it was measured again; so the longest speaks.
        longest = max(rtt for rtt, column in points.items() if column)
        title = f"At {longest:g} ms of round-trip time, {_finding(points[longest])}"
        columns = (f"at {rtt:g} ms: " + ", ".join(f"{n} {v:.0f} ms" for n, v in points[rtt].items()) for rtt in points)
        words = "First byte " + "; ".join(columns) + "."
    set_title(axes, title)
    add_note(figure, f"Points: measured on this machine, tier: {tier}. Lines: theory.")
    return Picture(figure, f"{title}. {words}")


def _series(place: int) -> tuple[str, str]:
    """Colour and marker; the seventh variant has the first one's colour and another marker."""
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def _finding(column: Mapping[str, float]) -> str:
    slowest, fastest = max(column, key=column.__getitem__), min(column, key=column.__getitem__)
    if slowest == fastest:
        return f"{slowest} waits {column[slowest]:.0f} ms"
    return f"{slowest} waits {column[slowest] - column[fastest]:.0f} ms longer than {fastest}"
