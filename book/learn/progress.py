"""What the learner predicted, solved and read, in one small file. Nothing of it leaves the machine.

The file lies in the user's data folder (``LABKIT_HOME`` moves it), readable by its owner alone. Each change is
written whole to a file beside it and renamed, so it is the old one or the new one and never half of one; a lock
keeps two notebooks from undoing each other's changes. A file that cannot be read is set aside under another name,
and both a warning and ``Progress.notice`` say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import InvalidValue

try:
    import fcntl
except ImportError:  # not on Windows, where two notebooks at once may undo each other's last change
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from labkit.doctor import Check

VERSION = 1
FILE = "progress.json"
NO_HOME = Path(os.devnull, "no home folder")  # where nothing can be kept
PARTS = ("predictions", "solved", "read")


def home() -> Path:
    """The learner's folder: ``LABKIT_HOME``, else the user data folder of this operating system."""
    from platformdirs import user_data_path  # late: what judges an answer keeps no progress

    chosen = os.environ.get("LABKIT_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        folder = user_data_path("backend-engineering-live", appauthor=False)
    except RuntimeError:  # neither HOME nor an entry in passwd says where it would be
        return NO_HOME
    return folder if folder.is_absolute() else NO_HOME


class ProgressWarning(UserWarning):
    """The learner's progress was set aside, or cannot be kept."""


class Progress:
    """The learner's progress.

    Args:
        folder: where its file lies; ``home()`` by default.

    Attributes:
        notice: what the learner should know: a file that was set aside, a folder that cannot be written; else "".
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = home() if folder is None else Path(folder)
        self.notice = ""
        self._in_memory: dict[str, Any] | None = None

    def __repr__(self) -> str:
        data = self._read()
        counts = ", ".join(
            f"{len(data[part])} {word}"
            for part, word in (("predictions", "predictions"), ("solved", "solved"), ("read", "sections read"))
        )
        return f"<Progress {'in memory' if self.folder == NO_HOME else self.path}: {counts}>"

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def why_not_kept(self) -> str:
        """Why the file cannot be written, in the system's words; "" where it can. Nothing is made but for a moment."""
        if self.folder == NO_HOME:
            return "this user has no home folder"
        there = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                return ""
        except OSError as exc:
            return exc.strerror or str(exc)

    def prediction(self, prediction_id: str) -> Any:
        """What was predicted, None for nothing."""
        return self._read()["predictions"].get(prediction_id)

    def predict(self, prediction_id: str, value: Any) -> None:
        """Keep a prediction; None takes it back."""

        def change(data: dict[str, Any]) -> None:
            if value is None:
                data["predictions"].pop(prediction_id, None)
            else:
                data["predictions"][prediction_id] = value

        self._change(change)

    def is_solved(self, exercise_id: str) -> bool:
        """Whether this exercise was ever solved."""
        return exercise_id in self._read()["solved"]

    def solve(self, exercise_id: str) -> None:
        """Keep that an exercise is solved, and the day on which it first was."""
        self._change(lambda data: data["solved"].setdefault(exercise_id, _today()))

    def is_read(self, section_id: str) -> bool:
        """Whether this section was read to its end."""
        return section_id in self._read()["read"]

    def finish(self, section_id: str) -> None:
        """Keep that a section was read to its end, and the day on which it first was."""
        self._change(lambda data: data["read"].setdefault(section_id, _today()))

    def clear(self) -> None:
        """Forget everything."""
        self._change(lambda data: data.update(_empty()))

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write a copy, to be brought back with ``bring``: a Binder session forgets everything at its end."""
        target = Path(path)
        target.write_text(_text(self._read()), encoding="utf-8")
        return target

    def bring(self, path: str | os.PathLike[str]) -> None:
        """Add what an exported copy holds; where both know something, what is here stays.

        Raises:
            InvalidValue: the file is no progress of this book, or of a newer edition. Nothing was changed.
        """
        try:
            brought = _parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise InvalidValue(f"{os.fspath(path)!r} is no progress that this edition can read: {exc}") from exc

        def change(data: dict[str, Any]) -> None:
            for part in PARTS:
                data[part] = {**brought[part], **data[part]}

        self._change(change)

    def _read(self) -> dict[str, Any]:
        if self._in_memory is not None:
            return self._in_memory
        try:
            return _parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _empty()
        except OSError as exc:
            return self._only_in_memory(exc)
        except ValueError as exc:
            return self._set_aside(str(exc))

    def _set_aside(self, why: str) -> dict[str, Any]:
        aside = self.path.with_name(f"progress-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}.json")
        try:
            self.path.rename(aside)
        except FileNotFoundError:  # another notebook was quicker
            return _empty()
        except OSError as exc:
            return self._only_in_memory(exc)
        self._tell(f"Your progress could not be read ({why}). It was kept as {aside}, and a new one begun.")
        return _empty()

    def _only_in_memory(self, exc: OSError) -> dict[str, Any]:
        where = f" in {self.folder} ({exc.strerror})" if self.folder != NO_HOME else ", as this user has no home folder"
        self._tell(
            f"Your progress cannot be kept{where}: it lasts as long as this notebook's kernel. "
            "Set LABKIT_HOME to a folder that can be written."
        )
        self._in_memory = _empty()
        return self._in_memory

    def _tell(self, notice: str) -> None:
        self.notice = notice
        warnings.warn(notice, ProgressWarning, stacklevel=2)

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock():
                data = self._read()
                change(data)
                if self._in_memory is None:
                    self._write(data)
        except OSError as exc:
            change(self._only_in_memory(exc))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.folder / "lock", "a", opener=_private) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # given back with the file, also by a kernel that is killed
            yield

    def _write(self, data: dict[str, Any]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".progress-")  # mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(_text(data))
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise


def progress() -> Progress:
    """The progress of this learner."""
    return _progress_in(home())


@cache
def _progress_in(folder: Path) -> Progress:
    """One for each folder: where it can only be kept in memory, all cells share that."""
    return Progress(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def _empty() -> dict[str, Any]:
    return {"version": VERSION, **{part: {} for part in PARTS}}


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _parse(text: str) -> dict[str, Any]:
    """The file's data. Raises ValueError that says what is wrong with it."""
    data = json.loads(text)
    if not isinstance(data, dict) or not isinstance(data.get("version"), int):
        raise ValueError("it is not what this book writes")
    if data["version"] > VERSION:
        raise ValueError(f"it is of a newer edition: version {data['version']}, this one reads up to {VERSION}")
    for part in PARTS:
        if not isinstance(data.setdefault(part, {}), dict):
            raise ValueError(f"its {part!r} is damaged")
    return data


def check() -> list[Check]:
    """What `labkit doctor` says of the place where progress is kept."""
    from labkit.doctor import Check  # importing that module makes `labkit.doctor` the module, and not the function

    kept = progress()
    if why := kept.why_not_kept():
        where = "" if kept.folder == NO_HOME else f" in {kept.folder}"
        found = f"cannot be kept{where} ({why}): it lasts as long as a notebook's kernel"
        return [Check("progress", "optional", found, "set LABKIT_HOME to a folder that can be written")]
    return [Check("progress", "ok", f"kept in {kept.folder}")]
