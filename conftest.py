"""For every test, notebooks included: a home of its own, signals as in a terminal, the order, and the last line."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

# A process in the background of a script ignores SIGINT by inheritance, and so would whatever the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The user's home may be read-only, and what lies in it is none of the tests' business: settings of programs, and
# the learner's progress. Kernels and programs inherit these variables.
HOME = "LABKIT_TESTS_HOME"  # one for all processes of a run: matplotlib looks through the machine's fonts once


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # and not a child that a test has forked
        shutil.rmtree(folder, ignore_errors=True)


if HOME not in os.environ:
    _home = tempfile.mkdtemp(prefix="book-")
    atexit.register(_remove, _home, os.getpid())
    # Tests find their processes by the names of their folders, which another suite beside this one must not share.
    os.environ.update({HOME: _home, "HOME": _home, "PYTEST_DEBUG_TEMPROOT": _home})
    for _name in [name for name in os.environ if name.startswith(("XDG_", "JUPYTER", "IPYTHON", "MPL", "MATPLOTLIB"))]:
        del os.environ[_name]
os.environ["LABKIT_HOME"] = tempfile.mkdtemp(prefix="progress-", dir=os.environ[HOME])  # tests run side by side
# The suite starts some thousand Python processes, and each would compile labkit and book again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
_alone = Path(os.environ[HOME], "alone")

# jsonschema, which nbval imports by nbformat, would check IRIs by it, and it builds a grammar when it is imported: two
# seconds of processor time in every process of the suite, for a check that no notebook needs.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

pytest_plugins = ["notebook_run", "processor_time"]  # in tests/, by `pythonpath`

# Files whose tests take long and have nothing to share. Of all others one process runs the whole file: the cells of a
# notebook share a kernel, the tests of a module its fixtures.
ONE_BY_ONE = ("tests/test_tiers.py", "tests/test_notebooks.py", "tests/test_sections.py")
FIRST = ("test_tiers.py", "test_notebooks.py")  # and notebooks: the longest, one that begins last would run alone
ALONE = "alone"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, and last what measures time."""
    alone = {item for item in items if item.get_closest_marker(ALONE)}
    items.sort(key=lambda item: (item in alone, item.path.suffix != ".ipynb", item.path.name not in FIRST))
    # The scheduler, in another process, knows no more of a test than its name. Each process writes the same.
    _alone.write_text("\n".join(item.nodeid for item in items if item in alone))


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """With ``pytest -n``: what one process takes at a time. xdist 3.8's own groups have no effect on pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        @cached_property
        def alone(self) -> set[str]:
            return set(_alone.read_text().splitlines())

        def _split_scope(self, nodeid: str) -> str:
            if nodeid in self.alone:
                return ALONE
            file = nodeid.partition("::")[0]
            return nodeid if file in ONE_BY_ONE else file

        def _reschedule(self, node: Any) -> None:
            """What measures time waits until all processes but one have ended."""
            if list(self.workqueue) == [ALONE]:
                if any(other is not node and not other.shutting_down for other in self.nodes):
                    node.shutdown()  # it ends when it has run what it was given
                    return
                if len(self.nodes) > 1:
                    return
            super()._reschedule(node)

        def remove_node(self, node: Any) -> str | None:
            crashed: str | None = super().remove_node(node)
            for other in self.nodes:
                self._reschedule(other)
            return crashed

    config.option.loadscopereorder = False
    return Scheduling(config, log)


class LastLine:
    """Says at the very end how many passed, what was left out and why, and the command that brings what is missing."""

    def __init__(self, reporter: Any) -> None:
        self.reporter = reporter

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        yield
        stats = self.reporter.stats
        counts = [
            f"{len(stats.get(kind, ()))} {word}" for kind, word in KINDS.items() if stats.get(kind) or kind == "passed"
        ]
        reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in stats.get("skipped", ()))
        packages = {reason: match[1] for reason in reasons if (match := re.search(r"apt-get install (\S+)", reason))}
        why = [f"{count} want {packages[r]}" if r in packages else f"{count}: {r}" for r, count in reasons.items()]
        line = ", ".join(counts) + (f" ({'; '.join(why)})" if why else ", nothing left out")
        if packages:
            names = " ".join(sorted(set(packages.values())))
            line += f". To bring what is missing: sudo apt-get install --no-install-recommends {names}"
        self.reporter.write_line(line)


KINDS = {"failed": "failed", "error": "errors", "passed": "passed", "skipped": "left out"}


@pytest.hookimpl(trylast=True)  # the reporter comes by the same hook
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(LastLine(reporter), "last-line")
