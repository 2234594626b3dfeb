"""One paragraph of Markdown as HTML: hints, explanations, questions and replies, where a notebook shows them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt


@cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt  # late: it takes longer than all of a check that shows nothing

    return MarkdownIt("commonmark", {"html": False})


def as_html(text: str) -> str:
    """The text with its code and emphasis marked up; what looks like HTML in it is text."""
    return str(_reader().renderInline(text))
