"""The picture of the section "SYN and accept queues"."""

from __future__ import annotations

from book.execution.accept_queues_experiments import each_client
from labkit.capture.captured import Captured
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_clients(capture: Captured, title: str) -> Picture:
    """Of each client of a capture, from its first SYN: not connected, in the accept queue, answered.

    Args:
        capture: of clients that connect, ask and are answered.
        title: the finding.
    """
    figure, axes = style.new_figure(3.4)
    clients = list(each_client(capture))
    for number, (syns, connected_s, answered_s) in enumerate(clients, 1):
        axes.plot([syns[0], connected_s], [number] * 2, color=style.VERMILION, linewidth=3)
        axes.plot([connected_s, answered_s], [number] * 2, color=style.SKY, linewidth=3)
        axes.plot(syns, [number] * len(syns), "|", color=style.BLACK, markersize=12)
        axes.plot(answered_s, number, "o", color=style.GREEN)
    axes.set_yticks(range(1, len(clients) + 1))
    axes.set_ylabel("client")
    axes.set_ylim(len(clients) + 0.6, 0.4)
    axes.set_xlabel("seconds after the first SYN")
    for x, text, colour in (
        (0.00, "| a SYN is sent", style.BLACK),
        (0.30, "not connected", style.VERMILION),
        (0.48, "in the accept queue", style.BLUE),
        (0.72, "response", style.GREEN),
    ):
        axes.text(x, 1.02, text, color=colour, transform=axes.transAxes, va="bottom")
    axes.set_title(title, fontsize=style.TITLE_SIZE, loc="left", color=style.INK, pad=24)
    style.add_note(figure, origin(capture.tier))
    words = [f"client {n}: {len(s)} SYN, response after {a - s[0]:.2f} s" for n, (s, _, a) in enumerate(clients, 1)]
    return Picture(figure, f"{title}. {'; '.join(words)}.")
