"""An exercise: a task, a starter, a check, hints, and an explained solution.

All of it is data, so that the tests can run every solution, every starter and every mistake that was thought of.
"""

from __future__ import annotations

import ast
import html
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any

from book.learn.grading import Verdict, check_deadline, judge_apart, judge_here
from book.learn.inline import as_html
from book.learn.progress import progress
from labkit.errors import InvalidValue
from labkit.lab import tier_here
from labkit.network.tiers import LOOPBACK, NEEDS, allows

DEADLINE_S = 20.0


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that a learner would give, and words of the reason that the check must give for it."""

    source: str
    reason: str


@dataclass(frozen=True)
class Wording:
    """What an exercise says.

    Attributes:
        task: what to do, in Markdown. It stands in the notebook, too, where it can be read without a kernel.
        starter: the cell that the learner begins with. Its last statement defines the answer: a function, or a variable
            whose value is ``...``.
        solution: a cell that solves it, defining the same name.
        explanation: why it does; as the hints, one paragraph of Markdown.
        hints: two or more, each giving away a little more.
        mistakes: wrong answers, for the tests.
    """

    task: str
    starter: str
    solution: str
    explanation: str
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, repr=False)
class Exercise:
    """One exercise.

    Attributes:
        id: "https.tls12.count": the section's id and a name.
        judge: takes the answer, raises Wrong with the reason; what it returns is said to who is right. It judges
            behaviour: it runs the answer on a lab and looks at the wire, the kernel and the response. For a function it
            runs in a process of its own, so it must be a function of a module.
        source: what it says, or a function that finds it when somebody looks.
        deadline_s: how long judging a function may take, seconds.
        needs: None, "kernel" or "sysctls": what its lab must have (see ``Lab.can``). Elsewhere it is not judged.

    Raises:
        InvalidValue: a deadline that is none, or a need that is none.
    """

    id: str
    judge: Callable[[Any], str | None]
    source: Wording | Callable[[], Wording]
    deadline_s: float = DEADLINE_S
    needs: str | None = None

    def __post_init__(self) -> None:
        check_deadline(self.deadline_s)
        if self.needs is not None:
            allows(LOOPBACK, self.needs)  # InvalidValue

    @cached_property
    def wording(self) -> Wording:
        """Task, starter, solution and all else that it says."""
        return self.source if isinstance(self.source, Wording) else self.source()

    @property
    def solution(self) -> str:
        """A cell that solves it."""
        return self.wording.solution

    @property
    def name(self) -> str:
        """The name that the learner's cell defines."""
        last = ast.parse(self.wording.starter).body[-1]
        if isinstance(last, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return last.name
        if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Name):
            return last.targets[0].id
        raise InvalidValue(f"the starter of {self.id!r} must end in a function or in a variable")

    def check(self, answer: Any) -> Verdict:
        """Judge an answer. Never raises and never hangs, whatever the answer is; a right one is kept as progress."""
        if self.unavailable:
            return Verdict("not available here", self.unavailable)
        begun = answer_of(self.wording.starter, self.name)
        if _untouched(answer, begun):
            return Verdict("not attempted", f"change {self.name!r} and run the cell again")
        if callable(begun):
            if not callable(answer):
                return Verdict("wrong", f"{self.name} is {answer!r}: give a function")
            verdict = judge_apart(self.judge, answer, self.deadline_s)
        else:
            verdict = judge_here(self.judge, answer)
        if verdict:
            progress().solve(self.id)
        return verdict

    def hint(self, number: int = 1) -> str:
        """A hint; each gives away a little more than the one before. Raises InvalidValue for one that is not there."""
        if not isinstance(number, int) or not 1 <= number <= len(self.wording.hints):
            raise InvalidValue(f"hint({number!r}): there are {len(self.wording.hints)}, counted from 1")
        return self.wording.hints[number - 1]

    @property
    def unavailable(self) -> str:
        """Why this machine cannot judge it; "" where it can."""
        tier = tier_here()
        if self.needs is None or allows(tier, self.needs):
            return ""
        return (
            f"it needs the tier {NEEDS[self.needs]!r}, and this machine's is {tier!r} (labkit doctor). "
            "Read the task, the hints and the solution"
        )

    def __repr__(self) -> str:
        return f"<Exercise {self.id}: check({self.name}), hint(1) to hint({len(self.wording.hints)}), solution>"

    def _repr_html_(self) -> str:
        notice = f"<p>Not available here: {html.escape(self.unavailable)}.</p>" if self.unavailable else ""
        return notice + folded(self.wording.hints, self.solution, self.wording.explanation)


def folded(hints: tuple[str, ...], solution: str, explanation: str) -> str:
    """Hints and solution as lines to click on; plain HTML, so it also works in a notebook that is only read."""
    parts = [(f"Hint {number}", f"<p>{as_html(hint)}</p>") for number, hint in enumerate(hints, 1)]
    parts.append(("Solution", f"<pre>{html.escape(solution)}</pre><p>{as_html(explanation)}</p>"))
    return "".join(
        f"<details style='margin:0.2em 0'><summary style='cursor:pointer'>{title}</summary>"
        f"<div style='margin:0.2em 1.2em'>{body}</div></details>"
        for title, body in parts
    )


def answer_of(source: str, name: str) -> Any:
    """Run a cell in a namespace of its own and return what it defines under a name."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace[name]


def _untouched(answer: Any, begun: Any) -> bool:
    """Whether the learner has not begun: the starter's own value, or a function or class that does the same."""
    if answer is None or answer is ...:
        return True
    if inspect.isfunction(answer) and inspect.isfunction(begun):
        return _fingerprint(answer.__code__) == _fingerprint(begun.__code__)
    if inspect.isclass(answer) and inspect.isclass(begun):
        return _methods(answer) == _methods(begun)
    return type(answer) is type(begun) and bool(answer == begun)


def _methods(answer: type) -> dict[str, tuple[Any, ...]]:
    return {name: _fingerprint(each.__code__) for name, each in vars(answer).items() if inspect.isfunction(each)}


def _fingerprint(code: CodeType) -> tuple[Any, ...]:
    """What a function does, whatever file and line it stands in."""
    constants = tuple(_fingerprint(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants
