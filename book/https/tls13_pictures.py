"""The picture of the section "TCP + TLS 1.3"."""

from __future__ import annotations

from collections.abc import Mapping

from book.https.reading import opened, round_trips
from labkit.capture.captured import Captured
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_readable(captures: Mapping[str, Captured], tier: str, title: str) -> Picture:
    """The bytes of each server's handshake: what anybody can read, and what is encrypted.

    Args:
        captures: by their words, each of one request.
        tier: of the lab that they were made on.
        title: the finding.
    """
    figure, axes = style.new_figure(2.7)
    words = []
    for row, (name, capture) in enumerate(captures.items()):
        clear, hidden = _bytes(capture)
        first = row == 0
        axes.barh(row, clear, color=style.ORANGE, label="anybody can read it" if first else None)
        axes.barh(row, hidden, left=clear, color=style.GREY, label="encrypted" if first else None)
        said = f"{round_trips(capture)} round trips"
        axes.text(clear + hidden, row, f"  {said}", va="center", fontsize=style.SIZE, color=style.INK)
        words.append(f"{name}: {clear} bytes readable, {hidden} encrypted, {said}")
    axes.set_yticks(range(len(captures)), list(captures))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * axes.dataLim.x1)
    axes.set_xlabel("bytes of the server's handshake messages, to Finished", fontsize=style.SIZE)
    axes.legend(loc="lower right", fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(tier))
    return Picture(figure, f"{title}. " + "; ".join(words) + ".")


def _bytes(capture: Captured) -> tuple[int, int]:
    """Of the server's handshake messages up to Finished: bytes in the clear, bytes encrypted."""
    clear = hidden = 0
    for packet in opened(capture):
        for message in packet.messages:
            if not packet.from_client and message.protocol == "TLS" and packet.index == message.last:
                clear += message.length if message.level == "" else 0
                hidden += message.length if message.level != "" else 0
                if message.name == "Finished":
                    return clear, hidden
    return clear, hidden
