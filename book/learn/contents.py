"""The book's contents as data, read from contents.toml: chapters, sections, minutes, what to read before, terms."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from labkit.errors import InvalidValue

DATA = Path(__file__).parents[1] / "contents.toml"


@dataclass(frozen=True)
class Section:
    """One section: a notebook, or the place for one.

    Attributes:
        id: "https.tls12": the chapter and a name.
        title, about: for tables; about is one line.
        chapter: title of its chapter.
        folder: of its chapter, below notebooks/.
        file: name of the notebook, "" where it is not written yet.
        minutes: how long it takes, 0 where it is not written yet.
        needs: ids of the sections to read before.
        terms: headings of the glossary that it introduces.
        reference: to look things up in, not to be worked through.
    """

    id: str
    title: str
    about: str
    chapter: str
    folder: str
    file: str = ""
    minutes: int = 0
    needs: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    reference: bool = False

    @property
    def path(self) -> str:
        """The notebook, below notebooks/: "03_https/02_tcp_tls12.ipynb"."""
        return f"{self.folder}/{self.file}" if self.file else ""

    @property
    def module(self) -> ModuleType:
        """What judges its exercises: "https.tls12" is ``book/https/tls12.py``."""
        return import_module(f"book.{self.id}")


@dataclass(frozen=True)
class Chapter:
    """A chapter: title, folder below notebooks/, sections in their order."""

    title: str
    folder: str
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Contents:
    """The whole book, in the order in which it is read."""

    chapters: tuple[Chapter, ...]

    def __iter__(self) -> Iterator[Section]:
        """Every section, written or not."""
        return (section for chapter in self.chapters for section in chapter.sections)

    @property
    def written(self) -> tuple[Section, ...]:
        """The sections that have a notebook."""
        return tuple(section for section in self if section.file)

    def __getitem__(self, section_id: str) -> Section:
        """The section of this id. Raises InvalidValue for an id that is none."""
        for section in self:
            if section.id == section_id:
                return section
        raise InvalidValue(f"section {section_id!r}: contents.toml has {', '.join(section.id for section in self)}")

    def neighbours(self, section: Section) -> tuple[Section | None, Section | None]:
        """The written sections before and after this one; works of reference are left out."""
        order = [s for s in self if (s.file and not s.reference) or s is section]
        at = order.index(section)
        return (order[at - 1] if at else None, order[at + 1] if at + 1 < len(order) else None)


def parse(text: str) -> Contents:
    """Contents from the text of a contents.toml. Raises InvalidValue for an id twice or one that is not there."""
    chapters = []
    for entry in tomllib.loads(text)["chapter"]:
        sections = tuple(_section(entry, fields) for fields in entry["section"])
        chapters.append(Chapter(entry["title"], entry["folder"], sections))
    whole = Contents(tuple(chapters))
    ids = [section.id for section in whole]
    for section in whole:
        if ids.count(section.id) > 1:
            raise InvalidValue(f"section {section.id!r} stands twice in contents.toml: give each an id of its own")
        for needed in section.needs:
            if needed not in ids:
                raise InvalidValue(f"section {section.id!r} needs {needed!r}, which contents.toml does not have")
    return whole


def _section(chapter: dict[str, Any], fields: dict[str, Any]) -> Section:
    lists = {name: tuple(fields.get(name, ())) for name in ("needs", "terms")}
    return Section(**{**fields, **lists}, chapter=chapter["title"], folder=chapter["folder"])


@cache
def contents() -> Contents:
    """The book's contents."""
    return parse(DATA.read_text(encoding="utf-8"))
