"""A pytest plugin for tests/test_tiers.py: the tiers that the notebooks' labs reported, a line each in $TIERS_SEEN."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

# A cell that shows its lab: <Lab client.lab 10.77.0.1, …, RTT 40 ms, tier kernel>
REPORT = re.compile(r"<Lab client\.lab .*, tier ([^>]+)>")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    for output in getattr(item, "test_outputs", None) or ():
        for tier in REPORT.findall(str(output)):
            with Path(os.environ["TIERS_SEEN"]).open("a") as file:
                file.write(f"{Path(item.path).stem}: {tier}\n")
