"""Contents: one file, and everything that is made from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from book import Progress, contents
from book.learn.contents import parse
from book.learn.new_section import new_section
from book.learn.overview import Overview
from book.learn.progress import ProgressWarning
from labkit.errors import InvalidValue, NameTaken

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
[[chapter]]
folder = "00_a"
title = "A"
section = [
    { id = "a.one", title = "One", about = "first", file = "01_one.ipynb", minutes = 10 },
    { id = "a.words", title = "Words", about = "terms", file = "02_words.ipynb", minutes = 5, reference = true },
    { id = "a.two", title = "Two", about = "second" },
]
[[chapter]]
folder = "01_b"
title = "B"
section = [
    { id = "b.three", title = "Three", about = "third", file = "01_three.ipynb", minutes = 20, needs = ["a.one"] },
]
"""


def test_every_lecture_of_the_course_has_its_place() -> None:
    counts = {chapter.title: len(chapter.sections) for chapter in contents().chapters}
    assert counts == {
        "Introduction": 2,
        "Communication patterns": 10,
        "Protocols": 12,
        "HTTPS, round trip by round trip": 8,
        "Accept, dispatch, execute": 12,
        "Proxies and load balancers": 2,
        "Extras": 7,
    }


def test_a_written_section_says_what_a_reader_needs() -> None:
    for section in contents().written:
        assert section.minutes > 0
        assert (ROOT / "notebooks" / section.path).is_file(), section.id
    files = {str(path.relative_to(ROOT / "notebooks")) for path in (ROOT / "notebooks").glob("*/*.ipynb")}
    assert files == {section.path for section in contents().written}


def test_order_and_neighbours() -> None:
    book = parse(SMALL)
    one, two, three = book["a.one"], book["a.two"], book["b.three"]
    assert book.neighbours(one) == (None, three)  # what is not written or only looked up in is left out
    assert book.neighbours(three) == (one, None)
    assert book.neighbours(two) == (one, three)
    assert one.path == "00_a/01_one.ipynb"
    assert two.path == ""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [('needs = ["a.one"]', 'needs = ["a.four"]', "needs 'a.four'"), ('id = "a.two"', 'id = "a.one"', "stands twice")],
)
def test_contents_that_do_not_agree_with_themselves(before: str, after: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        parse(SMALL.replace(before, after))


def test_an_unknown_section() -> None:
    with pytest.raises(InvalidValue, match=r"section 'a\.nine': contents\.toml has a\.one"):
        parse(SMALL)["a.nine"]


def test_ticks_minutes_left_and_where_to_go_on(tmp_path: Path) -> None:
    kept = Progress(tmp_path)
    begun = Overview(parse(SMALL), kept)
    assert (begun.minutes_left, begun.go_on.id if begun.go_on else None) == (30, "a.one")
    kept.finish("a.one")
    half = Overview(parse(SMALL), kept)
    assert half.minutes_left == 20
    assert "Go on here: Three." in repr(half)
    assert "✓ One" in repr(half)
    assert "Go on here: <a href='../01_b/01_three.ipynb'>Three</a>" in half._repr_html_()
    kept.finish("b.three")
    assert "Every section that is written so far is read." in repr(Overview(parse(SMALL), kept))
    assert json.loads(json.dumps(half.as_dict()))["go_on"] == "b.three"
    kept.path.write_text("{")
    with pytest.warns(ProgressWarning):
        damaged = Overview(parse(SMALL), Progress(tmp_path))
    assert "could not be read" in repr(damaged)
    assert "could not be read" in damaged._repr_html_()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is written by hand."""
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("book", "labkit", "notebooks", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    for name in ("README.md", "pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


# The last one that is still to come.
UNWRITTEN = [section for section in contents() if not section.file][-1]


def in_checkout(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=110)


def test_a_new_section_keeps_the_contract(checkout: Path) -> None:
    """Begun by its command, it passes the tests of every section, and runs from top to bottom."""
    made = in_checkout(checkout, "book", "new-section", UNWRITTEN.id, "--minutes", "15")
    assert made.returncode == 0, made.stderr
    told = json.loads(in_checkout(checkout, "book", "contents", "--json").stdout)
    (begun,) = [s for c in told["chapters"] for s in c["sections"] if s["id"] == UNWRITTEN.id]
    notebook = begun["notebook"]
    assert begun["minutes"] == 15
    assert notebook.startswith(f"notebooks/{UNWRITTEN.folder}/")
    assert str(checkout / notebook) in made.stdout
    assert f"[{UNWRITTEN.title}]({notebook})" in (checkout / "README.md").read_text()
    files = ["tests/test_sections.py", "tests/test_project.py", notebook]
    ran = in_checkout(checkout, "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", Path(notebook).stem[3:])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_sections_that_cannot_be_begun(checkout: Path) -> None:
    before = sorted(path for path in checkout.rglob("*") if "__pycache__" not in path.parts)
    with pytest.raises(NameTaken, match="write there"):
        new_section("https.race", checkout)
    with pytest.raises(InvalidValue, match=r"section 'a\.b'"):
        new_section("a.b", checkout)
    with pytest.raises(InvalidValue, match="minutes=0"):
        new_section(UNWRITTEN.id, checkout, minutes=0)
    with pytest.raises(InvalidValue, match="is no checkout"):
        new_section(UNWRITTEN.id, checkout / "tests")
    assert sorted(path for path in checkout.rglob("*") if "__pycache__" not in path.parts) == before
