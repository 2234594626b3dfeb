"""The contract of a section, for every section that is written: what its notebook holds, and what its checks say."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from labkit import Lab
from labkit.lab import tier_here
from labkit.learn import Exercise, HiddenTrace, Quiz, Section, Verdict, contents, navigation, progress
from labkit.learn.exercise import answer_of
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
GLOSSARY = contents()["introduction.glossary"]
EACH = pytest.mark.parametrize("section", WRITTEN, ids=lambda section: section.id)
EACH_LESSON = pytest.mark.parametrize("section", LESSONS, ids=lambda section: section.id)


def module_of(section: Section) -> ModuleType:
    return importlib.import_module(f"labkit.sections.{section.id.replace('.', '_')}")


def exercises() -> list[Any]:
    return [pytest.param(exercise, id=exercise.id) for section in LESSONS for exercise in module_of(section).EXERCISES]


def mistakes() -> list[Any]:
    return [
        pytest.param(exercise, mistake, id=f"{exercise.id}-{number}")
        for section in LESSONS
        for exercise in module_of(section).EXERCISES
        for number, mistake in enumerate(exercise.mistakes, 1)
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
        assert cells.get(cell_id) == text, f"{section.path}, cell {cell_id!r}: labkit contents --write"
    first, *_, last = cells_of(section)
    assert (first.get("id"), last.get("id")) == (navigation.TOP, navigation.BOTTOM)


def test_the_readme_has_the_contents() -> None:
    begin, end = navigation.README_MARKS
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = text.partition(begin)[2].partition(end)[0]
    assert told == navigation.readme(contents()) + "\n", "labkit contents --write"


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
    assert any("NBVAL_CHECK_OUTPUT" in cell["source"] for cell in cells_of(section))


@EACH_LESSON
def test_its_exercises_stand_in_the_notebook(section: Section) -> None:
    """Task and starter are those of the module, so neither can go its own way."""
    sources = [cell["source"] for cell in cells_of(section)]
    module = module_of(section)
    assert isinstance(module.QUIZ, Quiz)
    assert 2 <= len(module.QUIZ.questions) <= 3
    assert "section.QUIZ" in sources
    assert len(module.EXERCISES) >= 2
    names = {id(value): name for name, value in vars(module).items() if isinstance(value, Exercise)}
    for number, exercise in enumerate(module.EXERCISES, 1):
        assert exercise.id.rpartition(".")[0] == section.id
        assert len(exercise.hints) >= 2
        assert len(exercise.mistakes) >= 2
        assert f"### Exercise {number}\n\n{exercise.task.strip()}" in sources
        begun = exercise.starter.strip()
        check = f"section.{names[id(exercise)]}.check({exercise.name})"
        assert any(re.fullmatch(rf"{re.escape(begun)}\n\n+{re.escape(check)}", source) for source in sources)
        assert f"section.{names[id(exercise)]}" in sources


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
    verdict = exercise.check(answer_of(exercise.starter, exercise.name))
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
    module = module_of(section)
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
