"""Processes: those of a lab, found on this machine; what a program is started by to be somebody else or elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

# As another user, who has no rights over this machine: root outside for files, nobody's capabilities inside.
ORDINARY = ("unshare", "-U", "--map-user=1000", "--map-group=1000")
# Where the kernel's settings cannot be written, as in many containers.
_READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
FIXED = ("unshare", "-Urm", "sh", "-c", _READ_ONLY, "sh")


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
