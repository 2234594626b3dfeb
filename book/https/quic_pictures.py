"""The picture of the section "QUIC (HTTP/3)"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.https.quic import first_flight_bytes
from labkit.handshakes.phases import Timeline
from labkit.network.tiers import origin
from labkit.plots import Picture, style

LIMIT = 3 * 1200  # bytes (RFC 9000, section 8.1)
LOOKS = ((style.VERMILION, "o-", 8), (style.BLUE, "s-", -16))  # colour, line, where the words stand


def plot_edge(requests: Mapping[str, Sequence[Timeline]], tier: str, title: str) -> Picture:
    """The server's first flight against the number of intermediates, with the limit and the round trips.

    Args:
        requests: by kind of keys, one request for each number of intermediates, from none on.
        tier: of the lab.
        title: the finding.
    """
    figure, axes = style.new_figure(3.6)
    words = []
    for (key, lines), (colour, look, below) in zip(requests.items(), LOOKS, strict=True):
        sizes = [first_flight_bytes(line.packets) for line in lines]
        for intermediates, (size, line) in enumerate(zip(sizes, lines, strict=True)):
            whole = sum(line.whole_rtts().values())
            words.append(f"{key} with {intermediates}, {size} bytes: {whole}")
            axes.annotate(
                f"{whole} RTT",
                (intermediates, size),
                (0, below),
                textcoords="offset points",
                ha="center",
                fontsize=style.SIZE,
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        axes.plot(range(len(sizes)), sizes, look, color=colour, label=key)
    axes.axhline(LIMIT, color=style.GREY, linestyle="--", linewidth=1)
    axes.text(-0.15, LIMIT + 80, "limit: 3 × 1200 bytes", fontsize=style.SIZE, color=style.GREY)
    axes.set(xticks=range(len(sizes)), xlim=(-0.2, len(sizes) - 0.7), ylim=(0, 6400))
    axes.set_xlabel("intermediates in the chain", fontsize=style.SIZE, color=style.INK)
    axes.set_ylabel("ServerHello to Finished, bytes", fontsize=style.SIZE, color=style.INK)
    axes.legend(fontsize=style.SIZE, frameon=False, loc="upper left")
    style.set_title(axes, title)
    style.add_note(figure, f"{origin(tier, 'Measured')} RTT: round trips to the first byte.")
    return Picture(figure, f"Intermediates, bytes of the first flight, round trips. {'; '.join(words)}.")
