"""A pytest plugin: ``--processor-time`` says at the end where the suite's processor time has gone.

Counted is what a test's process and those that it waited for have used, from one test to the next. The processes of a
lab whose kernel was killed are nobody's children any more, and are not in it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest

FILES = 12  # so many rows


def used_s() -> float:
    """Processor time of this process and of those that it waited for, seconds."""
    return sum(os.times()[:4])


class Measuring:
    """In each process that runs tests."""

    def __init__(self) -> None:
        self.before_s = used_s()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        now_s = used_s()
        report.processor_s, self.before_s = now_s - self.before_s, now_s
        return report


class Summary:
    """In the process that tells."""

    def __init__(self) -> None:
        self.used_s: dict[str, float] = defaultdict(float)
        self.tests: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.used_s[row(report.nodeid)] += report.processor_s
        self.tests[row(report.nodeid)].add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("processor time")
        terminalreporter.write_line("| what | tests | seconds |\n|---|---|---|")
        rows = sorted(self.used_s, key=lambda name: -self.used_s[name])
        for name in rows[:FILES]:
            terminalreporter.write_line(f"| {name} | {len(self.tests[name])} | {self.used_s[name]:.0f} |")
        others = rows[FILES:]
        if others:
            tests, seconds = sum(len(self.tests[n]) for n in others), sum(self.used_s[n] for n in others)
            terminalreporter.write_line(f"| {len(others)} other rows | {tests} | {seconds:.0f} |")
        terminalreporter.write_line(f"| all | {sum(map(len, self.tests.values()))} | {sum(self.used_s.values()):.0f} |")


def row(nodeid: str) -> str:
    """What a test belongs to: all notebooks are one row; of the contract and the lanes each test function is one."""
    file, _, test = nodeid.partition("::")
    function, _, parameters = test.partition("[")
    if file.startswith("notebooks/"):
        return "`notebooks`, each cell twice"
    if file == "tests/test_tiers.py":
        return f"`{file}`: `{function}`, {parameters.split('-')[0].rstrip(']') or 'no lane'}"
    return f"`{file}`: `{function}`" if file == "tests/test_sections.py" else f"`{file}`"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-time", action="store_true", help="say where the processor time has gone")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.processor_time:
        config.pluginmanager.register(Measuring(), "processor-time-measuring")
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Summary(), "processor-time-summary")
