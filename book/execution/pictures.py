"""Pictures that several sections of the chapter show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from labkit.capture.captured import Captured
from labkit.capture.ladder import build_ladder
from labkit.handshakes.phases import begins, connections
from labkit.network.tiers import origin
from labkit.plots import Picture, plot_ladder, style

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)


def plot_waits(rows: Sequence[dict[str, Any]], tier: str, title: str, *, released_s: float, released: str) -> Picture:
    """From request to response, a line for each client, in the colour of who answered.

    Args:
        rows: of ``Callers.rows``.
        tier: of the lab, or "recorded, …".
        title: what was found.
        released_s: when what others waited for was over, seconds after the first request.
        released: what that was.
    """
    names = sorted({row["by"] for row in rows})
    figure, axes = style.new_figure(1.2 + 0.3 * len(rows))
    words = []
    for row in rows:
        begin, end = 1000 * row["sent_s"], 1000 * row["answered_s"]
        colour = COLOURS[names.index(row["by"]) % len(COLOURS)]
        axes.barh(row["number"], end - begin, 0.5, begin, color=colour)
        axes.plot(end, row["number"], "o", color=colour, markeredgecolor="white", markersize=8)
        unread = f", {row['unread']} bytes lay unread" if row["unread"] else ""
        text = f"{row['kind']} by {row['by']}{unread}"
        axes.annotate(
            text,
            (end, row["number"]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=style.SIZE,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        words.append(f"client {row['number']}: {text}, {begin:.0f} to {end:.0f} ms")
    axes.axvline(1000 * released_s, color=style.INK, linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        f"{released} ", (1000 * released_s, 0.35), ha="right", va="center", fontsize=style.SIZE, color=style.INK
    )
    axes.set_ylim(max(row["number"] for row in rows) + 0.6, -0.1)
    axes.set_xlim(0, 1.55 * max(1000 * row["answered_s"] for row in rows))
    axes.set_yticks([row["number"] for row in rows])
    axes.set_ylabel("client", fontsize=style.SIZE)
    axes.set_xlabel("from request to response: milliseconds after the first request", fontsize=style.SIZE)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier, "Measured"))
    return Picture(figure, f"{title}. {'; '.join(words)}. {released} after {1000 * released_s:.0f} ms.")


def plot_connection(capture: Captured, number: int, *, title: str, rtt_ms: float, acks: bool = False) -> Picture:
    """The ladder of one connection of a capture.

    Args:
        capture: with the connection's SYN in it.
        number: of the connection, counted from 1 in the order of the SYNs.
        title: the finding.
        rtt_ms: of the lab.
        acks: whether acknowledgments that carry nothing are drawn, too.
    """
    packets = [group for group in connections(capture.messages) if begins(group[0])][number - 1]
    ladder = replace(build_ladder(packets, ["client", "server"], acks=acks), tier=capture.tier)
    return plot_ladder(ladder, title=title, rtt_ms=rtt_ms)
