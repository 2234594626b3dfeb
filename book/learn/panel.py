"""Predictions as a panel of widgets: one line for each question, kept as soon as it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from book.learn.predictions import Choice, Number, Order, Prediction
from labkit.errors import InvalidValue

WIDE = widgets.Layout(width="100%")


def mimebundle(questions: Sequence[Prediction]) -> dict[str, Any]:
    """The questions for a notebook. A front end without widgets shows the text, with the way to answer them."""
    box = widgets.VBox([_line(question) for question in questions])
    return {**box._repr_mimebundle_(), "text/plain": "\n".join(repr(question) for question in questions)}


def _line(question: Prediction) -> widgets.Widget:
    status = widgets.Label()
    control = _control(question)

    def say() -> None:
        value = question.value
        status.value = "skipped so far" if value is None else f"kept: {question.words(value)}"

    def keep(change: dict[str, Any]) -> None:
        try:
            question.guess(_value(question, change["new"]))
        except InvalidValue as exc:
            status.value = f"not kept: {exc}"
        else:
            say()

    control.observe(keep, "value")
    say()
    label = widgets.Label(question.question, layout=WIDE)
    return widgets.VBox([label, widgets.HBox([control, status])], layout=WIDE)


def _control(question: Prediction) -> widgets.Widget:
    value = question.value
    if isinstance(question, Choice):
        return widgets.ToggleButtons(options=question.options, value=value)
    if isinstance(question, Order):
        # Tags are dragged into their order; one that is taken out can be typed in again.
        return widgets.TagsInput(
            value=value or list(question.items), allowed_tags=list(question.items), allow_duplicates=False
        )
    assert isinstance(question, Number)
    text = "" if value is None else f"{value:g}"
    return widgets.Text(value=text, placeholder=question.kind, continuous_update=False)


def _value(question: Prediction, raw: Any) -> Any:
    """What a widget holds as the value of a prediction; None for nothing."""
    if not isinstance(question, Number):
        return raw
    if not raw.strip():
        return None
    try:
        return float(raw.replace(",", "."))
    except ValueError:
        return raw
