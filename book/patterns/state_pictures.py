"""The pictures of the section "Stateful and stateless": who was logged out, and what a token weighs."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.network.tiers import origin
from labkit.plots import Picture, style

COOKIE_BYTES = 4096  # RFC 6265, section 6.1


def plot_logged_out(
    counted: Mapping[str, tuple[int, int]], predicted: Mapping[str, float | None], title: str, tier: str
) -> Picture:
    """Users who were logged out before an event, and by it.

    Args:
        counted: by design and event: before, and by it.
        predicted: for some of them, by the event; None where nothing was.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(1.4 + 0.32 * len(counted))
    for place, (before, by_event) in enumerate(counted.values()):
        axes.barh(place, before, height=0.6, color=style.SKY, label=None if place else "without any restart")
        axes.barh(
            place, by_event, left=before, height=0.6, color=style.VERMILION, label=None if place else "by the event"
        )
        axes.text(before + by_event + 0.2, place, str(before + by_event), va="center", color=style.INK)
    guesses = {name: guess for name, guess in predicted.items() if guess is not None}
    for number, (name, guess) in enumerate(guesses.items()):
        label = None if number else "your prediction"
        axes.plot(guess, list(counted).index(name), "D", color=style.INK, markersize=7, label=label)
    axes.set_yticks(range(len(counted)), list(counted))
    axes.invert_yaxis()
    axes.set_xlim(0, 22)
    axes.set_xticks(range(0, 21, 5))
    axes.set_xlabel("users logged out, of 20")
    axes.legend(frameon=False, fontsize=style.SIZE, loc="center left", bbox_to_anchor=(0.45, 0.5))
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Counted"))
    words = [f"{name}: {before} before, {by_event} by it" for name, (before, by_event) in counted.items()]
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_bytes(found: Mapping[int, tuple[tuple[int, int], tuple[int, int]]], title: str, tier: str) -> Picture:
    """What a request weighs with the name of a session in its cookie, and with all of the session.

    Args:
        found: by the number of matches in the session: (bytes, segments) with a name, and with a token.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.8)
    words = []
    sides = (("name of a session in the store", style.BLUE, "o"), ("signed token", style.VERMILION, "s"))
    for side, (label, colour, marker) in enumerate(sides):
        sizes = [each[side][0] for each in found.values()]
        axes.plot(list(found), sizes, marker=marker, color=colour, label=label)
        words.append(
            f"{label}: {', '.join(f'{size} bytes with {count}' for count, size in zip(found, sizes, strict=True))}"
        )
    axes.axhline(COOKIE_BYTES, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.text(0, COOKIE_BYTES + 60, "4,096 bytes: more of a cookie need not be kept", fontsize=9, color=style.GREY)
    axes.set_ylim(0, 4900)
    axes.set_xlabel("matches that the session holds")
    axes.set_ylabel("bytes of each request")
    axes.legend(frameon=False, fontsize=style.SIZE, loc="center left", bbox_to_anchor=(0.0, 0.62))
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Counted in captures"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")
