"""For every test, notebooks included: the learner's progress is none of theirs, and they can run side by side."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest

_home = tempfile.TemporaryDirectory(prefix="labkit-home-")
os.environ["LABKIT_HOME"] = _home.name  # notebooks' kernels inherit it

# Files whose tests take long and have nothing to share. Of all others one process runs the whole file: the cells of a
# notebook share a kernel, the tests of a module its fixtures.
ONE_BY_ONE = ("tests/test_tiers.py", "tests/test_notebooks.py", "tests/test_sections.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that begins last would run alone for minutes."""
    items.sort(key=lambda item: item.path.name not in ("test_tiers.py", "test_notebooks.py"))


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """With ``pytest -n``: what one process takes at a time. xdist 3.8's own groups have no effect on pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file in ONE_BY_ONE else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)
