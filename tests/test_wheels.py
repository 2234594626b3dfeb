"""What is installed: the wheel of labkit alone is a whole engine, and both wheels together are the book's packages.

The environments see the libraries of this one, but not this checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/engine.md"
PROJECTS = {"labkit": ROOT, "book": ROOT / "book"}
BUILD = "import importlib, sys; print(importlib.import_module(sys.argv[1]).build_wheel(sys.argv[2]))"
# What a console script of this name runs.
SCRIPT = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name=sys.argv[1])
del sys.argv[0]
sys.exit(script.load()())
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built as `pip wheel` does, with the backends that are here."""
    folder, found = tmp_path_factory.mktemp("wheels"), {}
    for name, project in PROJECTS.items():
        backend = tomllib.loads((project / "pyproject.toml").read_text())["build-system"]["build-backend"]
        done = subprocess.run(
            [sys.executable, "-c", BUILD, backend, str(folder)], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found[name] = folder / done.stdout.split()[-1]
    return found


def environment(folder: Path, *wheels: Path) -> Run:
    """An environment with these wheels alone, and what runs its interpreter, outside of the checkout."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(site.strip())
    Path(site.strip(), "libraries.pth").write_text(sysconfig.get_path("purelib"))  # and not the .pth files in there
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *words], cwd=folder, env=variables, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return environment(tmp_path_factory.mktemp("alone"), wheels["labkit"])


def examples() -> Iterator[tuple[str, str, str]]:
    """Heading, program, and what it prints, "" where the page does not say."""
    heading = ""
    tokens = MarkdownIt("commonmark").parse(PAGE.read_text(encoding="utf-8"))
    found: list[tuple[str, str, str]] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            heading = token.content
        elif token.type == "fence" and token.info == "python":
            found.append((heading, token.content, ""))
        elif token.type == "fence" and token.info == "text" and found:
            found[-1] = (*found[-1][:2], token.content)
    return iter(found)


def test_the_page_has_an_example_of_each_part() -> None:
    assert list(dict.fromkeys(name for name, _, _ in examples())) == [
        "Hosts",
        "Wire",
        "Routers",
        "Address translation",
        "Capture",
        "Protocols",
        "Files",
        "Servers",
        "Programs of other people",
        "Queues",
        "Load",
    ]


@pytest.mark.parametrize(("program", "printed"), [pytest.param(*rest, id=name) for name, *rest in examples()])
def test_an_example_runs_where_there_is_no_book(alone: Run, program: str, printed: str) -> None:
    done = alone("-c", program)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == printed


def test_the_engine_alone_does_not_find_the_book(alone: Run) -> None:
    done = alone("-c", "import labkit; print(labkit.__file__); import book")
    assert str(ROOT) not in done.stdout
    assert "No module named 'book'" in done.stderr


def test_the_commands_of_the_engine_alone(alone: Run) -> None:
    done = alone("-c", SCRIPT, "labkit", "race", "--runs", "1", "--variant", "tcp", "--variant", "quic", "--json")
    assert done.returncode == 0, done.stderr
    assert {each["name"] for each in json.loads(done.stdout)["variants"]} == {"tcp", "quic"}
    done = alone("-c", SCRIPT, "labkit", "queues", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    assert "accept queue: 5 at most" in done.stdout


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_has_every_file_of_its_package(wheels: dict[str, Path], name: str) -> None:
    """Texts, recordings and the template, too."""
    there = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / name).rglob("*")
        if file.is_file() and not {"__pycache__", ".ruff_cache", ".ipynb_checkpoints"} & set(file.parts)
    }
    packed = {each for each in zipfile.ZipFile(wheels[name]).namelist() if ".dist-info/" not in each}
    assert packed == there - {f"{name}/pyproject.toml"}
    if name == "book":
        assert {Path(each).suffix for each in packed} >= {".md", ".toml", ".json", ".gz", ".ipynb", ".py"}


def test_both_wheels_find_each_other(wheels: dict[str, Path], tmp_path: Path) -> None:
    run = environment(tmp_path, *wheels.values())
    source = (
        "import book, labkit; print(book.__file__, labkit.__file__); "
        "print(sum(len(s.module.EXERCISES) > 1 and len(s.module.QUIZ.questions) > 1 for s in book.contents().written "
        "if not s.reference), len(book.contents().written))"
    )
    done = run("-c", source)
    assert done.returncode == 0, done.stderr
    places, counts = done.stdout.splitlines()
    assert all(place.startswith(str(tmp_path)) for place in places.split())
    lessons, written = map(int, counts.split())
    assert lessons > 20 and written > lessons
    done = run("-c", SCRIPT, "book", "--help")
    assert done.returncode == 0 and "new-section" in done.stdout, done.stderr
