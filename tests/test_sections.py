"""The contract of a section, for every section that is written: what its notebook holds, and what its checks say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from book import Exercise, HiddenTrace, Section, Verdict, contents, progress
from book.learn import navigation
from book.learn.exercise import answer_of
from labkit import Lab
from labkit.lab import tier_here
from labkit.network.tiers import KERNEL

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = contents().written
LESSONS = [section for section in WRITTEN if not section.reference]
STEPS = [
    "Set-up",
    "Predict",
    "See it",
    "Read the wire",
    "Turn the knobs",
    "Break it",
    "Exercises",
    "Quiz",
    "Keep",
]
CHECKED = "nbval-check-output"
GLOSSARY = contents()["introduction.glossary"]
EACH = pytest.mark.parametrize("section", WRITTEN, ids=lambda section: section.id)
EACH_LESSON = pytest.mark.parametrize("section", LESSONS, ids=lambda section: section.id)


def exercises() -> list[Any]:
    return [pytest.param(exercise, id=exercise.id) for section in LESSONS for exercise in section.module.EXERCISES]


def mistakes() -> list[Any]:
    return [
        pytest.param(exercise, mistake, id=f"{exercise.id}-{number}")
        for section in LESSONS
        for exercise in section.module.EXERCISES
        for number, mistake in enumerate(exercise.wording.mistakes, 1)
    ]


def cells_of(section: Section) -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "notebooks" / section.path).read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]


def markdown_of(section: Section) -> str:
    return "\n\n".join(cell["source"] for cell in cells_of(section) if cell["cell_type"] == "markdown")


def headings(text: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+)$", text, re.MULTILINE)


@pytest.fixture(autouse=True)
def no_progress() -> Iterator[None]:
    yield
    progress().clear()


# The notebooks.


@EACH
def test_navigation_is_that_of_the_contents(section: Section) -> None:
    cells = {cell.get("id"): cell["source"] for cell in cells_of(section)}
    for cell_id, text in navigation.expected(contents(), section).items():
        assert cells.get(cell_id) == text, f"{section.path}, cell {cell_id!r}: book contents --write"
    first, *_, last = cells_of(section)
    assert (first.get("id"), last.get("id")) == (navigation.TOP, navigation.BOTTOM)


@EACH_LESSON
def test_its_end_leads_on(section: Section) -> None:
    source, shown = navigation.ending(contents(), section)
    (stored,) = [cell["outputs"] for cell in cells_of(section) if cell["source"] == source]
    told = [{kind: "".join(text) for kind, text in output["data"].items()} for output in stored]
    assert told in ([shown], []), f"{section.path}: book contents --write"  # without, where it was not run yet


def test_the_readme_has_the_contents() -> None:
    begin, end = navigation.README_MARKS
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = text.partition(begin)[2].partition(end)[0]
    assert told == navigation.readme(contents()) + "\n", "book contents --write"


@EACH_LESSON
def test_the_steps_in_their_order(section: Section) -> None:
    text = markdown_of(section)
    (title,) = headings(text, 1)
    assert title == section.title
    assert "**Question.**" in text
    assert "Afterwards you can" in text
    order = [heading.partition(":")[0] for heading in headings(text, 2)]
    steps = [step for step in dict.fromkeys(order) if step in STEPS]
    assert steps == STEPS
    keep = text.partition("## Keep")[2]
    assert len(re.findall(r"^- ", keep, re.MULTILINE)) == 3
    for word in ("**Numbers:**", "**Sources:**", "**What next:**"):
        assert word in keep
    assert f'done("{section.id}")' in [cell["source"] for cell in cells_of(section)]
    assert any(CHECKED in cell["metadata"].get("tags", ()) for cell in cells_of(section))


@EACH_LESSON
def test_what_it_asks(section: Section) -> None:
    module = section.module
    assert module.TEXT.title == section.title
    assert len(module.EXERCISES) >= 2
    assert [exercise.id for exercise in module.EXERCISES] == [f"{section.id}.{name}" for name in module.TEXT.names]
    for exercise in module.EXERCISES:
        assert len(exercise.wording.mistakes) >= 2
    assert 2 <= len(module.QUIZ.questions) <= 3
    assert "section.QUIZ" in [cell["source"] for cell in cells_of(section)]


@pytest.mark.parametrize(("kind", "ignored"), [("solution", ""), ("starter", "F401,F821")])
def test_code_of_the_exercises_is_linted(kind: str, ignored: str, tmp_path: Path) -> None:
    """As the cells of the notebooks are. A starter imports for the learner, and uses what stands in cells above it.

    `ruff format` looks into Markdown by itself. A mistake may be a mistake for ruff, too.
    """
    for section in LESSONS:
        for exercise in section.module.EXERCISES:
            (tmp_path / f"{exercise.id}.py").write_text(getattr(exercise.wording, kind), encoding="utf-8")
    command = ["ruff", "check", "--no-cache", "--output-format=concise", f"--config={ROOT}/pyproject.toml"]
    command += [f"--ignore={ignored}"] if ignored else []
    ran = subprocess.run([sys.executable, "-m", *command, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@EACH
def test_links_between_notebooks_lead_somewhere(section: Section) -> None:
    """Also into other notebooks: a heading, with dashes for spaces."""
    for target in re.findall(r"\]\(([^)\s]+\.ipynb(?:#[^)]*)?)\)", markdown_of(section)):
        path, _, heading = target.partition("#")
        other = next((s for s in WRITTEN if f"../{s.path}" == path), None)
        assert other is not None, f"{section.path} links to {target}: write ../folder/file.ipynb of a written section"
        if heading:
            known = [each.replace(" ", "-") for level in (1, 2, 3) for each in headings(markdown_of(other), level)]
            assert heading in known, f"{section.path} links to {target}: no such heading"


@EACH
def test_its_terms_stand_in_the_glossary(section: Section) -> None:
    known = headings(markdown_of(GLOSSARY), 2)
    for term in section.terms:
        assert term in known, f"the glossary has no heading {term!r}"
        link = f"../{GLOSSARY.path}#{term.replace(' ', '-')}"
        assert link in markdown_of(section), f"{section.path} does not link to {link}"


def test_the_glossary_is_in_order_and_used() -> None:
    terms = headings(markdown_of(GLOSSARY), 2)
    assert terms == sorted(terms, key=str.lower)
    assert len(set(terms)) == len(terms)
    introduced = [term for section in WRITTEN for term in section.terms]
    assert sorted(introduced) == sorted(terms), "each term is introduced by one section"


# What the checks say. On a lower tier, where tests/test_tiers.py runs this too, an exercise may not be available.


def outcome_here(exercise: Exercise, otherwise: str) -> str:
    if exercise.unavailable:
        assert tier_here() != KERNEL
        return "not available here"
    return otherwise


def judged(exercise: Exercise, source: str) -> Verdict:
    """The verdict on an answer; where a busy machine has left none, asked again as the learner is told to."""
    for _ in range(3):
        verdict = exercise.check(answer_of(source, exercise.name))
        if verdict.outcome != "could not be judged":
            break
    return verdict


@pytest.mark.parametrize("exercise", exercises())
def test_a_starter_is_not_attempted(exercise: Exercise) -> None:
    verdict = exercise.check(answer_of(exercise.wording.starter, exercise.name))
    assert verdict.outcome == outcome_here(exercise, "not attempted")


@pytest.mark.parametrize("exercise", exercises())
def test_a_solution_is_right(exercise: Exercise) -> None:
    verdict = judged(exercise, exercise.solution)
    assert verdict.outcome == outcome_here(exercise, "right"), verdict
    assert progress().is_solved(exercise.id) == (verdict.outcome == "right")


@pytest.mark.parametrize(("exercise", "mistake"), mistakes())
def test_a_mistake_is_wrong_and_told_why(exercise: Exercise, mistake: Any) -> None:
    verdict = judged(exercise, mistake.source)
    assert verdict.outcome == outcome_here(exercise, "wrong"), verdict
    assert exercise.unavailable or mistake.reason in verdict.reason
    assert not progress().is_solved(exercise.id)


@EACH_LESSON
def test_the_hidden_trace(section: Section) -> None:
    module = section.module
    if not hasattr(module, "hidden_trace"):
        pytest.fail("every section that is written has a trace to complete")
    with Lab(rtt_ms=20) as lab:
        trace: HiddenTrace = module.hidden_trace(lab)
    assert trace.id.rpartition(".")[0] == section.id
    assert len(trace.hints) >= 2
    assert trace.check(dict.fromkeys(trace.answers, ...)).outcome == "not attempted"
    assert trace.check(answer_of(trace.solution, "answers")).outcome == "right"
    for number, blank in enumerate(trace.blanks, 1):
        wrong = trace.check({**trace.answers, number: "nothing of the kind"})
        assert wrong.outcome == "wrong"
        assert blank.why in wrong.reason
