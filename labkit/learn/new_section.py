"""``labkit new-section``: a notebook and its module that already keep the contract, copied from the template."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.errors import InvalidValue, NameTaken
from labkit.learn import navigation
from labkit.learn.contents import Contents, Section, parse

TEMPLATE = Path(__file__).with_name("template")
CHECKOUT = Path(__file__).resolve().parents[2]


def new_section(section_id: str, root: Path = CHECKOUT, *, minutes: int = 20) -> list[Path]:
    """Make the files of a section that contents.toml has and nobody has written.

    Args:
        section_id: "patterns.polling".
        root: the checkout.
        minutes: how long the section will take a reader.

    Returns:
        the notebook, the module with its exercises, and what else was changed.

    Raises:
        InvalidValue: an id that contents.toml does not have, a number of minutes that is none, or no checkout.
        NameTaken: the section is written. Nothing was changed.
    """
    data = root / "labkit/learn/contents.toml"
    if not data.is_file() or not (root / "notebooks").is_dir():
        raise InvalidValue(f"{root} is no checkout of the book: run this where labkit was installed with `make env`")
    if isinstance(minutes, bool) or not isinstance(minutes, int) or not 1 <= minutes <= 120:
        raise InvalidValue(f"minutes={minutes!r}: a whole number from 1 to 120")
    text = data.read_text(encoding="utf-8")
    book = parse(text)
    section = book[section_id]
    notebook, module = root / "notebooks" / _path(book, section), root / f"labkit/sections/{_word(section)}.py"
    for path in (notebook, module):
        if section.file or path.exists():
            raise NameTaken(f"section {section_id!r} has {path.relative_to(root)} already: write there")
    notebook.parent.mkdir(exist_ok=True)
    for source, target in ((TEMPLATE / "notebook.ipynb", notebook), (TEMPLATE / "section.py", module)):
        target.write_text(_fill(source.read_text(encoding="utf-8"), section), encoding="utf-8")
    fields = f'file = "{notebook.name}", minutes = {minutes}, needs = [], terms = []'
    line = re.compile(rf'(\{{ id = "{re.escape(section_id)}".*?) \}}')
    changed = line.sub(lambda match: f"{match[1]}, {fields} }}", text)
    data.write_text(changed, encoding="utf-8")
    return [notebook, module, data, *(p for p in navigation.write(parse(changed), root) if p != notebook)]


def _word(section: Section) -> str:
    return section.id.replace(".", "_")


def _path(book: Contents, section: Section) -> str:
    chapter = next(chapter for chapter in book.chapters if section in chapter.sections)
    number = chapter.sections.index(section) + 1
    return f"{chapter.folder}/{number:02}_{section.id.partition('.')[2]}.ipynb"


def _fill(text: str, section: Section) -> str:
    ours, plots = "from labkit.learn.template import section", "from labkit.plots import plot_ladder"
    # The two change places, because imports are sorted.
    text = re.sub(
        rf"{re.escape(ours)}(.*?){re.escape(plots)}",
        rf"{plots}\1from labkit.sections import {_word(section)} as section",
        text,
        flags=re.DOTALL,
    )
    for mark, value in (
        ("template.section", section.id),
        ("TITLE", section.title),
        ("ABOUT", section.about.capitalize()),
    ):
        text = text.replace(mark, value)
    return text
