"""The picture of the section "Push": what waits in a server for a client that does not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_waiting(waiting: Mapping[str, Sequence[tuple[int, int]]], title: str, tier: str) -> Picture:
    """How much the server's program keeps for one client, as messages come.

    Args:
        waiting: by policy, after how many messages there waited how many bytes.
        title: the finding.
        tier: of the lab.
    """
    figure, axes = style.new_figure(3.0)
    words = []
    looks = zip((style.VERMILION, style.BLUE, style.INK), ("-", "-", "--"), waiting.items(), strict=False)
    for colour, line, (name, steps) in looks:
        sent = [0, *(number for number, _ in steps)]
        kilobytes = [0.0, *(size / 1000 for _, size in steps)]
        axes.step(sent, kilobytes, where="post", color=colour, linestyle=line, linewidth=2, label=name)
        words.append(f"{name}: {max(kilobytes):.0f} kB at most, {kilobytes[-1]:.0f} kB at the end")
    axes.set_xlabel("messages of 10 kB said in the chat")
    axes.set_ylabel("kB waiting")
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    style.set_title(axes, title)
    style.add_note(figure, f"Looked at after each ten messages. {origin(tier, 'Run')}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")
