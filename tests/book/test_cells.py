"""The notebooks' code: what is studied stands in cells that fit a screen, and a helper stands in one place."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LONGEST_CELL = 40
STUDIED = {"serve", "fetch", "explore"}  # the code under study of each section has its own


def code_cells(notebook: Path) -> list[tuple[str, str]]:
    """The id and the source of each."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def test_no_cell_is_long() -> None:
    lines = {
        f"{notebook.stem} {cell}": len(source.splitlines())
        for notebook in NOTEBOOKS.glob("*/*.ipynb")
        for cell, source in code_cells(notebook)
    }
    assert {where: count for where, count in lines.items() if count > LONGEST_CELL} == {}


def test_no_helper_stands_in_two_notebooks() -> None:
    transform = TransformerManager().transform_cell
    named: Counter[str] = Counter()
    for notebook in NOTEBOOKS.glob("*/*.ipynb"):
        sources = [source for cell, source in code_cells(notebook) if not cell.startswith("exercise-")]
        statements = [node for source in sources for node in ast.parse(transform(source)).body]
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
        named.update({node.name for node in statements if isinstance(node, kinds)})
    assert {name for name, count in named.items() if count > 1} <= STUDIED
