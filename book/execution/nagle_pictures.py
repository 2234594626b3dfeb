"""The pictures of the section "Nagle's algorithm": ways to send a request, a trickle of lines, responses over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.execution.nagle import Exchange, data_of
from labkit.capture.captured import Captured
from labkit.network.tiers import origin
from labkit.plots import Picture, style


def plot_ways(found: Mapping[str, Sequence[Exchange]], rtt_ms: float, title: str, tier: str) -> Picture:
    """The last request of each way: what the server's timer took of it, and the rest.

    Args:
        found: by way, the requests of a connection.
        rtt_ms: of the lab; dotted lines stand at round trips.
        title: the finding.
        tier: of the lab, or "recorded …".
    """
    figure, axes = style.new_figure(3.4)
    words = []
    for place, (name, exchanges) in enumerate(found.items()):
        last = exchanges[-1]
        timer_ms = last.ack_kept_ms if last.stalled else 0
        trips_ms = last.total_ms - timer_ms
        axes.barh(place, trips_ms, color=style.BLUE)
        axes.barh(place, timer_ms, left=trips_ms, color=style.ORANGE, hatch="//")
        said = f"{len(last.segments)} segment{'s' * (len(last.segments) > 1)}, "
        said += f"{last.round_trips} RTT" + f" + {timer_ms:.0f} ms" * last.stalled
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(last.total_ms + 1, place, said, va="center", color=style.INK, fontsize=9, bbox=box)
        words.append(f"{name}: {said}, {last.total_ms:.0f} ms")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    for trip in (1, 2):
        axes.axvline(trip * rtt_ms, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.5 * max(exchanges[-1].total_ms for exchanges in found.values()))
    axes.set_xlabel("ms from the request's first segment to the response; dotted: round trips")
    style.set_title(axes, title)
    style.add_note(figure, f"Request 4 of a connection. {origin(tier)}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_trickle(paced: Mapping[str, Captured], rtt_ms: float, title: str) -> Picture:
    """A dot for each segment of a program that only sends, when it left.

    Args:
        paced: the capture, by what the socket was set to.
        rtt_ms: of the lab.
        title: the finding.
    """
    figure, axes = style.new_figure(2.5)
    words, tiers = [], []
    for place, (name, capture) in enumerate(paced.items()):
        segments = data_of(capture)
        start_ns = segments[0].transit.time_ns
        times = [(packet.transit.time_ns - start_ns) / 1e6 for packet in segments]
        areas = [max(9, packet.payload / 2) for packet in segments]
        colour = (style.BLUE, style.VERMILION)[place]
        axes.scatter(times, [place] * len(times), s=areas, color=colour, alpha=0.7)
        size = sum(len(packet.transit.data) for packet in segments)
        words.append(f"{name}: {len(segments)} segments, {size:,} bytes")
        axes.text(0, place - 0.3, words[-1], fontsize=9, color=style.INK)
        tiers.append(capture.tier)
    axes.set_yticks([])
    axes.set_ylim(1.6, -0.7)
    axes.set_xlabel("ms; a dot for each segment, its area for its payload")
    style.set_title(axes, title)
    style.add_note(figure, f"RTT {rtt_ms:g} ms. Bytes with all headers. {origin(tiers[-1])}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")


def plot_responses(
    responses: Mapping[str, Sequence[float]], rates: Mapping[str, float], title: str, tier: str
) -> Picture:
    """The responses of two connections, counted over time.

    Args:
        responses: when each came, milliseconds.
        rates: requests a second.
        title: the finding.
        tier: of the lab, or "recorded …".
    """
    figure, axes = style.new_figure(2.8)
    words = []
    for colour, (name, times) in zip((style.BLUE, style.VERMILION), responses.items(), strict=True):
        after = [time_ms - times[0] for time_ms in times]
        axes.step(after, range(1, len(times) + 1), where="post", color=colour, linewidth=2)
        words.append(f"{name}: {rates[name]:.0f} requests a second")
        axes.text(after[-1], len(times) + 3, words[-1], ha="right", color=style.INK)
    axes.set_ylim(0, 115)
    axes.set_xlabel("ms after the first response")
    axes.set_ylabel("responses so far")
    style.set_title(axes, title)
    style.add_note(figure, f"One connection, one request after the other. {origin(tier)}")
    return Picture(figure, f"{title}. {'; '.join(words)}.")
