"""Real ports of 127.0.0.1: free ones, taken ones, and whose socket is behind one."""

from __future__ import annotations

import _socket
import os
import socket
import struct
import sys
from typing import Any

LOOPBACK_ADDRESS = "127.0.0.1"
TRIES = 100
# linux/netlink.h, sock_diag.h, inet_diag.h: the user id stands in a struct inet_diag_msg behind a struct nlmsghdr.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 4, 20, 1
UID_AT = 16 + 4 + 48 + 12


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
    """Whether the socket at a port that speaks to our port `to` belongs to this user.

    True where the system does not tell. A socket that has been closed already belongs to nobody.
    """
    if sys.platform != "linux":
        return True
    uid = _connected_uid(port, to) if kind == socket.SOCK_STREAM else None
    return (_listed_uid(kind, port, to) if uid is None else uid) == os.getuid()


def _connected_uid(port: int, to: int) -> int | None:
    """Whose a TCP connection is, by sock_diag(7), which finds it at once; None where that is not to be had."""
    address = socket.inet_aton(LOOPBACK_ADDRESS).ljust(16, b"\0")
    identity = struct.pack("!HH", port, to) + address * 2 + bytes(4) + b"\xff" * 8  # any interface, any cookie
    request = struct.pack("=BBxxI", socket.AF_INET, socket.IPPROTO_TCP, 0xFFFFFFFF) + identity
    header = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
            diag.settimeout(1)
            diag.send(header + request)
            reply = diag.recv(4096)
    except OSError:
        return None
    # A listener that would take such a connection is found, too, and is not the one that was asked for.
    if len(reply) < UID_AT + 4 or reply[20:24] != identity[:4]:
        return None
    return int.from_bytes(reply[UID_AT : UID_AT + 4], sys.byteorder)


def _listed_uid(kind: int, port: int, to: int) -> int | None:
    """The same as proc_pid_net(5) has it, for which the kernel walks through its whole table; None for no socket."""
    local, unbound, remote = (
        f"{_in_hex(ip)}:{at:04X}" for ip, at in ((LOOPBACK_ADDRESS, port), ("0.0.0.0", port), (LOOPBACK_ADDRESS, to))
    )
    with open("/proc/self/net/tcp" if kind == socket.SOCK_STREAM else "/proc/self/net/udp") as file:
        for line in file:
            _, at, peer, _, _, _, _, uid, *_ = line.split()
            if (at == local and peer == remote) or (kind == socket.SOCK_DGRAM and at in (local, unbound)):
                return int(uid) if uid.isdigit() else None
    return None


def _in_hex(address: str) -> str:
    """As that file writes addresses: the four bytes as one number of this machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"
