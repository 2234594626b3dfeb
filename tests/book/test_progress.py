"""The learner's file: kept whole, private, shared by notebooks, and never lost in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from book.learn.progress import Progress, ProgressWarning, home, progress
from labkit.errors import InvalidValue

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kept(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "home")


def test_what_is_kept_is_there_for_the_next_notebook(kept: Progress) -> None:
    kept.predict("a.b.c", 3)
    kept.predict("a.b.d", ["x", "y"])
    kept.solve("a.b.e")
    kept.finish("a.b")
    again = Progress(kept.folder)
    assert again.prediction("a.b.c") == 3
    assert again.prediction("a.b.d") == ["x", "y"]
    assert again.is_solved("a.b.e")
    assert not again.is_solved("a.b.f")
    assert again.is_read("a.b")
    assert not again.is_read("a.c")
    again.predict("a.b.c", None)
    assert kept.prediction("a.b.c") is None
    assert repr(kept) == f"<Progress {kept.path}: 1 predictions, 1 solved, 1 sections read>"
    kept.clear()
    assert repr(again) == f"<Progress {kept.path}: 0 predictions, 0 solved, 0 sections read>"


def test_only_its_owner_can_read_it(kept: Progress) -> None:
    kept.finish("a.b")
    assert kept.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in kept.folder.iterdir()} == {0o600}


def test_looking_writes_nothing(kept: Progress) -> None:
    assert kept.prediction("a.b.c") is None
    assert not kept.folder.exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"version": 1, "predictions": {"a', "Unterminated string"),
        ("[]", "not what this book writes"),
        ('{"predictions": {}}', "not what this book writes"),
        ('{"version": 1, "read": 7}', "'read' is damaged"),
        ('{"version": 99, "hearts": 3}', "newer edition: version 99"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside(kept: Progress, text: str, why: str) -> None:
    kept.folder.mkdir()
    kept.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(ProgressWarning, match="It was kept as"):
        kept.finish("a.b")
    assert why in kept.notice
    (aside,) = kept.folder.glob("progress-*.json")
    assert str(aside) in kept.notice
    assert aside.read_bytes() == text.encode("utf-8", "surrogateescape")
    assert Progress(kept.folder).is_read("a.b")
    assert Progress(kept.folder).notice == ""


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Progress(tmp_path / "file" / "home")
    with pytest.warns(ProgressWarning, match="Set LABKIT_HOME"):
        kept.finish("a.b")
    assert "LABKIT_HOME" in kept.notice
    assert kept.is_read("a.b")


def test_what_lasts_as_long_as_the_kernel_is_one_for_all_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "file" / "home"))
    with pytest.warns(ProgressWarning):
        progress().finish("a.b")
    assert progress().is_read("a.b")


ADD = """
import sys; from pathlib import Path; from book.learn.progress import Progress
kept = Progress(Path(sys.argv[1]))
for number in range(25): kept.solve(f"{sys.argv[2]}.{number}")
"""


def test_notebooks_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(json.loads((tmp_path / "progress.json").read_text())["solved"]) == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "progress.json"]


def test_there_and_back(kept: Progress, tmp_path: Path) -> None:
    kept.predict("a.b.c", 3)
    kept.finish("a.b")
    copy = kept.export(tmp_path / "copy.json")
    other = Progress(tmp_path / "other")
    other.predict("a.b.c", 4)
    other.bring(copy)
    assert other.prediction("a.b.c") == 4  # what is here stays
    assert other.is_read("a.b")
    copy.write_text('{"version": 99}')
    with pytest.raises(InvalidValue, match=r"copy\.json.* newer edition"):
        other.bring(copy)
    with pytest.raises(InvalidValue, match="no progress that this edition can read"):
        other.bring(tmp_path / "nothing.json")
    assert other.is_read("a.b")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "here"))
    assert home() == tmp_path / "here"
    monkeypatch.delenv("LABKIT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home() == tmp_path / "backend-engineering-live"


@pytest.mark.parametrize("words", [["-m", "book", "progress"], ["-m", "book", "contents"], ["-m", "labkit", "doctor"]])
def test_without_a_home_there_is_a_sentence(words: list[str], tmp_path: Path) -> None:
    """No HOME, and a user whom passwd does not know, as in many containers."""
    unknown = ["unshare", "-U", "--map-user=54321", "--map-group=54321"]
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "LABKIT_HOME")}
    variables = {name: value for name, value in variables.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [*unknown, sys.executable, *words],
        env={**variables, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    if "contents" not in words:
        assert "set labkit_home to a folder that can be written" in (done.stdout + done.stderr).lower()
