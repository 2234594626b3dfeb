"""The processes of a lab, found on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(directory: object) -> dict[int, str]:
    """A lab's processes, programs and daemons by pid: those that have its directory in a word or a variable."""
    found = {}
    mark = str(directory).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in words or mark in variables:
                found[int(entry.name)] = words.replace(b"\0", b" ").decode("utf-8", "replace")
    return found
