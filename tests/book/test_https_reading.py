"""What the chapter on HTTPS reads out of a capture, on recorded ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import book.https.reading as reading
from book.https.basics import segments
from labkit import MeasurementFailed
from labkit.capture.captured import Captured
from labkit.recorded import recall

RESUMED = "https.tls12/second_connection, True, False, 40"  # with Nagle's algorithm: four round trips instead of three
FULL = "https.tls12/second_connection, False, False, 40"


def test_the_connection_and_its_messages_once_each() -> None:
    capture = recall(FULL)
    assert reading.opened(capture)[0].label.startswith("SYN")
    names = [message.name for _, message in reading.messages_of(capture)]
    assert names.count("ClientHello") == names.count("Certificate") == 1
    assert reading.round_trips(capture) == sum(reading.timeline_of(capture).whole_rtts().values()) == 4


def test_what_opens_no_connection() -> None:
    whole = recall(FULL)
    late = Captured(whole.frames[6:], hosts=whole.hosts, at=whole.at, tier=whole.tier, secrets="")
    with pytest.raises(MeasurementFailed, match="no connection was opened"):
        reading.opened(late)


@pytest.mark.parametrize(("kilobytes", "count"), [(4, 2), (14, 2), (60, 4)])
def test_the_last_byte(kilobytes: int, count: int) -> None:
    capture = recall(f"https.basics/response_of, {kilobytes}")
    assert reading.to_last_byte(capture) == count
    total, later, fullest = segments(capture, 40)
    assert (fullest, total - later) == (1448, min(total, 10))


@pytest.mark.parametrize("shape", [lambda c: c, lambda c: (c, "session"), lambda c: {"first": (c, 200)}, lambda c: [c]])
def test_run_again_where_there_are_more_than_enough(shape: Any) -> None:
    runs: Iterator[Captured] = iter([recall("https.basics/response_of, 60"), recall(FULL)])
    made = reading.in_few(lambda: shape(next(runs)), enough=2)
    assert made is not None
    assert next(runs, None) is not None  # the first one was enough


def test_run_again_until_the_fewest_have_come_twice() -> None:
    runs = iter([recall(FULL), recall("https.basics/response_of, 4"), recall("https.basics/response_of, 14")])
    assert reading.round_trips(reading.in_few(lambda: next(runs))) == 2
    assert next(runs, None) is None
