"""Lines of former days at the prompt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.shell.complete import DELIMITERS


@contextlib.contextmanager
def history(before_each: Callable[[], None]) -> Iterator[None]:
    """Lines of former days, where there is a readline and a home to keep them in.

    Args:
        before_each: called when a prompt has appeared.
    """
    try:
        import readline
    except ImportError:  # a Python that was built without it: lines are read all the same
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "labkit")
    path = folder / "shell_history"
    readline.set_completer_delims(DELIMITERS)
    readline.set_history_length(1000)
    readline.set_pre_input_hook(before_each)
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_pre_input_hook(None)
        with contextlib.suppress(OSError):  # a home that cannot be written to
            folder.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
