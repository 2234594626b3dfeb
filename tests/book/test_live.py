"""``@recorded``: the name under which a measurement is recorded, and that it is found again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from book import recorded
from labkit import InvalidValue, Lab
from labkit import recorded as recordings


def serve() -> None:
    """An argument."""


def measure(lab: Lab, *args: object) -> str:
    return f"measured on {lab.tier} with {args}"


@pytest.mark.parametrize(
    ("args", "name"), [((), "measure"), ((3, "x", serve, True, None), "measure, 3, x, serve, True, None")]
)
def test_recorded_and_shown_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: tuple[object, ...], name: str
) -> None:
    monkeypatch.setattr(recordings, "FOLDERS", [tmp_path])
    monkeypatch.setenv("LABKIT_RECORD", str(tmp_path))
    with Lab(rtt_ms=0, name="t.s") as lab:
        made = recorded(measure)(lab, *args)
    assert made.startswith("measured on kernel with (")
    monkeypatch.delenv("LABKIT_RECORD")
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=0, name="t.s") as lab:
        assert recorded(measure)(lab, *args) == made
        assert recordings.recall(f"t.s/{name}") == made


def test_what_needs_sysctls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recordings, "FOLDERS", [tmp_path])
    recordings.keep("t.s/measure", "kept", tmp_path)
    monkeypatch.setenv("LABKIT_TIER", "fixed-sysctls")
    with Lab(rtt_ms=0, name="t.s") as lab:
        assert recorded(needs="sysctls")(measure)(lab) == "kept"
        assert recorded(measure)(lab).startswith("measured on kernel, fixed sysctls")


def test_a_section_names_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A function of the section's module needs no name of a lab; a lab's name says which section shares it."""
    monkeypatch.setattr(recordings, "FOLDERS", [tmp_path])
    monkeypatch.setenv("LABKIT_RECORD", str(tmp_path))
    section = ModuleType("book.t.s")
    exec("def trace(lab):\n    return 1\n", vars(section))
    with Lab(rtt_ms=0) as lab:
        assert recorded(section.trace)(lab) == recordings.recall("t.s/trace") == 1
        with Lab(rtt_ms=0, name="t.other") as other:
            assert recorded(section.trace)(other) == recordings.recall("t.other/trace") == 1
        with pytest.raises(InvalidValue, match=r"give its id to the lab, Lab\(name='https\.tfo'\)"):
            recorded(measure)(lab)
        with pytest.raises(InvalidValue, match=r"\[1\]: a recorded measurement takes numbers"):
            recorded(section.trace)(lab, [1])
