"""The servers of the execution patterns are those that stand in their sections."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

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
