"""Streams, from segments made by hand."""

from __future__ import annotations

from labkit.capture.streams import Ranges, Segment, Stream


def test_ranges_return_what_is_new():
    ranges = Ranges()
    assert ranges.add(10, 20) == [(10, 20)]
    assert ranges.add(10, 20) == []
    assert ranges.add(15, 25) == [(20, 25)]
    assert ranges.add(30, 40) == [(30, 40)]
    assert ranges.add(0, 50) == [(0, 10), (25, 30), (40, 50)]
    assert ranges.add(-5, 0) == [(-5, 0)]
    assert ranges.add(7, 7) == []
    assert ranges.add(-5, 50) == []


def test_delivered_bytes_count_before_lost_ones():
    stream = Stream()
    assert stream.add(Segment(0, b"abc", 0, delivered=False)) is False
    assert stream.add(Segment(3, b"def", 1)) is False
    assert stream.add(Segment(0, b"abc", 2)) is True
    (chunk,) = stream.assemble()
    assert chunk.data == b"abcdef"
    assert chunk.packets(0, 3) == (2, 2)
    assert chunk.packets(2, 4) == (1, 2)


def test_gaps_separate_chunks():
    stream = Stream()
    for segment in (Segment(8, b"ij", 2), Segment(0, b"abc", 0), Segment(2, b"cd", 1)):
        stream.add(segment)
    first, second = stream.assemble()
    assert (first.start, first.data, second.start, second.data) == (0, b"abcd", 8, b"ij")
    assert first.packets(3, 4) == (1, 1)
