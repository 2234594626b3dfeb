"""The pictures of the section "Listener, acceptor, reader"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from labkit.network.tiers import origin
from labkit.plots import Picture, style
from labkit.queues.history import History, total


def plot_roles(history: History, marks: Sequence[tuple[int, str]], title: str) -> Picture:
    """The accept queue and the bytes that nobody has read, over time.

    Args:
        history: of a watch that looked at the connections, too.
        marks: when something was done, nanoseconds since 1970, and what.
        title: the finding.
    """
    figure, above = style.new_figure(3.9)
    above.remove()
    above, below = figure.subplots(2, 1, sharex=True)
    bytes_waiting = total([connection.receive_queue for connection in history.connections.values()])
    end_s = history.duration_s
    for axes, steps, colour, name in (
        (above, history.accept_queue, style.BLUE, "connections in the\naccept queue"),
        (below, bytes_waiting, style.GREEN, "bytes in the\nreceive queues"),
    ):
        times, values = [0.0, *steps.times_s, end_s], [0, *steps.values, steps.last]
        axes.step(times, values, where="post", color=colour, linewidth=2)
        axes.set_ylim(-0.05 * max(steps.peak, 1), 1.35 * max(steps.peak, 1))
        axes.set_ylabel(name, fontsize=style.SIZE)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for time_ns, _ in marks:
            axes.axvline((time_ns - history.started_ns) / 1e9, color=style.GREY, linestyle=":", linewidth=1)
    for time_ns, label in marks:
        at = ((time_ns - history.started_ns) / 1e9, 1)
        above.annotate(
            label, at, xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points",
            fontsize=style.SIZE, color=style.INK, ha="left", va="top",
        )  # fmt: skip
    below.set_xlim(0, end_s)
    below.set_xlabel("seconds", fontsize=style.SIZE)
    style.set_title(above, title)
    style.add_note(figure, origin(history.tier, "Sampled"))
    told = ", ".join(f"{label} at {(time_ns - history.started_ns) / 1e9:.2f} s" for time_ns, label in marks)
    return Picture(
        figure,
        f"{title}. Accept queue {history.accept_queue.peak} at most, {history.accept_queue.last} in the end; "
        f"{bytes_waiting.peak} bytes unread at most, {bytes_waiting.last} in the end. {told}.",
    )


def plot_hanging(runs: Mapping[str, Mapping[str, int]], title: str, tier: str) -> Picture:
    """Where the clients are that a hanging server has, a group of bars for each server.

    Args:
        runs: what hangs → place → how many.
        title: the finding.
        tier: where they come from.
    """
    places = list(next(iter(runs.values())))
    figure, axes = style.new_figure(1.0 + 0.27 * (len(places) + 1) * len(runs))
    colours = (style.BLUE, style.GREEN, style.ORANGE, style.PURPLE)
    at, ticks = 0.0, []
    for run in runs.values():
        ticks.append(at + (len(places) - 1) / 2)
        for place, colour in zip(places, colours, strict=False):
            axes.barh(at, run[place], 0.8, color=colour, label=place if at < len(places) else None)
            axes.annotate(
                f"{run[place]}", (run[place], at), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=style.SIZE,
            )  # fmt: skip
            at += 1
        at += 1
    axes.set_yticks(ticks, list(runs))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 1.4, -0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("how many", fontsize=style.SIZE)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Sampled"))
    told = ". ".join(f"{name}: " + ", ".join(f"{place} {n}" for place, n in run.items()) for name, run in runs.items())
    return Picture(figure, f"{title}. {told}.")
