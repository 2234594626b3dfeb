"""The picture of the section "Socket sharding"."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import AutoLocator

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_spread(given: Sequence[int], title: str, tier: str) -> Picture:
    """How many connections each shard got, and the share that would be equal.

    Args:
        given: by shard.
        title: the finding.
        tier: of the lab, or "recorded …".
    """
    equal = sum(given) / len(given)
    figure, axes = style.new_figure(2.6)
    axes.bar(range(1, len(given) + 1), given, color=style.SKY)
    axes.axhline(equal, color=style.INK, linestyle="--", linewidth=1)
    axes.text(1.01, equal, f"equal share: {equal:.3g}", transform=axes.get_yaxis_transform(), va="center")
    whole = AutoLocator()
    whole.set_params(integer=True)
    axes.yaxis.set_major_locator(whole)
    axes.set_xticks(range(1, len(given) + 1))
    axes.set_xlabel("shard")
    axes.set_ylabel("connections")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. By shard: {', '.join(map(str, given))}.")
