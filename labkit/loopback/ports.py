"""Real ports of 127.0.0.1: free ones, taken ones, and whose socket is behind one."""

from __future__ import annotations

import _socket
import os
import socket
import sys
from typing import Any

LOOPBACK_ADDRESS = "127.0.0.1"
TRIES = 100


def taken(kind: int, port: int, reuse: int) -> bool:
    """Whether a socket is bound there; with `reuse` (SO_REUSEADDR) a listening one. The kernel is asked, by binding."""
    probe = _socket.socket(socket.AF_INET, kind)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        probe.bind((LOOPBACK_ADDRESS, port))
    except OSError:
        return True
    finally:
        probe.close()
    return False


def free_pair() -> tuple[Any, Any]:
    """A TCP and a UDP socket, bound to the same free port. Not of socket.socket, which in a block is a host's."""
    for _ in range(TRIES):
        stream = _socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        datagrams = _socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that it is told from one that listens
            stream.bind((LOOPBACK_ADDRESS, 0))
            datagrams.bind(stream.getsockname())
        except OSError:
            stream.close()
            datagrams.close()
        else:
            return stream, datagrams
    raise OSError(f"no port of {LOOPBACK_ADDRESS} is free for TCP and UDP")


def ours(kind: int, port: int, to: int) -> bool:
    """Whether the socket at a port that speaks to our port `to` belongs to this user, as proc_pid_net(5) has it.

    True where the system does not tell. A socket that has been closed already belongs to nobody.
    """
    if sys.platform != "linux":
        return True
    local = f"{_in_hex(LOOPBACK_ADDRESS)}:{port:04X}"
    unbound = f"00000000:{port:04X}"
    remote = f"{_in_hex(LOOPBACK_ADDRESS)}:{to:04X}"
    with open("/proc/self/net/tcp" if kind == socket.SOCK_STREAM else "/proc/self/net/udp") as file:
        for line in file:
            _, at, peer, _, _, _, _, uid, *_ = line.split()
            connected = at == local and peer == remote
            if connected or (kind == socket.SOCK_DGRAM and at in (local, unbound)):
                return uid == str(os.getuid())
    return False


def _in_hex(address: str) -> str:
    """As that file writes addresses: the four bytes as one number of this machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"
