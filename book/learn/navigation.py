"""What is written into notebooks and README from elsewhere: navigation, tasks and starters, the table of contents.

The stored output of a section's last call, ``done``, names the next section, so it is written, too.

``expected`` says what must stand there; a test compares, and ``book contents --write`` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import nbformat

from book.learn.contents import Contents, Section
from book.learn.exercise import Exercise
from book.learn.overview import Done
from labkit.errors import InvalidValue

TOP, BOTTOM = "navigation-top", "navigation-bottom"  # ids of cells
README_MARKS = "<!-- contents: written by `book contents --write` -->\n", "<!-- end of contents -->"


def link(here: Section, there: Section) -> str:
    """A link between two notebooks, in markdown."""
    return f"[{there.title}](../{there.path})"


def top(book: Contents, section: Section) -> str:
    """The first cell: where the reader is, how long it takes, what to read before."""
    chapter = next(chapter for chapter in book.chapters if section in chapter.sections)
    place = f"{chapter.title}, {chapter.sections.index(section) + 1} of {len(chapter.sections)}"
    needs = [book[needed] for needed in section.needs]
    before = ", ".join(link(section, needed) if needed.file else needed.title for needed in needs) or "nothing"
    home = link(section, next(iter(book)))
    return f"{home} · {place} · {section.minutes} minutes · read before: {before}"


def bottom(book: Contents, section: Section) -> str:
    """The last cell: back and on."""
    before, after = book.neighbours(section)
    parts = [f"← {link(section, before)}"] if before is not None else []
    parts += [f"{link(section, after)} →"] if after is not None else []
    return " · ".join(parts)


def readme(book: Contents) -> str:
    """The table of the README: every section, those to come without a link."""
    lines = ["| chapter | section | | minutes |", "|---|---|---|---|"]
    for chapter in book.chapters:
        for section in chapter.sections:
            first = chapter.title if section is chapter.sections[0] else ""
            title = f"[{section.title}](notebooks/{section.path})" if section.file else section.title
            lines.append(f"| {first} | {title} | {section.about} | {section.minutes if section.file else 'to come'} |")
    return "\n".join(lines)


def expected(book: Contents, section: Section) -> dict[str, str]:
    """The cells of a notebook that are written from contents.toml and from the section's text: id → source."""
    cells = {TOP: top(book, section), BOTTOM: bottom(book, section)}
    return cells if section.reference else cells | exercise_cells(section.module)


def ending(book: Contents, section: Section) -> tuple[str, dict[str, str]]:
    """The cell that ends a section, and what it shows: by MIME type."""
    shown = Done(section, book.neighbours(section)[1])
    return f'done("{section.id}")', {"text/plain": repr(shown), "text/html": shown._repr_html_()}


def exercise_cells(module: ModuleType) -> dict[str, str]:
    """For each exercise its task, its starter with the check below it, and what unfolds hints and solution."""
    names = {id(value): name for name, value in vars(module).items() if isinstance(value, Exercise)}
    cells = {}
    for number, exercise in enumerate(module.EXERCISES, 1):
        name, cell_id = names[id(exercise)], f"exercise-{number}"
        starter = exercise.wording.starter.strip()
        gap = "\n\n" if starter.splitlines()[-1].startswith("    ") else "\n"  # as the formatter wants it
        cells[cell_id] = f"### Exercise {number}\n\n{exercise.wording.task}"
        cells[f"{cell_id}-answer"] = f"{starter}\n{gap}section.{name}.check({exercise.name})"
        cells[f"{cell_id}-help"] = f"section.{name}"
    return cells


def write(book: Contents, root: Path) -> list[Path]:
    """Bring the notebooks and the README of a checkout up to date.

    Args:
        book: the contents.
        root: the checkout.

    Returns:
        the files that were changed.

    Raises:
        InvalidValue: a notebook without one of the cells, or a README without its marks.
    """
    changed = []
    for section in book.written:
        path = root / "notebooks" / section.path
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        by_id = {cell.get("id"): cell for cell in notebook.cells}
        for cell_id, text in expected(book, section).items():
            if cell_id not in by_id:
                raise InvalidValue(f"{path} has no cell with the id {cell_id!r}: make one, with any text")
            by_id[cell_id].source = text
        source, shown = ending(book, section)
        for cell in notebook.cells:
            if cell.source == source:
                for output in cell.outputs:
                    output.data.update(shown)
        changed += _save(path, nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]
    path = root / "README.md"
    begin, end = README_MARKS
    pattern = re.escape(begin) + ".*" + re.escape(end)
    text = path.read_text(encoding="utf-8")
    if not re.search(pattern, text, re.DOTALL):
        raise InvalidValue(f"{path} has no place for the contents: put {begin.strip()!r} and {end!r} there")
    changed += _save(path, re.sub(pattern, lambda _: f"{begin}{readme(book)}\n{end}", text, flags=re.DOTALL))
    return changed


def _save(path: Path, text: str) -> list[Path]:
    if path.read_text(encoding="utf-8") == text:
        return []
    path.write_text(text, encoding="utf-8")
    return [path]
