"""The pictures of the section "Long polling": how late events come, and when the clients are back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_ways(
    delays: Mapping[str, Sequence[float]], requests: Mapping[str, float], one_way_ms: float, title: str, tier: str
) -> Picture:
    """How late each event came, for several ways to hear of it.

    Args:
        delays: seconds, one for each event, by the way's name; the last is the one that it is about.
        requests: for each event, by the way's name.
        one_way_ms: half a round trip, which is drawn as a line.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.4)
    words = []
    longest = 1000 * max(max(late) for late in delays.values())
    for place, (name, late) in enumerate(delays.items()):
        colour = style.BLUE if place == len(delays) - 1 else style.VERMILION
        axes.scatter([1000 * each for each in late], [place] * len(late), s=18, color=colour, alpha=0.6)
        said = f"{requests[name]:.1f} requests an event"
        axes.annotate(said, (longest * 1.05, place), va="center", fontsize=9, color=style.INK)
        words.append(f"{name}: {said}, {1000 * max(late):.0f} ms late at most")
    axes.axvline(one_way_ms, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(delays)), list(delays))
    axes.set_ylim(len(delays) - 0.5, -0.5)
    axes.set_xlim(0, 1.4 * longest)
    axes.set_xlabel("ms from event to client; dotted: half a round trip")
    style.set_title(axes, title)
    style.add_note(figure, f"A dot for each event. {origin(tier, 'Run')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_returns(returns: Mapping[str, Sequence[float]], title: str, tier: str) -> Picture:
    """When the clients of a fleet are back after an answer.

    Args:
        returns: seconds on one clock, a request each, by what is done about it.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.4)
    colours = (style.VERMILION, style.BLUE, style.GREEN)
    for place, (colour, moments) in enumerate(zip(colours, returns.values(), strict=False)):
        began = min(moments)
        times = [1000 * (each - began) for each in moments]
        axes.vlines(times, place - 0.35, place + 0.35, color=colour, linewidth=1, alpha=0.6)
    axes.set_yticks(range(len(returns)), [f"{name}\n{len(moments)} requests" for name, moments in returns.items()])
    axes.set_ylim(len(returns) - 0.5, -0.5)
    axes.set_xlabel("ms since the first client was back; a line for each request that came")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    counted = "; ".join(f"{name}: {len(moments)} requests" for name, moments in returns.items())
    return Picture(figure, f"{title}. {counted}.")
