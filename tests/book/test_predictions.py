"""Predictions with and without their widgets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pytest

from book import Choice, Number, Order, Prediction, ask, predict, progress
from book.learn import panel as panels
from labkit.errors import InvalidValue


@pytest.fixture(autouse=True)
def nothing_predicted() -> Iterator[None]:
    yield
    progress().clear()


@pytest.fixture
def questions() -> list[Prediction]:
    return [
        Number("t.s.rtts", "How many?", "round trips"),
        Choice("t.s.who", "Who?", ["client", "server"]),
        Order("t.s.order", "In which order?", ["c", "a", "b"]),
    ]


def test_predicted_measured_compared(questions: list[Prediction]) -> None:
    rtts, who, order = questions
    assert rtts.compare(4) == "Measured: 4 round trips. You made no prediction."
    predict("t.s.rtts", 3)
    assert rtts.value == 3
    assert rtts.compare(4) == "Measured: 4 round trips. You predicted 3 round trips."
    predict("t.s.rtts", 4.0)
    assert rtts.compare(4) == "Measured: 4 round trips. You predicted 4 round trips, and were right."
    who.guess("server")
    assert who.compare("client") == "Measured: 'client'. You predicted 'server'."
    order.guess(("a", "b", "c"))
    assert order.compare(["a", "b", "c"]).endswith("You predicted a < b < c, and were right.")
    predict("t.s.rtts", None)
    assert rtts.value is None


def test_kept_for_the_next_kernel(questions: list[Prediction]) -> None:
    questions[0].guess(3)
    assert Number("t.s.rtts", "How many?", "round trips").value == 3
    # The section asks something else now: what was kept is no answer to it.
    assert Choice("t.s.rtts", "Which?", ["one", "two"]).value is None


def test_near_enough() -> None:
    time = Number("t.s.ms", "How long?", "ms", within=0.2)
    time.guess(100)
    assert time.is_right(120)
    assert not time.is_right(130)


@pytest.mark.parametrize("value", ["3", True, math.nan, math.inf, [3]])
def test_no_number(questions: list[Prediction], value: Any) -> None:
    with pytest.raises(InvalidValue, match=r"'t\.s\.rtts': give a number of round trips, or None"):
        questions[0].guess(value)


def test_values_that_the_question_does_not_have(questions: list[Prediction]) -> None:
    with pytest.raises(InvalidValue, match=r"'proxy' for 't\.s\.who': give one of 'client', 'server'"):
        questions[1].guess("proxy")
    for value in ("abc", ["a", "b"], ["a", "b", "b"], 3):
        with pytest.raises(InvalidValue, match="each once"):
            questions[2].guess(value)
    with pytest.raises(InvalidValue, match=r"run the cell that asks it first.*t\.s\.rtts"):
        predict("t.s.nothing", 1)


def test_the_widgets_keep_what_is_chosen(questions: list[Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    control = panels._control
    monkeypatch.setattr(panels, "_control", lambda question: built.append(control(question)) or built[-1])
    bundle = ask(*questions)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "predict('t.s.rtts', …)" in bundle["text/plain"]
    text, buttons, tags = built
    assert isinstance(text, ipywidgets.Text)
    text.value = "3"
    assert questions[0].value == 3
    text.value = "three"  # said beside it, and what was kept stays
    assert questions[0].value == 3
    text.value = ""
    assert questions[0].value is None
    buttons.value = "server"
    assert questions[1].value == "server"
    tags.value = ["a", "b", "c"]
    assert questions[2].value == ["a", "b", "c"]
    tags.value = ["a", "b"]  # one is being moved
    assert questions[2].value == ["a", "b", "c"]
