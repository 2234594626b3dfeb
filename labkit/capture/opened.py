"""A capture out of a file: whose names its hosts get, and where its secrets are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from labkit import checks
from labkit.capture.capture_file import read_file
from labkit.capture.file_content import CaptureFile
from labkit.capture.frames import Frame, pair_frames
from labkit.capture.keylog import KeyLog
from labkit.capture.looks import ends_of
from labkit.errors import InvalidValue


class Opened(TypedDict):
    """A file's frames and what is known of them, as ``Captured`` takes them."""

    frames: list[Frame]
    hosts: dict[int, str]
    at: str
    tier: str
    secrets: str
    names: dict[str, str] | None
    dropped: int
    copied: bool


def open_file(path: str | os.PathLike[str], keylog: str | os.PathLike[str] | None) -> Opened:
    """See ``Captured.open``."""
    found = read_file(path)
    secrets = found.secrets
    if keylog is not None:
        text = checks.path("keylog", keylog).read_text(encoding="utf-8", errors="replace")
        if not len(KeyLog.parse(text)):
            raise InvalidValue(
                f"keylog={os.fspath(keylog)!r} has no line of a secret, 'LABEL client_random secret': set "
                "SSLKEYLOGFILE before the program starts, and give its path here"
            )
        secrets += text
    name = Path(path).name
    names: dict[str, str] | None = found.names
    hosts: dict[int, str] = {}
    if found.by_labkit:
        if any(transit.sent_ns and transit.received_ns for transit in pair_frames(found.frames)):
            names, hosts = None, _hosts(found)  # both looks at each frame are there
        else:
            names = {**_lab_names(found), **found.names}
    return Opened(
        frames=found.frames,
        hosts=hosts,
        at=name,
        tier=f"file {name}",
        secrets=secrets,
        names=names,
        dropped=found.dropped,
        copied=not found.by_labkit,
    )


def _hosts(found: CaptureFile) -> dict[int, str]:
    """The lab's hosts by the last byte of their MAC addresses, in the order of the file's interfaces."""
    macs = {frame.host: frame.data[11] for frame in found.frames if frame.sent and len(frame.data) >= 14}
    return {macs[host]: host for host in found.interfaces if host in macs}


def _lab_names(found: CaptureFile) -> dict[str, str]:
    """The lab's hosts by address: an interface's name is its host's, and what it sent came from its address.

    By MAC address, too: a router sends on what came from another host's IP address.
    """
    names: dict[str, str] = {}
    for frame in found.frames:
        source, destination = ends_of(frame.data)
        if frame.host and (address := source if frame.sent else destination):
            names.setdefault(address, frame.host)
        if frame.host and len(frame.data) >= 14:
            names.setdefault((frame.data[6:12] if frame.sent else frame.data[:6]).hex(":"), frame.host)
    return names
