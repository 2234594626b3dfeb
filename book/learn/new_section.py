"""``book new-section``: a notebook, a text and judges that already keep the contract, copied from the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import tomlkit

from book.learn import navigation
from book.learn.contents import Chapter, Section, parse
from labkit.errors import InvalidValue, NameTaken

CHECKOUT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).parents[1] / "template"


def new_section(section_id: str, root: Path = CHECKOUT, *, minutes: int = 20) -> list[Path]:
    """Make the files of a section that contents.toml has and nobody has written.

    Args:
        section_id: "patterns.polling".
        root: the checkout.
        minutes: how long the section will take a reader.

    Returns:
        the notebook, the text, the module of judges, and what else was changed.

    Raises:
        InvalidValue: an id that contents.toml does not have, a number of minutes that is none, or no checkout.
        NameTaken: the section is written. Nothing was changed.
    """
    data = root / "book/contents.toml"
    if not data.is_file() or not (root / "notebooks").is_dir():
        raise InvalidValue(f"{root} is no checkout of the book: run this where it was installed with `make env`")
    if isinstance(minutes, bool) or not isinstance(minutes, int) or not 1 <= minutes <= 120:
        raise InvalidValue(f"minutes={minutes!r}: a whole number from 1 to 120")
    text = data.read_text(encoding="utf-8")
    book = parse(text)
    section = book[section_id]
    chapter = next(chapter for chapter in book.chapters if section in chapter.sections)
    folder, _, name = section_id.partition(".")
    number = chapter.sections.index(section) + 1
    notebook = root / f"notebooks/{chapter.folder}/{number:02}_{name}.ipynb"
    module = root / f"book/{folder}/{name}.py"
    for path in (notebook, module, module.with_suffix(".md")):
        if section.file or path.exists():
            raise NameTaken(f"section {section_id!r} has {path.relative_to(root)} already: write there")
    made = [*_package(module.parent, chapter), *_copy_text(module, section), _copy_notebook(notebook, section)]
    changed = _with_fields(text, section_id, {"file": notebook.name, "minutes": minutes, "needs": [], "terms": []})
    data.write_text(changed, encoding="utf-8")
    return [*made, data, *(path for path in navigation.write(parse(changed), root) if path not in made)]


def _package(folder: Path, chapter: Chapter) -> list[Path]:
    """The chapter's folder, if this is its first section."""
    path = folder / "__init__.py"
    if path.exists():
        return []
    folder.mkdir(exist_ok=True)
    path.write_text(f'"""The chapter "{chapter.title}"."""\n', encoding="utf-8")
    return [path]


def _copy_text(module: Path, section: Section) -> list[Path]:
    for ending in (".py", ".md"):
        source = (TEMPLATE / f"section{ending}").read_text(encoding="utf-8")
        module.with_suffix(ending).write_text(_fill(source, section), encoding="utf-8")
    return [module, module.with_suffix(".md")]


def _copy_notebook(path: Path, section: Section) -> Path:
    notebook = nbformat.read(TEMPLATE / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    folder, _, name = section.id.partition(".")
    for cell in notebook.cells:
        cell.source = _fill(
            cell.source.replace("from book.template import section", f"from book.{folder} import {name} as section"),
            section,
        )
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
    return path


def _fill(text: str, section: Section) -> str:
    about = section.about[:1].upper() + section.about[1:]
    for mark, value in (("template.section", section.id), ("TITLE", section.title), ("ABOUT", about)):
        text = text.replace(mark, value)
    return text


def _with_fields(text: str, section_id: str, fields: dict[str, Any]) -> str:
    """The text of contents.toml with more about one section; all else as it was written."""
    data: Any = tomlkit.parse(text)
    for chapter in data["chapter"]:
        for section in chapter["section"]:
            if section["id"] == section_id:
                section.update(fields)
    return tomlkit.dumps(data)
