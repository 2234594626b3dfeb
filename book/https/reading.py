"""What a capture of one request says: its connection, its moments, its messages, its round trips.

A capture may hold the last packets of an earlier connection, which come late on a busy machine. They are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected, Message
from labkit.errors import MeasurementFailed
from labkit.handshakes import fewest
from labkit.handshakes.phases import Timeline, begins, connections, steps, timeline

T = TypeVar("T")


def opened(capture: Captured) -> list[Dissected]:
    """The packets of the connection that was opened last.

    Raises:
        MeasurementFailed: none was opened while it was captured.
    """
    found = [group for group in connections(capture.messages) if begins(group[0])]
    if not found:
        raise MeasurementFailed("no connection was opened: capture from before the client's first packet")
    return found[-1]


def timeline_of(capture: Captured) -> Timeline:
    """The moments of the one request that the connection carried. Raises MeasurementFailed as ``timeline`` does."""
    return timeline(opened(capture))


def messages_of(capture: Captured) -> list[tuple[Dissected, Message]]:
    """The connection's messages, each once, with the packet in which it begins."""
    return [
        (packet, message) for packet in opened(capture) for message in packet.messages if message.first == packet.index
    ]


def round_trips(capture: Captured) -> int:
    """From the client's first packet to the first byte of the response, counted by cause and effect."""
    return sum(timeline_of(capture).whole_rtts().values())


def to_last_byte(capture: Captured) -> int:
    """From the client's first packet to the last byte of the server's last response over TCP without TLS."""
    packets = opened(capture)
    answers = [s for p, s in zip(packets, steps(packets), strict=True) if not p.from_client and p.payload]
    return max(answers) // 2


def in_few(run: Callable[[], T], enough: Any = None) -> T:
    """Run it again where that may bring fewer round trips: a machine that is held up can only add some.

    Args:
        run: one run, from the beginning. Its result is a capture, or holds captures.
        enough: round trips that there must be: a number, or several where there are several captures. Without it,
            a run is made until the fewest have come twice.

    Returns:
        the run with the fewest.
    """
    wanted = [enough] if isinstance(enough, int) else enough
    return fewest(run, lambda made: [round_trips(capture) for capture in _captures(made)], wanted)


def _captures(made: Any) -> Iterator[Captured]:
    if isinstance(made, Mapping):
        made = list(made.values())
    if isinstance(made, (tuple, list)):
        for each in made:
            yield from _captures(each)
    elif isinstance(made, Captured):
        yield made
