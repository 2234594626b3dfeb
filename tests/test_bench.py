"""The bench measures what it says. Whether the figures are good is for docs/performance.md, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from labkit.bench import MEANING, as_table

KEYS = [
    "import_ms",
    "lab_up_ms",
    "first_lab_ms",
    "lab_close_ms",
    "connect_rtts_p50",
    "connect_rtts_p99",
    "wire_mbps",
    "wire_dropped",
    "capture_pps",
    "capture_dropped",
    "transfer_mbps",
    "transfer_dropped",
    "dissect_us_5000",
    "dissect_us_50000",
    "http2_s",
    "rss_mib",
    "watch_hz",
    "watch_cpu",
    "watch_cpu_100",
    "load_rps",
    "load_busy",
    "wrk_rps",
    "wrk_ratio",
    "wrk_ratio_threads",
]
PROGRAMS = ["nginx", "haproxy", "envoy", "postgresql", "rabbitmq"]
KEYS += [f"{program}_{what}" for program in PROGRAMS for what in ("ready_s", "mib")]


pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def figures(require_program: Callable[[str], str]) -> Any:
    for program in ("wrk", "nginx", "haproxy", "rabbitmq-server"):
        require_program(program)
    command = [sys.executable, "-m", "labkit", "bench", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_figure_is_there_and_sane(figures: dict[str, float]) -> None:
    assert list(figures) == KEYS == list(MEANING)
    for key in KEYS:
        assert figures[key] >= 0
        if not key.endswith("_dropped"):
            assert figures[key] > 0
    # Bounds of what can be at all, not of what should be: another unit would be beyond them, a busy machine is not.
    assert 1 <= figures["connect_rtts_p50"] <= figures["connect_rtts_p99"]
    assert 5 < figures["rss_mib"] < 1_000
    assert 10 < figures["wire_mbps"] < 1e6
    assert figures["capture_pps"] > 1_000
    assert 10 < figures["watch_hz"] < 1_100
    assert figures["load_busy"] < 1.1
    assert all(0.5 < figures[f"{program}_mib"] < 2_000 for program in PROGRAMS)


def test_a_table_names_each_with_its_goal(figures: dict[str, float]) -> None:
    heading, *lines = as_table(figures).splitlines()
    assert heading.split() == ["figure", "here", "should", "be", "what"]
    for line, (key, (what, goal)) in zip(lines, MEANING.items(), strict=True):
        assert line.split()[:2] == [key, f"{figures[key]:g}"]
        assert goal in line
        assert line.endswith(what)


def test_a_program_that_is_missing_is_named() -> None:
    table = as_table({"wrk_ratio": None, "nginx_mib": None, "nginx_ready_s": 0.05})
    assert [line.split()[1:3] for line in table.splitlines()[1:3]] == [["no", "wrk"], ["no", "nginx"]]
