"""The picture of the section "TFO + TLS 1.3": what TCP Fast Open saves."""

from __future__ import annotations

from collections.abc import Mapping

from book.https.reading import round_trips, timeline_of
from labkit.capture.captured import Captured
from labkit.network.tiers import origin
from labkit.plots import Picture
from labkit.plots.style import COLOURS, INK, SIZE, add_note, new_figure, set_title


def plot_saved(captures: Mapping[str, Captured], rtt_ms: float) -> Picture:
    """One request with Fast Open and one without, phase by phase.

    Args:
        captures: two, by the names "TCP" and "TFO", of one request over TLS 1.3 each.
        rtt_ms: the distance, in milliseconds.
    """
    figure, axes = new_figure(2.3)
    measured = {name: timeline_of(capture) for name, capture in captures.items()}
    whole = {name: round_trips(capture) for name, capture in captures.items()}
    tier = captures["TCP"].tier  # needs no setting, so it was measured here
    note = f"Grey: TCP, orange: TLS, blue: request. {origin(tier, 'Measured')}"
    for place, (name, line) in enumerate(measured.items()):
        left = 0.0
        if hatch := "///" if captures[name].tier != tier else "":
            note += f"\nHatched: {captures[name].tier}, not on this machine."
        for phase, rtts in line.phases_rtts(rtt_ms).items():
            width, colour = rtts * rtt_ms, COLOURS[phase]
            axes.barh(place, width, 0.6, left, color=colour, edgecolor="white", hatch=hatch)
            left += width
        words = f" {whole[name]} round trips, {left:.0f} ms"
        axes.text(left, place, words, va="center", fontsize=SIZE, color=INK)
    title = "TFO saves one round trip" if whole["TCP"] > whole["TFO"] else "TFO saves no round trip"
    if measured["TFO"].packets[0].lost:
        title = "TFO costs a second"
    set_title(axes, f"{title} where a round trip takes {rtt_ms:g} ms")
    axes.set_yticks(range(len(whole)), [f"{name} + TLS 1.3" for name in whole])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(line.rtts(1) for line in measured.values()))
    axes.set_xlabel("first byte of the response after, ms", fontsize=SIZE)
    add_note(figure, note)
    return Picture(figure, f"{title}. Round trips with TLS 1.3: {whole}")
