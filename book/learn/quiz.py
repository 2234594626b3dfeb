"""Quizzes: two or three questions, with a reply to every option. Readable without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from book.learn.inline import as_html
from labkit.errors import InvalidValue

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Option:
    """One option: its text, the reply to who chooses it, and whether it is right."""

    text: str
    reply: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with one right option. Raises InvalidValue where there is none, or more than one."""

    text: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        right = sum(option.right for option in self.options)
        if right != 1 or not 2 <= len(self.options) <= len(LETTERS):
            raise InvalidValue(f"{self.text!r} has {len(self.options)} options, {right} of them right: one must be")


class Quiz:
    """The questions at the end of a section.

    A notebook shows each option as a line to click on, with the reply folded in it: plain HTML, so it also works in
    a notebook that is only read.

    Args:
        questions: what it asks.
        read: finds them when somebody looks, instead.
    """

    def __init__(self, *questions: Question, read: Callable[[], Iterable[Question]] | None = None) -> None:
        self._read = read or (lambda: questions)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """What it asks."""
        return tuple(self._read())

    def answer(self, number: int, letter: str) -> str:
        """The reply to an option: ``quiz.answer(1, "b")``. Raises InvalidValue for one that is not there."""
        if not isinstance(number, int) or not 1 <= number <= len(self.questions):
            raise InvalidValue(f"question {number!r}: there are {len(self.questions)}, counted from 1")
        options = self.questions[number - 1].options
        if letter not in LETTERS[: len(options)] or len(letter) != 1:
            raise InvalidValue(f"option {letter!r}: question {number} has {', '.join(LETTERS[: len(options)])}")
        option = options[LETTERS.index(letter)]
        return f"{'Right' if option.right else 'No'}. {option.reply}"

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, 1):
            lines.append(f"{number}. {question.text}")
            lines += [f"   {letter}) {option.text}" for letter, option in zip(LETTERS, question.options, strict=False)]
        return "\n".join([*lines, 'Answer with quiz.answer(1, "a").'])

    def _repr_html_(self) -> str:
        parts = []
        for number, question in enumerate(self.questions, 1):
            parts.append(f"<p><b>{number}. {as_html(question.text)}</b></p>")
            for letter, option in zip(LETTERS, question.options, strict=False):
                verdict = "✓ Right." if option.right else "✗ No."
                parts.append(
                    f"<details style='margin:0.3em 1.5em'><summary style='cursor:pointer'>{letter}) "
                    f"{as_html(option.text)}</summary>"
                    f"<p style='margin:0.2em 1.2em'><b>{verdict}</b> {as_html(option.reply)}</p></details>"
                )
        return "".join(parts)
