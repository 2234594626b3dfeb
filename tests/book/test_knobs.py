"""Sliders of the panels: they measure when they are let go, over the numbers that were asked for."""

from __future__ import annotations

from ipywidgets import IntSlider, SelectionSlider

from book.learn.knobs import distance, slider


def test_a_range_is_a_slider_of_its_own_ends_and_step() -> None:
    made = slider(range(0, 21_000, 1000), 3000, "body, bytes")
    assert isinstance(made, IntSlider)
    assert (made.min, made.max, made.step, made.value) == (0, 20_000, 1000, 3000)
    assert made.description == "body, bytes"
    assert not made.continuous_update


def test_numbers_are_what_can_be_chosen() -> None:
    made = slider([5, 10, 40], 10, "RTT, ms")
    assert isinstance(made, SelectionSlider)
    assert (made.options, made.value, made.continuous_update) == ((5, 10, 40), 10, False)


def test_the_distance() -> None:
    assert (distance().min, distance().max, distance().step, distance().value) == (5, 200, 5, 40)
