"""The pictures of the section "Multiplexing and demultiplexing": data behind a hole, and the queue before a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_waits(runs: Mapping[str, Sequence[tuple[int, float, bool]]], title: str, tier: str) -> Picture:
    """When data came, a row for each stream, and what had to wait.

    Args:
        runs: by protocol: (number of the stream, ms from the loss to the arrival, whether it lay behind the hole).
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(3.2)
    ticks, names, words = [], [], []
    top = 0
    for name, arrivals in runs.items():
        streams = sorted({stream for stream, _, _ in arrivals})
        for stream in streams:
            mine = [(at, held) for number, at, held in arrivals if number == stream]
            for waits, colour, shape in ((False, style.BLUE, "o"), (True, style.VERMILION, "X")):
                moments = [at for at, held in mine if held == waits]
                axes.scatter(moments, [top] * len(moments), s=22, color=colour, marker=shape, linewidths=0)
            ticks.append(top)
            names.append(f"{name}, {stream}")
            top += 1
        held = {stream for stream, _, behind in arrivals if behind}
        words.append(f"{name}: {len(held)} of {len(streams)} streams wait")
        top += 1
    axes.axvline(0, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_ylim(top - 1.4, -0.6)
    axes.set_xlabel("ms since the lost segment was sent; dot: data arrives, and is read; cross: it arrives, and waits")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_pools(rows: Sequence[tuple[int, int, int, float]], title: str, tier: str) -> Picture:
    """How long 20 queries take, by the size of the pool.

    Args:
        rows: size, how many run at a time, how many wait in front of the pool, milliseconds for all.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(2.2)
    places = range(len(rows))
    axes.barh(places, [row[3] for row in rows], color=style.BLUE, height=0.6)
    for place, (_, running, waiting, took) in enumerate(rows):
        axes.annotate(
            f"{running} at a time, {waiting} wait", (took, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, [str(row[0]) for row in rows])
    axes.set_ylabel("size of the pool")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(row[3] for row in rows))
    axes.set_xlabel("ms until the last of 20 queries of 50 ms is answered")
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Run"))
    said = "; ".join(
        f"size {size}: {running} run, {waiting} wait, {took:.0f} ms" for size, running, waiting, took in rows
    )
    return Picture(figure, f"{title}. {said}.")
