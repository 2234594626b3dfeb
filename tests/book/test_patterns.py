"""The chapter on execution: its servers are those that stand in their sections, and its helpers stand in modules."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from book.execution import patterns

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks/04_execution"
SHOWN = {
    "04_roles": ["answer", "read_until_closed", "thread_per_connection"],
    "05_one_thread": ["serve_all", "one_thread"],
    "06_many_readers": ["read_many", "many_readers"],
    "07_balanced_messages": ["receive", "work_on_messages", "balanced_messages"],
    "08_many_acceptors": ["accept_and_serve", "many_acceptors"],
    "09_sharding": ["serve_shard", "sharding"],
}


def without_notes(function: ast.FunctionDef) -> str:
    """Its statements, with neither annotations nor docstring nor comments."""
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            if ast.get_docstring(node) is not None:
                del node.body[0]
        if isinstance(node, ast.arg):
            node.annotation = None
    for node in ast.walk(function):
        for name, body in ast.iter_fields(node):
            if name == "body" and isinstance(body, list):
                body[:] = [_plain(statement) for statement in body]
    constants = {"WORKERS": str(patterns.WORKERS)}
    text = ast.unparse(function)
    for name, value in constants.items():
        text = text.replace(f"={name}", f"={value}")
    return text


def _plain(statement: ast.stmt) -> ast.stmt:
    """`busy: dict[...] = {}` is `busy = {}`."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.copy_location(ast.Assign([statement.target], statement.value), statement)
    return statement


def functions(source: str) -> dict[str, str]:
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {function.name: without_notes(function) for function in found}


@pytest.mark.parametrize("notebook", SHOWN)
def test_the_server_in_the_notebook_is_the_one_that_is_compared(notebook: str) -> None:
    book = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    shown: dict[str, str] = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            # A cell that awaits at its top level is none of these.
            source = "".join(cell["source"])
            shown |= {name: text for name, text in functions(source).items() if name not in shown}
    ours = functions(Path(patterns.__file__).read_text(encoding="utf-8"))
    for name in SHOWN[notebook]:
        assert shown.get(name) == ours[name], f"{notebook}: {name} differs from book/execution/patterns.py"


LONGEST_CELL = 40
STUDIED = {"serve", "explore"}  # the code under study of each section has its own


def code_cells(notebook: Path) -> list[tuple[str, str]]:
    """The id and the source of each."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def test_no_cell_is_long() -> None:
    lines = {
        f"{notebook.stem} {cell}": len(source.splitlines())
        for notebook in NOTEBOOKS.glob("*.ipynb")
        for cell, source in code_cells(notebook)
    }
    assert {where: count for where, count in lines.items() if count > LONGEST_CELL} == {}


def test_no_helper_stands_in_two_notebooks() -> None:
    transform = TransformerManager().transform_cell
    named: Counter[str] = Counter()
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        sources = [source for cell, source in code_cells(notebook) if not cell.startswith("exercise-")]
        statements = [node for source in sources for node in ast.parse(transform(source)).body]
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
        named.update({node.name for node in statements if isinstance(node, kinds)})
    assert {name for name, count in named.items() if count > 1} <= STUDIED
