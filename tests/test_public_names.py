"""What the package promises: names, and that importing it is cheap."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest

import book
import labkit
from labkit import errors

HEAVY = {"scapy", "matplotlib", "numpy", "aioquic", "cryptography", "ipywidgets", "OpenSSL", "trustme", "h11", "httpx"}
MODULES = sorted(
    info.name for each in (book, labkit) for info in pkgutil.walk_packages(each.__path__, f"{each.__name__}.")
)
PACKAGES = [
    "book",
    "labkit",
    "labkit.handshakes",
    "labkit.handshakes.clients",
    "labkit.plots",
    "labkit.servers",
    "labkit.services",
]


def test_the_race_is_the_function_whoever_imported_its_module_before() -> None:
    source = "import labkit.handshakes.race\nfrom labkit.handshakes import race\nassert race.__name__ == 'race', race"
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    names = module.__all__
    # As ruff sorts them: constants, classes, functions.
    kinds = [(0 if name.isupper() else 1 if name[0].isupper() else 2, name) for name in names]
    assert kinds == sorted(kinds)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None
    assert set(names) <= set(dir(module))


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "labkit"])
def test_a_public_name_is_no_module_whatever_was_imported(package: str) -> None:
    source = (
        f"import importlib, inspect, pkgutil, {package} as package\n"
        "for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "print([name for name in package.__all__ if inspect.ismodule(getattr(package, name))])"
    )
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "[]\n"


def test_the_front_door_is_complete() -> None:
    """Every error is to be caught by its name, and what the type checker sees is what there is."""
    assert {name for name, value in vars(errors).items() if inspect.isclass(value)} <= set(labkit.__all__)
    tree = ast.parse(inspect.getsource(labkit))
    (for_types,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name for node in for_types.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(labkit.__all__) == set(labkit._HOME)
    assert dir(labkit) == sorted([*labkit.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'Laboratory'"):
        labkit.Laboratory  # noqa: B018


def test_a_name_stays_what_it_is() -> None:
    """`doctor` is a function and a module of its own; asked for twice, the function is still there."""
    source = "import labkit; print(labkit.doctor is labkit.doctor, callable(labkit.doctor))"
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "True True\n"


@pytest.mark.parametrize("statement", ["import labkit", "from labkit import Lab", "from labkit import *"])
def test_importing_is_cheap(statement: str) -> None:
    source = f"import json, sys; before = set(sys.modules); {statement}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", source], text=True))
    assert "labkit" in loaded
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


# What a learner meets without importing it.
MET = {
    "labkit.capture.capture": ["Capture"],
    "labkit.capture.frames": ["Frame", "Transit"],
    "labkit.capture.ladder": ["Ladder", "Row"],
    "labkit.capture.messages": ["Dissected", "Flow", "Message"],
    "labkit.doctor": ["Check", "Report"],
    "labkit.handshakes.phases": ["Timeline", "connections", "evidence", "timeline"],
    "labkit.load.load": ["Load", "load"],
    "labkit.load.server_process": ["ServerProcess"],
    "labkit.network.engine": ["SocketAddress"],
    "labkit.network.addresses": ["Subnet"],
    "labkit.network.host": ["Counters", "Sysctl"],
    "labkit.network.interface": ["Cut", "Interface"],
    "labkit.network.link": ["Counts"],
    "labkit.network.nat": ["Nat", "Translation"],
    "labkit.network.process": ["Completed", "Program"],
    "labkit.network.routes": ["Route", "Routes"],
    "labkit.network.wire_control": ["RuleHandle", "WireControl"],
    "labkit.plots.live": ["LiveView"],
    "labkit.queues.fill": ["Filled", "fill"],
    "labkit.queues.history": ["ConnectionHistory", "History", "ListenerHistory", "Steps", "TcpHistory"],
    "labkit.queues.run_queue": ["ThreadTimes", "between", "threads_of", "tree"],
    "labkit.queues.tcp_info": ["TcpInfo", "tcp_info"],
    "labkit.queues.watch": ["Watch"],
    "labkit.services.processes": ["Memory"],
}


def public_things() -> Iterator[tuple[str, Any]]:
    names = {package: importlib.import_module(package).__all__ for package in PACKAGES} | MET
    for module, words in names.items():
        for word in words:
            thing = getattr(importlib.import_module(module), word)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module}.{word}", thing
            if inspect.isclass(thing):
                for attribute, member in inspect.getmembers_static(thing):
                    kinds = inspect.isfunction(member) or isinstance(member, property | cached_property)
                    if not attribute.startswith("_") and kinds and member is not getattr(object, attribute, None):
                        yield f"{module}.{word}.{attribute}", getattr(thing, attribute)


def test_every_public_name_explains_itself() -> None:
    things = dict(public_things())
    assert len(things) > 100
    things |= {name: importlib.import_module(name) for name in MODULES if not name.endswith(".__main__")}
    # A dataclass without words has its signature for a docstring.
    words = {name: (inspect.getdoc(thing) or "") for name, thing in things.items()}
    silent = [n for n, doc in words.items() if not doc.strip() or doc.startswith(n.rsplit(".", 1)[-1] + "(")]
    assert silent == []
