"""The text of a section: what a well-formed one says, and how a malformed one is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from book import Text
from labkit import InvalidValue

WELL = """\
# A section

## double

Write `double(n)`, which

- takes a number
- returns twice as much.

### Starter

```python
def double(n):
    return ...
```

### Hints

1. Twice is
   two times.
2. `2 * n`

### Solution

```python
def double(n):
    return 2 * n
```

Because two times
is twice.

### Mistake: double(2) is 2

```python
def double(n):
    return n
```

### Lazy solution: double(3) is 4

```python
def double(n):
    return 4
```

## Quiz

### Is 2 | 4?

- [ ] No. | Look again: <b> is no
  markup here.
- [x] Yes. | 4 = 2 × 2 | and no more.
"""
TRACE = """\
## Trace

### Hints

1. Each side counts
   its own bytes.
2. From its SYN on.

### Explanation

Because its SYN
counts as one.
"""
TASK = "Write `double(n)`, which\n\n- takes a number\n- returns twice as much.\n"


def text(folder: Path, source: str) -> Text:
    (folder / "section.md").write_text(source, encoding="utf-8")
    return Text(folder / "section.py")


def judge(answer: object) -> None:
    """Right."""


def test_what_it_says(tmp_path: Path) -> None:
    read = text(tmp_path, WELL)
    assert read.title == "A section"
    assert read.names == ("double",)
    exercise = read.exercise("double", judge, deadline_s=5, needs="kernel")
    assert exercise.id == f"{tmp_path.name}.section.double"
    assert (exercise.judge, exercise.deadline_s, exercise.needs) == (judge, 5, "kernel")
    wording = exercise.wording
    assert wording.task == "Write `double(n)`, which\n\n- takes a number\n- returns twice as much."
    assert wording.starter == "def double(n):\n    return ...\n"
    assert wording.hints == ("Twice is two times.", "`2 * n`")
    assert wording.solution == "def double(n):\n    return 2 * n\n"
    assert wording.explanation == "Because two times is twice."
    assert [mistake.reason for mistake in wording.mistakes] == ["double(2) is 2", "double(3) is 4"]
    assert wording.mistakes[1].source == "def double(n):\n    return 4\n"
    (question,) = read.quiz.questions
    assert question.text == "Is 2 | 4?"
    no, yes = question.options
    assert (no.text, no.reply, no.right) == ("No.", "Look again: <b> is no markup here.", False)
    assert (yes.text, yes.reply, yes.right) == ("Yes.", "4 = 2 × 2 | and no more.", True)


@pytest.mark.parametrize(
    ("before", "after", "heading", "message"),
    [
        ("# A section\n", "", "", "expected the section's title"),
        ("## double", "## Double it", "## Double it", "expected the name of an exercise, 'Trace' or 'Quiz'"),
        ("## Quiz", "## double\n\nTask.\n\n## Quiz", "## double", "'double' stands here twice"),
        (
            "### Starter\n\n```python",
            "### Starter\n\n```",
            "### Starter",
            "expected one fence, ```python, below 'Starter'",
        ),
        ("### Starter", "### Begin", "### Begin", "expected one of '### Starter', '### Hints'"),
        ("### Hints\n", "", "## double", "expected one '### Hints' below 'double'"),
        ("1. Twice is\n   two times.\n2. `2 * n`", "1. Twice.", "### Hints", "two hints or more, not 1"),
        ("1. Twice is", "Some:\n\n1. Twice is", "### Hints", "expected a numbered list and nothing else"),
        ("Because two times\nis twice.\n", "", "### Solution", "below it why it is right"),
        ("### Mistake: double(2) is 2", "### Mistake", "### Mistake", "'### Mistake: words of the reason'"),
        ("- [x] Yes.", "- [ ] Yes.", "### Is", "2 options, 0 of them right"),
        ("- [x] Yes. | 4 = 2 × 2 | and no more.", "- [x] Yes.", "### Is", "expected '- [x] option | reply'"),
        ("- [x]", "- [y]", "### Is", "not '[y] Yes."),
        (
            "Write `double(n)`, which\n\n- takes a number\n- returns twice as much.\n",
            "",
            "## double",
            "expected the task",
        ),
    ],
)
def test_what_is_malformed(tmp_path: Path, before: str, after: str, heading: str, message: str) -> None:
    """It is told with the line of its heading."""
    assert WELL.count(before) == 1
    source = WELL.replace(before, after)
    line = (
        max(number for number, said in enumerate(source.splitlines(), 1) if said.startswith(heading)) if heading else 1
    )
    read = text(tmp_path, source)
    with pytest.raises(InvalidValue, match=re.escape(message)) as raised:
        _ = read.wording("double"), read.quiz.questions
    assert f"{tmp_path}/section.md, line {line}: " in str(raised.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"section\.md is not there: the text of a section lies beside"):
        _ = Text(tmp_path / "section.py").names
    with pytest.raises(InvalidValue, match="there is no heading '## triple', but double"):
        text(tmp_path, WELL).wording("triple")
    with pytest.raises(InvalidValue, match="expected a heading '## Quiz'"):
        _ = text(tmp_path, WELL.partition("## Quiz")[0]).quiz.questions


def test_the_hidden_trace(tmp_path: Path) -> None:
    trace = text(tmp_path, WELL.replace("## Quiz", f"{TRACE}\n## Quiz")).trace([], [])
    assert (trace.id, trace.explanation) == (f"{tmp_path.name}.section.trace", "Because its SYN counts as one.")
    assert trace.hints == ("Each side counts its own bytes.", "From its SYN on.")
    with pytest.raises(InvalidValue, match="expected a heading '## Trace' with hints"):
        text(tmp_path, WELL).trace([], [])
    for before, line, message in (
        ("### Explanation", 3, "expected '### Hints' and '### Explanation', in this order"),
        ("2. From its SYN on.", 5, "two hints or more, not 1"),
    ):
        with pytest.raises(InvalidValue, match=f"line {line}: .*{message}"):
            text(tmp_path, f"# A section\n\n{TRACE.replace(before, '')}").trace([], [])
