"""Ports that are typed, and who listens on them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from labkit.errors import InvalidValue
from labkit.network.host import Host
from labkit.network.tiers import LOOPBACK

LISTEN, UNCONNECTED = "0A", "07"  # of TCP and of UDP, in /proc/net (net/tcp_states.h)


def port_of(word: str) -> int:
    """A port. Raises InvalidValue."""
    if not word.isdigit() or not 0 < int(word) < 65536:
        raise InvalidValue(f"{word!r}: give a port, 8000")
    return int(word)


def listens(host: Host, port: int) -> bool:
    """Whether something listens on a host's port, TCP or UDP, by the kernel's own list (proc(5), /proc/net/tcp)."""
    real = host.bound(port)[1]  # on the tier "loopback" a port of this machine's
    for name, state in (("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            path = f"/proc/net/{name}"
            local = host.engine.tier == LOOPBACK
            text = Path(path).read_text() if local else host.engine.read_file(host.name, path)
            for line in text.splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and int(fields[1].rpartition(":")[2], 16) == real:
                    return True
    return False
