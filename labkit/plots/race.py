"""The race as bars: phases, theory, the learner's prediction."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from labkit import checks
from labkit.handshakes.variants import variant
from labkit.network.tiers import origin
from labkit.plots.picture import Picture
from labkit.plots.style import BLACK, COLOURS, INK, SIZE, VERMILION, add_note, new_figure, set_title

if TYPE_CHECKING:
    from labkit.handshakes.race import Race

PHASES = {"tcp": "TCP handshake", "tls": "TLS handshake", "quic": "QUIC handshake", "request": "request and response"}


def plot_race(race: Race, prediction: Mapping[str, float | None] | None = None) -> Picture:
    """Round trips to the first byte of the response: a bar for each variant, its phases side by side.

    Args:
        race: what was measured.
        prediction: round trips that the learner predicted, by variant, None for no guess; marked beside the
            measurement.

    Returns:
        the picture; its title names the slowest and the fastest.

    Raises:
        InvalidValue: a prediction that is no number, or of a variant that does not exist.
    """
    guesses = _guesses(prediction or {})
    # The slowest at the top, so that the corner below on the right is free for the legend.
    measurements = sorted(race, key=lambda m: (-m.theory_rtts, -m.measured_rtts))
    figure, axes = new_figure(1.9 + 0.38 * len(measurements))
    shown: set[str] = set()
    longest = max([m.measured_rtts for m in measurements] + [m.theory_rtts for m in measurements])
    longest = max([longest, *(guesses[m.name] for m in measurements if m.name in guesses)])
    for place, measurement in enumerate(measurements):
        left = 0.0
        recorded = measurement.tier != race.tier
        for phase, rtts in measurement.phases_rtts.items():
            # A phase that another one covers takes some microseconds: no bar, no legend.
            if rtts > 0.02:
                label = PHASES[phase] if phase not in shown else None
                shown.add(phase)
                (bar,) = axes.barh(place, rtts, 0.62, left, color=COLOURS[phase], label=label, edgecolor="white")
                bar.set_hatch("///" if recorded else "")
            left += rtts
        doubt = "" if measurement.proof["holds"] else "  not proven"
        when = "recorded" if recorded else f"{measurement.measured_ms:.0f} ms"
        milliseconds = f"{measurement.measured_rtts:.2f} RTT, {when}{doubt}"
        end = max(left, measurement.theory_rtts)
        guess = guesses.get(measurement.name, 0.0)
        if end < guess + 0.03 * longest and guess < end + 0.3 * longest:
            end = max(end, guess) + 0.01 * longest  # the words stand behind the mark, not under it
        axes.annotate(
            milliseconds,
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SIZE,
            color=INK,
            annotation_clip=False,
        )
        axes.plot(
            [measurement.theory_rtts] * 2,
            [place - 0.38, place + 0.38],
            color=BLACK,
            linewidth=2,
            label="theory" if place == 0 else None,
        )
    _mark_prediction(axes, [m.name for m in measurements], guesses)
    axes.set_yticks(range(len(measurements)), [m.name for m in measurements])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.36 + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel(
        f"round trips from the first packet to the first byte of the response (1 RTT = {race.rtt_ms:g} ms)",
        fontsize=SIZE,
    )
    _add_legend(axes, inside=len(measurements) > 7)
    title = _finding(race)
    set_title(axes, title)
    runs = len(measurements[0].runs)
    note = f"{origin(race.tier, 'Measured')} From captured packets, median of runs: {runs}."
    others = {m.tier: m.rtt_ms for m in measurements if m.tier != race.tier}
    for tier, rtt_ms in others.items():
        note += f" Hatched: {tier}, at {rtt_ms:g} ms, not on this machine."
    add_note(figure, textwrap.fill(note, 125))
    return Picture(figure, f"{title}. " + _in_words(race))


def _add_legend(axes: Axes, inside: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = ["theory", "you said", *PHASES.values()]
    pairs = sorted(zip(labels, handles, strict=True), key=lambda pair: order.index(pair[0]))
    corner: Literal["lower right", "upper left"] = "lower right" if inside else "upper left"
    legend = axes.legend([h for _, h in pairs], [label for label, _ in pairs], loc=corner, fontsize=SIZE, frameon=False)
    if not inside:
        legend.set_bbox_to_anchor((1, 1))


def _guesses(prediction: Mapping[str, float | None]) -> dict[str, float]:
    """Those that were made."""
    return {
        variant(name).name: checks.number(f"prediction[{name!r}]", rtts, 0, 100, unit="round trips, or None")
        for name, rtts in prediction.items()
        if rtts is not None
    }


def _mark_prediction(axes: Axes, names: list[str], prediction: Mapping[str, float]) -> None:
    places = [(names.index(name), rtts) for name, rtts in prediction.items() if name in names]
    if places:
        ys, xs = zip(*places, strict=True)
        axes.scatter(
            xs, ys, marker="D", s=46, facecolor="none", edgecolor=VERMILION, linewidth=1.8, zorder=3, label="you said"
        )


def _finding(race: Race) -> str:
    # Of the ways to say HTTPS, where more than one ran.
    runners = [m for m in race if m.variant.tls is not None]
    runners = runners if len(runners) > 1 else list(race)
    slowest = max(runners, key=lambda m: m.measured_rtts)
    fastest = min(runners, key=lambda m: m.measured_rtts)
    if slowest is fastest:
        return f"{slowest.name} takes {slowest.measured_rtts:.2f} round trips to the first byte"
    factor = slowest.measured_rtts / fastest.measured_rtts
    return f"{slowest.name} waits {factor:.1f} times as long for its first byte as {fastest.name}"


def _in_words(race: Race) -> str:
    parts = [
        f"{m.name} {m.measured_rtts:.2f} (theory {m.theory_rtts:g}{', ' + m.tier if m.tier != race.tier else ''})"
        for m in race
    ]
    return f"Round trips of {race.rtt_ms:g} ms, tier {race.tier}: " + ", ".join(parts) + "."
