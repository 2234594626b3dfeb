"""What Tab offers: hosts, commands, programs, their options' names, files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

# What ends a word. Not "." and "/": they stand in names of hosts and files.
DELIMITERS = " \t\n|&;()<>'\"="
_NEXT_COMMAND = re.compile(r"[|&;(]")

Offer = Callable[[str], Sequence[str]]


def candidates(
    before: str, text: str, *, cwd: str, hosts: Sequence[str], commands: Mapping[str, Offer | None]
) -> list[str]:
    """The ways to go on.

    Args:
        before: the line up to the word that is being typed.
        text: that word so far.
        cwd: where files are looked for.
        hosts: names of the lab's hosts.
        commands: of the shell itself: what each offers after what stands behind its name, or None for files.

    Returns:
        whole words in order, each with what follows it, a space mostly.
    """
    pieces = _NEXT_COMMAND.split(before)
    words = pieces[-1].split()
    first_piece = len(pieces) == 1
    if first_piece and words and words[0] in hosts:
        del words[0]
    if not words:
        named = {*hosts, *commands} if first_piece else set()
        named |= programs(os.environ.get("PATH", ""))
        found = [f"{name} " for name in sorted(named) if name.startswith(text)]
        return found or _files(text, cwd)
    offer = commands.get(words[0]) if first_piece else None
    if offer is not None:
        return [word if word.endswith("=") else f"{word} " for word in offer(before) if word.startswith(text)]
    names = [f"{host}.lab " for host in hosts if text and f"{host}.lab".startswith(text)]
    return names + _files(text, cwd)


@cache
def programs(path: str) -> frozenset[str]:
    """The programs on a search path."""
    found = set()
    for folder in path.split(os.pathsep):
        try:
            with os.scandir(folder or ".") as entries:
                found |= {entry.name for entry in entries if os.access(entry.path, os.X_OK) and not entry.is_dir()}
        except OSError:  # a folder that is not there, or closed to this user
            continue
    return frozenset(found)


def _files(text: str, cwd: str) -> list[str]:
    start = os.path.join(cwd, os.path.expanduser(text))
    kept = len(start) - len(text) if start.endswith(text) else 0
    found = sorted(glob.glob(f"{glob.escape(start)}*"))
    return [path[kept:] + ("/" if os.path.isdir(path) else " ") for path in found]
