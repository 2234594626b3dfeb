"""The book's pictures are drawn with its own style, whatever matplotlibrc and MPLBACKEND say on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAW = """
import hashlib, sys
from labkit.plots import Picture, style
import matplotlib
figure, axes = style.new_figure(2)
axes.plot([1, 2, 3], label="line")
axes.set_xlabel("time, ms")
axes.legend()
style.set_title(axes, "a finding of 100 % $5")
Picture(figure, "").save("x.png")
print(hashlib.sha256(Picture(figure, "").png()).hexdigest(), matplotlib.rcParams["backend"])
"""
THEIRS = """
text.usetex: True
font.size: 30
font.family: cursive
axes.facecolor: red
axes.grid: True
lines.linewidth: 9
savefig.dpi: 10
savefig.transparent: True
no.such.key: 1
"""


def drawn(folder: Path, **environment: str) -> tuple[list[str], str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MPLB", "MATPLOTLIB"))}
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        env={**variables, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_pictures_are_the_same_everywhere(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "matplotlibrc").write_text(THEIRS)
    (plain, _), _ = drawn(tmp_path)
    (theirs, backend), said = drawn(tmp_path, MATPLOTLIBRC=str(tmp_path / "theirs"), MPLBACKEND="svg")
    assert "no.such.key" in said  # it was read
    assert (theirs, backend) == (plain, "svg")
    (unknown, _), said = drawn(tmp_path, MPLBACKEND="no-such-backend")
    assert unknown == plain
    assert "MPLBACKEND='no-such-backend' is no backend" in said


def test_what_a_cell_sets_stays() -> None:
    import matplotlib

    from labkit.plots import own

    with matplotlib.rc_context({"lines.linewidth": 7}):
        own.set_back()
        assert matplotlib.rcParams["lines.linewidth"] == 7
