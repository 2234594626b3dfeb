"""Processes of labkit's own: each runs ``main()`` of one of its modules, in a session of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextvars import Context
from pathlib import Path
from typing import Any

_BOOT = (
    "import gc, sys; from importlib import import_module; sys.path.append(sys.argv.pop(1)); "
    "gc.disable(); main = import_module(sys.argv.pop(1)).main; gc.enable(); main()"  # imports leave no garbage
)


def command(module: str, *words: object, bare: bool = False) -> list[str]:
    """What runs a module's ``main()`` with these arguments, wherever labkit lies and whatever stands in the folder.

    Args:
        bare: without site-packages, which takes 20 ms instead of 200: for modules that need the standard library alone.
    """
    flags = ("-I", "-S") if bare else ("-P",)
    root = Path(__file__).resolve().parents[1]
    return [sys.executable, *flags, "-c", _BOOT, str(root), module, *map(str, words)]


def start(module: str, *words: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start it bare. A notebook's interrupt, which goes to its whole process group, does not reach it."""
    words_of = command(module, *words, bare=True)
    # In a context of its own: labkit's processes are on no host, whatever block they are started in.
    return Context().run(lambda: subprocess.Popen(words_of, start_new_session=True, **options))


def end(process: subprocess.Popen[bytes], patience_s: float = 10.0) -> None:
    """Wait for one that knows that it has to end, and kill it at the deadline."""
    if hasattr(os, "pidfd_open") and process.poll() is None:  # wait() with a deadline polls, and comes up to 50 ms late
        descriptor = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(patience_s * 1000)
        finally:
            os.close(descriptor)
        patience_s = 0
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
