"""Predictions: a number, a choice or an order, given before the measurement and shown beside it afterwards.

In a notebook each is a widget; without a browser the same is ``question.guess(3)`` or ``predict("https.race.tcp", 3)``.
Skipping is fine. What was predicted is kept, so it is still there after a reload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from book.learn.progress import progress
from labkit.errors import InvalidValue

_asked: dict[str, Prediction] = {}


class Prediction:
    """A question to which the answer is measured later.

    Args:
        id: "https.race.tls1.3": the section's id and a name.
        question: what to predict.
    """

    def __init__(self, id: str, question: str) -> None:
        self.id = id
        self.question = question
        _asked[id] = self

    def __repr__(self) -> str:
        value = self.value
        said = "not predicted yet" if value is None else f"you predicted {self.words(value)}"
        return f"{self.question} ({self.kind}; {said}) To answer without a browser: predict({self.id!r}, …)"

    @property
    def kind(self) -> str:
        """What kind of value it takes, for people."""
        raise NotImplementedError

    @property
    def value(self) -> Any:
        """What was predicted, None for nothing."""
        kept = progress().prediction(self.id)
        try:
            return None if kept is None else self.clean(kept)
        except InvalidValue:  # the section asked something else when this was kept
            return None

    def guess(self, value: Any) -> None:
        """Predict; None takes it back. Raises InvalidValue for a value that the question does not have."""
        progress().predict(self.id, None if value is None else self.clean(value))

    def clean(self, value: Any) -> Any:
        """The value as it is kept. Raises InvalidValue."""
        raise NotImplementedError

    def words(self, value: Any) -> str:
        """The value as people say it."""
        raise NotImplementedError

    def is_right(self, measured: Any) -> bool:
        """Whether the prediction is what was measured."""
        return bool(self.value == measured)

    def compare(self, measured: Any) -> str:
        """The prediction beside the measurement, in a sentence."""
        found = f"Measured: {self.words(measured)}."
        if self.value is None:
            return f"{found} You made no prediction."
        return f"{found} You predicted {self.words(self.value)}{', and were right' if self.is_right(measured) else ''}."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return Panel(self)._repr_mimebundle_(**options)


class Number(Prediction):
    """A number.

    Args:
        id, question: as in Prediction.
        unit: "round trips"; stands behind the number.
        within: how far off still counts as right, as a part of the measured value: 0.2 for a fifth.
    """

    def __init__(self, id: str, question: str, unit: str = "", *, within: float = 0.0) -> None:
        super().__init__(id, question)
        self.unit = unit
        self.within = within

    @property
    def kind(self) -> str:
        return f"a number of {self.unit}" if self.unit else "a number"

    def clean(self, value: Any) -> float | int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidValue(f"{value!r} for {self.id!r}: give {self.kind}, or None to skip it")
        return int(value) if float(value).is_integer() else float(value)

    def words(self, value: float) -> str:
        return f"{value:.4g} {self.unit}".rstrip()

    def is_right(self, measured: float) -> bool:
        value = self.value
        return value is not None and bool(abs(value - measured) <= self.within * abs(measured))


class Choice(Prediction):
    """One of several options.

    Args:
        id, question: as in Prediction.
        options: two or more.
    """

    def __init__(self, id: str, question: str, options: Sequence[str]) -> None:
        super().__init__(id, question)
        self.options = tuple(options)

    @property
    def kind(self) -> str:
        return "one of " + ", ".join(repr(option) for option in self.options)

    def clean(self, value: Any) -> str:
        if value not in self.options:
            raise InvalidValue(f"{value!r} for {self.id!r}: give {self.kind}, or None to skip it")
        return str(value)

    def words(self, value: str) -> str:
        return repr(value)


class Order(Prediction):
    """An order of all items, the first first.

    Args:
        id, question: as in Prediction.
        items: two or more, in an order that gives nothing away.
    """

    def __init__(self, id: str, question: str, items: Sequence[str]) -> None:
        super().__init__(id, question)
        self.items = tuple(items)

    @property
    def kind(self) -> str:
        return "a list of all of " + ", ".join(self.items)

    def clean(self, value: Any) -> list[str]:
        if not isinstance(value, (list, tuple)) or sorted(map(str, value)) != sorted(self.items):
            raise InvalidValue(f"{value!r} for {self.id!r}: give {self.kind}, each once, or None to skip it")
        return [str(item) for item in value]

    def words(self, value: Sequence[str]) -> str:
        return " < ".join(value)

    def is_right(self, measured: Sequence[str]) -> bool:
        return bool(self.value == list(measured))


class Panel:
    """Several predictions, which a notebook shows as one panel of widgets."""

    def __init__(self, *questions: Prediction) -> None:
        self.questions = questions

    def __repr__(self) -> str:
        return "\n".join(repr(question) for question in self.questions)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from book.learn.panel import mimebundle

        return mimebundle(self.questions)


def ask(*questions: Prediction) -> Panel:
    """Several predictions as one panel: on the last line of a cell."""
    return Panel(*questions)


def predict(id: str, value: Any) -> None:
    """Answer a question of this notebook without its widget; None skips it.

    Raises:
        InvalidValue: a question that no cell has asked yet, or a value that it does not have.
    """
    if id not in _asked:
        known = ", ".join(_asked) or "none yet"
        raise InvalidValue(f"prediction {id!r}: run the cell that asks it first. Asked so far: {known}")
    _asked[id].guess(value)
