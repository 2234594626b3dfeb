"""The contents with the learner's ticks, the minutes that are left, and where to go on."""

from __future__ import annotations

import html
from typing import Any

from book.learn.contents import Contents, Section, contents
from book.learn.progress import Progress, progress


class Overview:
    """The contents as this learner stands in them. A notebook shows it as a table with links.

    Args:
        book: the contents.
        kept: the learner's progress.
    """

    def __init__(self, book: Contents, kept: Progress) -> None:
        self.book = book
        self.kept = kept
        lessons = [section for section in book.written if not section.reference]
        unread = [section for section in lessons if not kept.is_read(section.id)]
        self.minutes_left = sum(section.minutes for section in unread)
        self.go_on = unread[0] if unread else None

    def _summary(self) -> str:
        if self.go_on is None:
            return "Every section that is written so far is read."
        return f"{self.minutes_left} minutes left. Go on here: {self.go_on.title}."

    def __repr__(self) -> str:
        lines = [self.kept.notice] if self.kept.notice else []
        for chapter in self.book.chapters:
            lines.append(chapter.title)
            for section in chapter.sections:
                tick = "✓" if self.kept.is_read(section.id) else " "
                when = f"{section.minutes} min" if section.file else "to come"
                lines.append(f"  {tick} {section.title:<44} {when}")
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        rows = []
        for chapter in self.book.chapters:
            rows.append(f"<tr><th colspan=4 style='text-align:left'>{html.escape(chapter.title)}</th></tr>")
            rows += [self._row(section) for section in chapter.sections]
        notice = f"<p><b>{html.escape(self.kept.notice)}</b></p>" if self.kept.notice else ""
        summary = html.escape(self._summary())
        if self.go_on is not None:
            summary = summary.replace(html.escape(self.go_on.title), _link(self.go_on))
        return f"{notice}<p>{summary}</p><table>{''.join(rows)}</table>"

    def _row(self, section: Section) -> str:
        tick = "✓" if self.kept.is_read(section.id) else ""
        title = _link(section) if section.file else html.escape(section.title)
        when = f"{section.minutes} min" if section.file else "to come"
        style = "text-align:left" if section.file else "text-align:left;opacity:0.6"
        when = when.replace(" ", "&nbsp;")
        cells = [tick, title, html.escape(section.about), when]
        return "<tr>" + "".join(f"<td style='{style}'>{cell}</td>" for cell in cells) + "</tr>"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``book contents --json`` prints it."""
        chapters = []
        for chapter in self.book.chapters:
            sections = [
                {
                    "id": section.id,
                    "title": section.title,
                    "about": section.about,
                    "notebook": f"notebooks/{section.path}" if section.file else None,
                    "minutes": section.minutes,
                    "needs": list(section.needs),
                    "terms": list(section.terms),
                    "read": self.kept.is_read(section.id),
                }
                for section in chapter.sections
            ]
            chapters.append({"title": chapter.title, "sections": sections})
        go_on = self.go_on.id if self.go_on else None
        return {"chapters": chapters, "minutes_left": self.minutes_left, "go_on": go_on}


def overview() -> Overview:
    """The contents as this learner stands in them."""
    return Overview(contents(), progress())


class Done:
    """What ``done`` says at the end of a section."""

    def __init__(self, section: Section, after: Section | None) -> None:
        self.section = section
        self.after = after

    def __repr__(self) -> str:
        goes_on = f" Next: {self.after.title}." if self.after is not None and self.after.file else ""
        return f"✓ {self.section.title} is read.{goes_on}"

    def _repr_html_(self) -> str:
        text = html.escape(repr(self))
        if self.after is not None and self.after.file:
            text = text.replace(html.escape(self.after.title), _link(self.after))
        return f"<p>{text}</p>"


def done(section_id: str) -> Done:
    """Keep that a section was read to its end. Raises InvalidValue for an id that is none."""
    section = contents()[section_id]
    progress().finish(section.id)
    return Done(section, contents().neighbours(section)[1])


def _link(section: Section) -> str:
    return f"<a href='../{section.path}'>{html.escape(section.title)}</a>"
