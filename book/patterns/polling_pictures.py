"""The pictures of the section "Polling": how late events come, and when a fleet of clients asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_delays(
    delays: Mapping[float, Sequence[float]], requests: Mapping[float, float], title: str, tier: str
) -> Picture:
    """How late each event came, for several periods.

    Args:
        delays: seconds, one for each event, by the period in seconds.
        requests: for each event that came, by the period.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.8)
    words = []
    for period, late in delays.items():
        axes.scatter([period] * len(late), [1000 * each for each in late], s=18, color=style.BLUE, alpha=0.6)
        said = f"{requests[period]:.1f} requests an event"
        axes.annotate(said, (period, 1000 * max(late)), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        words.append(f"each {1000 * period:g} ms: {said}, {1000 * max(late):.0f} ms late at most")
    longest = max(delays)
    axes.plot([0, longest], [0, 1000 * longest], color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_xticks(list(delays), [f"{1000 * period:g}" for period in delays])
    axes.set_xlim(0, 1.15 * longest)
    axes.set_ylim(0, 1450 * longest)
    axes.set_xlabel("period of asking, ms; dotted: one period")
    axes.set_ylabel("ms from event to client")
    style.set_title(axes, title)
    style.add_note(figure, f"A dot for each event. {origin(tier, 'Run')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_fleets(fleets: Mapping[str, Sequence[float]], hang: tuple[float, float], title: str, tier: str) -> Picture:
    """When each request of many clients came, and the time in which the server hung.

    Args:
        fleets: seconds, a request each, by how the clients wait.
        hang: from when to when the server did not answer, seconds.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.4)
    for place, (colour, moments) in enumerate(zip((style.VERMILION, style.BLUE), fleets.values(), strict=False)):
        axes.vlines(moments, place - 0.35, place + 0.35, color=colour, linewidth=1, alpha=0.7)
    axes.axvspan(*hang, color=style.GREY, alpha=0.2, linewidth=0)
    axes.text(sum(hang) / 2, -0.62, "server hangs", ha="center", fontsize=9, color=style.INK)
    axes.set_yticks(range(len(fleets)), list(fleets))
    axes.set_ylim(len(fleets) - 0.5, -0.95)
    axes.set_xlabel("seconds; a line for each request that came")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    counted = "; ".join(f"{name}: {len(moments)} requests" for name, moments in fleets.items())
    return Picture(figure, f"{title}. {counted}.")
