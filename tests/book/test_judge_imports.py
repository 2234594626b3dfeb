"""What a check of a function costs before the learner's code runs: the modules that its process loads, counted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from book import Section, contents

LESSONS = [section for section in contents().written if not section.reference]
# Each takes as long to load as all else that a judge needs, or longer.
HEAVY = {"matplotlib", "numpy", "PIL", "ipywidgets", "IPython", "markdown_it", "nbformat", "scapy", "httpx", "aioquic"}
# What a section is about, and its judge speaks.
ITS_OWN = {"https.quic": {"aioquic"}, "https.quic_early_data": {"aioquic"}}
SOURCE = """
import importlib, json, sys
import book.learn.judge
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("section", LESSONS, ids=lambda section: section.id)
def test_a_judge_loads_nothing_that_it_does_not_need(section: Section) -> None:
    command = [sys.executable, "-c", SOURCE, section.module.__name__]
    loaded = set(json.loads(subprocess.check_output(command, text=True)))
    unneeded = loaded & HEAVY - ITS_OWN.get(section.id, set())
    assert not unneeded, f"{section.module.__name__} loads {unneeded}; python -X importtime says by which module"
