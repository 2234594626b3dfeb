"""``book record``: run notebooks here, and keep what lower tiers will show of them (see labkit.recorded)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from book.learn.contents import Contents
from labkit import recorded
from labkit.errors import LabError, NotAvailableHere
from labkit.handshakes.race import race
from labkit.handshakes.variants import VARIANTS
from labkit.lab import Lab
from labkit.network.tiers import KERNEL

FOLDER = Path(__file__).parents[1] / "recordings"
RTT_MS = 40.0
RACE = "race"  # the recordings that labkit.handshakes.race asks for


def record(book: Contents, checkout: Path, ids: Sequence[str] = ()) -> list[Path]:
    """Record sections anew, in place of their earlier recordings.

    Args:
        book: the contents.
        checkout: the folder that holds ``notebooks``.
        ids: of sections, or "race"; all by default.

    Returns:
        the folders that were written, those without a recording left out.

    Raises:
        InvalidValue: an id that is none. NotAvailableHere: this machine's tier is not the highest.
        LabError: a cell failed; its section's recordings are as before.
    """
    sections = {section.id: section for section in book.written if not section.reference}
    wanted = list(ids) or [RACE, *sections]
    for id in wanted:
        if id != RACE:
            book[id]  # InvalidValue
    with Lab(rtt_ms=RTT_MS) as lab:
        if lab.tier != KERNEL:
            raise NotAvailableHere(f"recordings are made on the tier {KERNEL!r}, and this machine's is {lab.tier!r}")
    written = []
    for id in wanted:
        with tempfile.TemporaryDirectory() as folder:
            _run([RACE] if id == RACE else [str(checkout / "notebooks" / sections[id].path)], Path(folder), id)
            target = (recorded.OWN if id == RACE else FOLDER) / id
            shutil.rmtree(target, ignore_errors=True)
            if (made := Path(folder, "recordings", id)).exists():
                shutil.copytree(made, target)
                written.append(target)
    return written


def _run(words: list[str], folder: Path, id: str) -> None:
    """In a process of its own, with a progress file of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "book.learn.recording", *words],
        env={
            **os.environ,
            "LABKIT_RECORD": str(folder / "recordings"),
            "LABKIT_HOME": str(folder / "home"),
            "MPLBACKEND": "agg",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"{id} was not recorded: {(done.stderr or done.stdout).strip()[-3000:]}")


def _main(what: str) -> None:
    """Run one notebook, or the race, in this process."""
    if what == RACE:
        with Lab(rtt_ms=RTT_MS) as lab:
            race(lab, [variant.name for variant in VARIANTS if variant.fast_open], runs=3)
        return
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(Path(what).parent)
    shell = InteractiveShell.instance()
    for cell in nbformat.read(what, as_version=4).cells:  # type: ignore[no-untyped-call]
        if cell.cell_type == "code":
            result = shell.run_cell(cell.source)  # type: ignore[no-untyped-call]
            if not result.success:
                sys.exit(f"this cell failed:\n{cell.source}\n{result.error_before_exec or result.error_in_exec!r}")


if __name__ == "__main__":
    _main(sys.argv[1])
