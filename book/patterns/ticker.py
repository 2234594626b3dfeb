"""The job that runs through the chapter: somebody produces events, and many want to know, each soon and each once.

::

    ticker = Ticker(events=20, every_s=0.05)
    with ticker:
        ticker.after(3)                       # the events behind number 3, now
        ticker.wait_after(3, timeout_s=20)    # the same, when there is one
    received = Received()                     # a client's: received.note(event.number)
    received.delays_s(ticker)                 # from its making to its coming, for each event

What the patterns cost is read from the packets: ``cost_of(capture)``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from labkit import InvalidValue
from labkit.capture.captured import Captured

TEAMS = ("home", "away")


@dataclass(frozen=True)
class Event:
    """A goal.

    Attributes:
        number: counted from 1, without a gap.
        text: "home 1:0".
        made_s: when it was made, on the monotonic clock.
    """

    number: int
    text: str
    made_s: float


class Ticker:
    """Makes events at a steady pace, from the beginning of a block to its end or to the last event.

    Args:
        events: how many at most.
        every_s: from one to the next, seconds.

    Raises:
        InvalidValue: numbers that cannot be.
    """

    def __init__(self, events: int = 20, every_s: float = 0.05) -> None:
        if events < 1 or not every_s > 0:
            raise InvalidValue(f"events={events!r}, every_s={every_s!r}: give one event or more, and a pace above 0")
        self.every_s, self.planned = every_s, events
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._make, name="ticker", daemon=True)

    def _make(self) -> None:
        goals = dict.fromkeys(TEAMS, 0)
        begun = time.monotonic()
        for number in range(1, self.planned + 1):
            if self._end.wait(max(0.0, begun + number * self.every_s - time.monotonic())):
                return
            team = TEAMS[number % 3 == 0]
            goals[team] += 1
            with self._changed:
                self.events.append(Event(number, f"{team} {goals['home']}:{goals['away']}", time.monotonic()))
                self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        with self._changed:
            self._changed.notify_all()

    @property
    def complete(self) -> bool:
        """Whether all planned events have been made."""
        return len(self.events) == self.planned

    def after(self, number: int) -> list[Event]:
        """The events behind this number: all with 0."""
        return self.events[number:]

    def wait_after(self, number: int, timeout_s: float) -> list[Event]:
        """As ``after``, and wait for one at most so long, or until the ticker ends."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > number or self._end.is_set(), timeout_s)
            return self.events[number:]


def encode(events: Iterable[Event]) -> bytes:
    """Events as JSON, for answers and WebSocket messages: ``[{"number": 1, "text": "home 1:0"}]``."""
    return json.dumps([{"number": event.number, "text": event.text} for event in events]).encode()


def decode(body: bytes | str) -> list[int]:
    """The numbers of the events in what ``encode`` made."""
    return [event["number"] for event in json.loads(body)]


class Received:
    """What one client has heard: which event came when, and how often."""

    def __init__(self) -> None:
        self.came_s: list[tuple[int, float]] = []

    def note(self, *numbers: int) -> None:
        """These have come now."""
        now = time.monotonic()
        self.came_s += [(number, now) for number in numbers]

    @property
    def last(self) -> int:
        """The largest number that has come, 0 where none has."""
        return max((number for number, _ in self.came_s), default=0)

    @property
    def numbers(self) -> list[int]:
        """In the order in which they came."""
        return [number for number, _ in self.came_s]

    def delays_s(self, ticker: Ticker) -> list[float]:
        """From the making of each event to its coming, seconds."""
        made = {event.number: event.made_s for event in ticker.events}
        return [came - made[number] for number, came in self.came_s]


@dataclass(frozen=True)
class Cost:
    """What a pattern has put on the wire.

    Attributes:
        connections: how many were opened.
        requests: HTTP requests, the one that becomes a WebSocket included.
        packets: both directions, with all that TCP adds.
        bytes: of these packets, headers from Ethernet on included.
    """

    connections: int
    requests: int
    packets: int
    bytes: int


def cost_of(capture: Captured, port: int = 80) -> Cost:
    """Count what belongs to a server's port."""
    mine = [packet for packet in capture.messages if packet.flow.server_port == port]
    opened = {packet.flow for packet in mine if packet.flags == {"SYN"} and not packet.retransmission}
    requests = [
        message
        for packet in mine
        for message in packet.messages
        if message.first == packet.index and message.role == "request" and message.protocol == "HTTP"
    ]
    return Cost(len(opened), len(requests), len(mine), sum(len(packet.transit.data) for packet in mine))


def missing(numbers: Sequence[int], ticker: Ticker) -> list[int]:
    """Which events of a ticker have not come."""
    return sorted({event.number for event in ticker.events} - set(numbers))
