"""The floors of docs/architecture.md: what may import what."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "labkit"

# In the order of the table in docs/architecture.md: each may import itself and what stands before it.
FLOORS = [
    "errors",
    "checks",
    "lazy",
    "waiting",
    "child",
    "recordable",
    "network",
    "loopback",
    "capture",
    "queues",
    "load",
    "servers",
    "services",
    "recorded",
    "lab",
    "handshakes",
    "plots",
    "doctor",
    "made_captures",
    "bench",
]
FLOORS += ["shell", "cli", "__main__"]
DOORS = {("capture", "plots")}


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, those for type checkers alone left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        yield from imports(node)


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_each_floor_imports_only_those_before_it() -> None:
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module in imports(ast.parse(file.read_text())):
            if not module.startswith("labkit."):
                continue
            there = floor_of(module)
            if FLOORS.index(there) > FLOORS.index(here) and (here, there) not in DOORS:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_no_circle_of_files_but_the_doors() -> None:
    """Imports for type checkers count, too: files in a circle can only be understood together."""
    names = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    edges: dict[str, set[str]] = {}
    for name, file in names.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
                found |= whole or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        # What a package's front door names, its own files do not fetch there.
        edges[name] = {each for each in found & names.keys() if each != "labkit"} - {name}
    reached = {name: set(direct) for name, direct in edges.items()}
    for middle in names:
        for name in names:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    in_circles = {name for name in names if name in reached[name]}
    door = {"labkit.capture.ladder", "labkit.plots.ladder"}  # a ladder that is shown as a picture
    assert in_circles <= door


def test_the_engine_does_not_know_the_book() -> None:
    modules = {file: set(imports(ast.parse(file.read_text()))) for file in PACKAGE.rglob("*.py")}
    wrong = [str(file) for file, names in modules.items() if any(name.partition(".")[0] == "book" for name in names)]
    assert wrong == []


def test_the_network_needs_only_the_standard_library() -> None:
    wrong = [
        f"{file.name} imports {module}"
        for folder in ("network", "loopback")
        for file in (PACKAGE / folder).glob("*.py")
        for module in imports(ast.parse(file.read_text()))
        if not module.startswith("labkit") and module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []
