"""What a section asks, as text: the Markdown file beside its module, read by people first.

::

    # Title of the section
    ## name                          an exercise: its task, and then
    ### Starter                      a fence with the cell that the learner begins with
    ### Hints                        a numbered list, two or more
    ### Solution                     a fence, and why it is right
    ### Mistake: words               a fence, and in the heading words of the reason that the check must give
    ### Lazy solution: words         likewise: the cheapest code that looks right
    ## Trace                         the hidden trace: ### Hints, and ### Explanation
    ## Quiz
    ### Question?                    - [x] the right option | reply
                                     - [ ] another | reply

The module adds what is no text: ``TEXT = Text(__file__)``, ``COUNT = TEXT.exercise("count", judge)`` for each, and
``TEXT.trace(packets, blanks)``. The file is read when somebody looks: judging an answer does not need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from book.learn.exercise import DEADLINE_S, Exercise, Mistake, Wording
from book.learn.quiz import Option, Question, Quiz
from book.learn.trace import Blank, HiddenTrace
from labkit.errors import InvalidValue

if TYPE_CHECKING:
    from markdown_it.token import Token

    from labkit.capture.messages import Dissected

WRONG = ("Mistake", "Lazy solution")
PARTS = ("Starter", "Hints", "Solution", *WRONG)
TRACE, QUIZ = "Trace", "Quiz"
RIGHT, OTHER, REPLY = "[x] ", "[ ] ", " | "


@dataclass(frozen=True)
class _Part:
    """A heading and the blocks below it, up to the next heading."""

    heading: str
    level: int
    line: int
    end: int
    blocks: Sequence[Token]


class Text:
    """The text of one section.

    Args:
        module: file of the section's module: the text lies beside it, with the ending ``.md``. Its folder and name
            make the section's id.

    Raises:
        InvalidValue: by whatever reads the text: it is malformed, with file and line and what was expected.
    """

    def __init__(self, module: str | Path) -> None:
        self.path = Path(module).with_suffix(".md")
        self.id = f"{self.path.parent.name}.{self.path.stem}"

    def exercise(
        self,
        name: str,
        judge: Callable[[Any], str | None],
        *,
        deadline_s: float = DEADLINE_S,
        needs: str | None = None,
    ) -> Exercise:
        """The exercise below the heading ``name``, with what judges it (see ``Exercise``)."""
        return Exercise(f"{self.id}.{name}", judge, lambda: self.wording(name), deadline_s=deadline_s, needs=needs)

    def trace(self, packets: Sequence[Dissected], blanks: Sequence[Blank], *, tier: str = "") -> HiddenTrace:
        """The hidden trace, with the hints and the explanation below '## Trace' (see ``HiddenTrace``)."""
        for head, parts in self._chapters():
            if head.heading == TRACE:
                if [part.heading for part in parts] != ["Hints", "Explanation"]:
                    self._fail(head.line, "expected '### Hints' and '### Explanation', in this order")
                hints, explanation = self._hints(parts[0]), " ".join(_paragraphs(parts[1]))
                return HiddenTrace(f"{self.id}.trace", packets, blanks, hints=hints, explanation=explanation, tier=tier)
        self._fail(len(self._lines), f"expected a heading '## {TRACE}' with hints and an explanation below it")

    def wording(self, name: str) -> Wording:
        """What an exercise says."""
        if name not in self._exercises:
            raise InvalidValue(f"{self.path}: there is no heading '## {name}', but {', '.join(self._exercises)}")
        return self._exercises[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the exercises, in their order."""
        return tuple(self._exercises)

    @property
    def title(self) -> str:
        """The section's title."""
        return self._parts[0].heading

    @cached_property
    def quiz(self) -> Quiz:
        """The quiz."""
        return Quiz(read=self._questions)

    # How the file is read.

    def _questions(self) -> list[Question]:
        at = next((at for at, part in enumerate(self._parts) if part.level == 2 and part.heading == QUIZ), None)
        if at is None:
            self._fail(len(self._lines), f"expected a heading '## {QUIZ}' with questions below it")
        return [self._question(part) for part in self._parts[at + 1 :]]

    @cached_property
    def _source(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InvalidValue(f"{self.path} is not there: the text of a section lies beside its module") from None

    @cached_property
    def _lines(self) -> list[str]:
        return self._source.splitlines()

    @cached_property
    def _parts(self) -> list[_Part]:
        from markdown_it import MarkdownIt  # late: see above

        # What is asked is text, so what looks like HTML, a reference or an underlined heading is text, too.
        reader = MarkdownIt("commonmark", {"html": False}).disable(["reference", "lheading", "code", "html_block"])
        tokens = reader.parse(self._source)
        starts = [at for at, token in enumerate(tokens) if token.type == "heading_open"]
        parts = []
        for at, after in itertools.pairwise([*starts, len(tokens)]):
            end = _line(tokens[after]) - 1 if after < len(tokens) else len(self._lines)
            heading = tokens[at + 1].content
            parts.append(_Part(heading, int(tokens[at].tag[1]), _line(tokens[at]), end, tokens[at + 3 : after]))
        if not parts or parts[0].level != 1:
            self._fail(1, "expected the section's title, '# …'")
        return parts

    @cached_property
    def _exercises(self) -> dict[str, Wording]:
        found: dict[str, Wording] = {}
        for head, parts in self._chapters():
            if head.heading in (TRACE, QUIZ):
                continue
            if not head.heading.isidentifier():
                wanted = f"the name of an exercise, '{TRACE}' or '{QUIZ}'"
                self._fail(head.line, f"expected {wanted}, not {head.heading!r}")
            if head.heading in found:
                self._fail(head.line, f"expected a name of its own: {head.heading!r} stands here twice")
            found[head.heading] = self._wording(head, parts)
        return found

    def _chapters(self) -> Iterator[tuple[_Part, list[_Part]]]:
        """Each second heading with the third headings below it."""
        heads = [at for at, part in enumerate(self._parts) if part.level == 2]
        for at, after in itertools.pairwise([*heads, len(self._parts)]):
            yield self._parts[at], self._parts[at + 1 : after]

    def _wording(self, head: _Part, parts: Sequence[_Part]) -> Wording:
        task = "\n".join(self._lines[head.line : head.end]).strip()
        if not task:
            self._fail(head.line, f"expected the task of {head.heading!r} below its heading")
        by_kind: dict[str, list[tuple[str, _Part]]] = {}
        for part in parts:
            kind, _, words = part.heading.partition(": ")
            if part.level != 3 or kind not in PARTS or bool(words) != (kind in WRONG):
                wanted = [f"'### {kind}{': words of the reason' if kind in WRONG else ''}'" for kind in PARTS]
                self._fail(part.line, f"expected one of {', '.join(wanted)}, not {part.heading!r}")
            by_kind.setdefault(kind, []).append((words, part))
        for kind in ("Starter", "Hints", "Solution"):
            if len(by_kind.get(kind, ())) != 1:
                self._fail(head.line, f"expected one '### {kind}' below {head.heading!r}")
        starter, hints, solution = (by_kind[kind][0][1] for kind in ("Starter", "Hints", "Solution"))
        explanation = " ".join(_paragraphs(solution))
        if not explanation:
            self._fail(solution.line, "expected a fence, and below it why it is right")
        wrong = [(words, part) for kind in WRONG for words, part in by_kind.get(kind, ())]
        mistakes = tuple(
            Mistake(self._code(part), words) for words, part in sorted(wrong, key=lambda each: each[1].line)
        )
        return Wording(task, self._code(starter), self._code(solution), explanation, self._hints(hints), mistakes)

    def _hints(self, part: _Part) -> tuple[str, ...]:
        said = tuple(self._items(part, "ordered_list_open"))
        if len(said) < 2:
            self._fail(part.line, f"expected a numbered list of two hints or more, not {len(said)}")
        return said

    def _question(self, part: _Part) -> Question:
        options = []
        for item in self._items(part, "bullet_list_open"):
            text, reply, why = item[len(RIGHT) :].partition(REPLY)
            if not item.startswith((RIGHT, OTHER)) or not reply:
                self._fail(part.line, f"expected '- {RIGHT}option{REPLY}reply' or '- {OTHER}…', not {item!r}")
            options.append(Option(text, why, item.startswith(RIGHT)))
        try:
            return Question(part.heading, tuple(options))
        except InvalidValue as exc:
            self._fail(part.line, str(exc))

    def _items(self, part: _Part, kind: str) -> Iterator[str]:
        """The items of the one list of this part."""
        if not part.blocks or part.blocks[0].type != kind or any(token.level == 0 for token in part.blocks[1:-1]):
            wanted = "a numbered list" if kind == "ordered_list_open" else "a list"
            self._fail(part.line, f"expected {wanted} and nothing else below {part.heading!r}")
        item: list[str] = []
        for token in part.blocks:
            if token.type == "inline":
                item.append(_joined(token))
            elif token.type == "list_item_close":
                yield " ".join(item)
                item = []

    def _code(self, part: _Part) -> str:
        fences = [token for token in part.blocks if token.type == "fence"]
        if len(fences) != 1 or fences[0].info.strip() != "python":
            self._fail(part.line, f"expected one fence, ```python, below {part.heading!r}")
        return fences[0].content

    def _fail(self, line: int, what: str) -> NoReturn:
        raise InvalidValue(f"{self.path}, line {line}: {what}")


def _line(token: Token) -> int:
    """Where it begins, counted from 1."""
    assert token.map is not None
    return token.map[0] + 1


def _joined(token: Token) -> str:
    return " ".join(token.content.split("\n"))


def _paragraphs(part: _Part) -> Iterator[str]:
    return (_joined(token) for token in part.blocks if token.type == "inline")
