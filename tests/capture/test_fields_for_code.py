"""Labels and details are for people and may be reworded: no code of engine, book or notebooks decides by them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOR_PEOPLE = {"label", "detail", "what", "summary"}
READING = {
    "startswith",
    "endswith",
    "partition",
    "rpartition",
    "split",
    "removeprefix",
    "removesuffix",
    "replace",
    "find",
}
MAY = {"labkit/capture/messages.py"}  # where they are made


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("labkit", "book"):
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                yield f"{path.relative_to(ROOT)}, cell {number}", "".join(cell["source"])


def decides_by_words(code: str) -> list[str]:
    """The expressions that compare, search or cut a text for people."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            read = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READING:
            read = [node.func.value]
        elif isinstance(node, ast.Subscript):
            read = [node.value]
        else:
            continue
        if any(isinstance(each, ast.Attribute) and each.attr in FOR_PEOPLE for each in read):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "code", ['packet.label == "SYN"', 'm.detail.startswith("stream 0,")', '"SYN" in packet.label', "packet.what[:3]"]
)
def test_what_is_found(code: str) -> None:
    assert decides_by_words(code) == [code.replace('"', "'")]


def test_no_code_decides_by_words_for_people() -> None:
    found = {place: wrong for place, code in sources() if place not in MAY and (wrong := decides_by_words(code))}
    assert found == {}
