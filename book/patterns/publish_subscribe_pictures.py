"""The pictures of the section "Publish–subscribe": who got how many messages, and what a killed broker has kept."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_shares(shares: Mapping[int, Mapping[str, int]], title: str, tier: str) -> Picture:
    """How messages were dealt out among workers.

    Args:
        shares: messages by worker, by prefetch; 0 is none.
        title: the finding.
        tier: of the run.
    """
    figure, axes = style.new_figure(2.2)
    words, left = [], 0
    for place, (prefetch, counts) in enumerate(shares.items()):
        left = 0
        for colour, (name, count) in zip((style.BLUE, style.VERMILION), counts.items(), strict=False):
            axes.barh(place, count, left=left, color=colour, label=name if place == 0 else None)
            axes.text(left + count / 2, place, str(count), ha="center", va="center", color="white", fontsize=9)
            left += count
        said = " and ".join(f"{name} {count}" for name, count in counts.items())
        words.append(f"prefetch {prefetch or 'without limit'}: {said}")
    axes.set_yticks(range(len(shares)), [f"prefetch {each}" if each else "no limit" for each in shares])
    axes.invert_yaxis()
    axes.set_xticks(range(0, left + 1, 5))
    axes.set_xlabel("messages that were delivered to each worker")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_fates(fates: Mapping[str, tuple[int, int, int]], title: str, tier: str) -> Picture:
    """What became of messages when their broker was killed.

    Args:
        fates: by queue: confirmed, of these lost, delivered without a confirm.
        title: the finding.
        tier: of the run.
    """
    figure, axes = style.new_figure(2.4)
    words = []
    for place, (name, (confirmed, lost, more)) in enumerate(fates.items()):
        kinds = ("confirmed, delivered", confirmed - lost, style.BLUE), ("confirmed, lost", lost, style.VERMILION)
        left = 0
        for label, count, colour in (*kinds, ("not confirmed, delivered", more, style.GREY)):
            axes.barh(place, count, left=left, color=colour, label=label if place == 0 else None)
            left += count
        said = f"{confirmed} confirmed, {lost} lost"
        axes.text(left, place, f"  {said}", va="center", fontsize=9, color=style.INK)
        words.append(f"{name}: {said}, {more} delivered without a confirm")
    axes.set_yticks(range(len(fates)), list(fates))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.6 * max(confirmed + more for confirmed, _, more in fates.values()))
    axes.set_xlabel("messages")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")
