"""The pictures of the section "Idempotency": charges counted, and tries over time."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import AutoLocator

from book.execution.payments import Run
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_charges(
    charged: Mapping[str, tuple[int, int]],
    predicted: Mapping[str, tuple[float | None, float | None]],
    title: str,
    tier: str,
) -> Picture:
    """The charges for one payment, without a key and with one.

    Args:
        charged: for each trouble, without a key and with one.
        predicted: the same for some of them, None where nothing was.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(3.4)
    sides = (("without a key", style.VERMILION), ("with a key", style.BLUE))
    for place, name in enumerate(charged):
        for side, (label, colour) in enumerate(sides):
            y, count = place + (side - 0.5) * 0.36, charged[name][side]
            axes.barh(y, count, height=0.32, color=colour, label=None if place else label)
            axes.text(count + 0.05, y, str(count), va="center", color=style.INK)
            guess = predicted.get(name, (None, None))[side]
            if guess is not None:
                axes.plot(guess, y, "D", color=style.INK, markersize=7)
    if any(guess is not None for pair in predicted.values() for guess in pair):
        axes.plot([], [], "D", color=style.INK, label="your prediction")
    axes.set_yticks(range(len(charged)), list(charged))
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    whole = AutoLocator()
    whole.set_params(integer=True)
    axes.xaxis.set_major_locator(whole)
    axes.set_xlabel("charges for one payment (rows of the table)")
    axes.legend(frameon=False, fontsize=style.SIZE, loc="lower right")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Counted"))
    words = [f"{n}: {a} without a key, {b} with one" for n, (a, b) in charged.items()]
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_tries(run: Run, title: str, tier: str) -> Picture:
    """The client's tries and the requests that the server's program read, over time.

    Args:
        run: of one payment.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(1.6 + 0.3 * len(run.tries + run.served))
    names, words = [], []
    bars = [(f"try {n}", *each) for n, each in enumerate(run.tries, 1)]
    bars += [(f"request {n}", *each, None) for n, each in enumerate(sorted(run.served), 1)]
    for place, (name, start, end, outcome) in enumerate(bars):
        colour, heard = style.BLUE, ""
        if isinstance(outcome, Exception):
            colour, heard = style.VERMILION, type(outcome).__name__
        elif outcome is not None:
            colour, heard = style.GREEN, f"response {outcome.status_code}"
        left = start - run.tries[0][0]
        axes.barh(place, end - start, left=left, height=0.6, color=colour, edgecolor=colour)
        axes.annotate(heard, (left + end - start, place), (5, 0), textcoords="offset points", va="center")
        names.append(f"{name}, {'server' if outcome is None else 'client'}")
        words.append(f"{name} {heard or 'read'} at {left:.2f} s")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
    axes.set_xlabel("seconds after the first try began")
    style.set_title(axes, title)
    style.add_note(figure, f"A server's bar: from reading a request to answering it. {origin(tier, 'Measured')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")
