"""Knobs of a section's panel: what is measured anew is measured when the slider is let go, not on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipywidgets import IntSlider, SelectionSlider


def slider(stops: Sequence[int], value: int, words: str) -> Any:
    """A slider over whole numbers.

    Args:
        stops: a range, or the numbers themselves.
        value: where it begins.
        words: beside it: what it is, with the unit.
    """
    if isinstance(stops, range):
        ends = {"min": stops[0], "max": stops[-1], "step": stops.step}
        return IntSlider(value, **ends, description=words, continuous_update=False)
    return SelectionSlider(options=list(stops), value=value, description=words, continuous_update=False)


def distance(value: int = 40) -> Any:
    """The slider of a lab's round-trip time, from 5 to 200 ms."""
    return slider(range(5, 205, 5), value, "RTT, ms")
