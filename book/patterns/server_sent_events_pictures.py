"""The picture of the section "Server-sent events": what the same events cost, by four ways."""

from __future__ import annotations

from collections.abc import Mapping

from book.patterns.four_ways import Heard
from labkit.network.tiers import origin
from labkit.plots import Picture, style

COLOURS = (style.VERMILION, style.ORANGE, style.BLUE, style.SKY)


def plot_ways(found: Mapping[float, Mapping[str, Heard]], title: str, tier: str) -> Picture:
    """Packets of the same events by each way, for several paces; beside each bar, requests and delay.

    Args:
        found: what came of each way, by its name, by the seconds from one event to the next.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(1.0 + 1.15 * len(found))
    words, ticks, place = [], {}, 0.0
    most = max(heard.cost.packets for ways in found.values() for heard in ways.values())
    for every_s, ways in found.items():
        ticks[place + (len(ways) - 1) / 2] = f"an event\neach {1000 * every_s:g} ms"
        for colour, (name, heard) in zip(COLOURS, ways.items(), strict=True):
            axes.barh(place, heard.cost.packets, color=colour)
            requests = f"{heard.cost.requests} request{'s' if heard.cost.requests > 1 else ''}"
            said = f"{name}: {heard.cost.packets} packets, {requests}, {heard.late_ms:.0f} ms late"
            axes.text(heard.cost.packets, place, f"  {said}", va="center", fontsize=8.5, color=style.INK)
            words.append(f"each {1000 * every_s:g} ms, {said}")
            place += 1
        place += 0.7
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.75 * most)
    axes.set_xlabel("packets, both directions, of each connection")
    style.set_title(axes, title)
    style.add_note(figure, f"Late: from an event's making to the client, mean. {origin(tier, 'Run')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")
