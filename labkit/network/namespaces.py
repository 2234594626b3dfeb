"""The kernel calls that make a host: unshare, setns, mount, and what a program may do on it.

Python has ``os.unshare`` and ``os.setns`` from 3.12 on; ctypes serves 3.11 too. Standard library only: the
helper process starts without site-packages, in about 20 ms.

Sources: unshare(2), setns(2), user_namespaces(7), pid_namespaces(7), capabilities(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_TIMERSLACK, PR_SET_CHILD_SUBREAPER = 1, 4, 29, 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 10, 12, 13
LINUX_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces. Raises OSError with the kernel's reason."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Move this thread into the namespace behind a descriptor. Raises OSError with the kernel's reason."""
    _check(_libc.setns(descriptor, kind), f"setns({kind:#x})")


def mount(source: str, target: str, flags: int) -> None:
    """mount(2) without a file system type: for bind mounts and propagation. Raises OSError."""
    result = _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)
    _check(result, f"mount({source!r}, {target!r}, {flags:#x})")


def enter_user_namespace() -> None:
    """Move this process into a new user namespace, in which everybody is who they are outside.

    The identity map, and not 0, because programs such as PostgreSQL refuse to run as root. For root all ids that it
    has are mapped, so that its programs can change their user, as nginx and sshd do. An ordinary user may map
    itself alone; its programs could not change their user outside either.

    The process holds every capability over the new namespace until it executes another program.
    Raises OSError with the kernel's reason.
    """
    uid, gid = os.geteuid(), os.getegid()
    write_maps = _map_writer() if uid == 0 else None
    try:
        unshare(CLONE_NEWUSER)
    except OSError:
        if write_maps:
            write_maps(False)
        raise
    if write_maps and write_maps(True):
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _map_writer() -> Callable[[bool], bool]:
    """A child that stays in the namespace of now: only there is the right to map other ids than one's own.

    Returns what tells it to write the maps of this process or to let it be. That returns whether they are written.
    """
    # The directory and not a number: this process may have another number in the /proc that is mounted here.
    own = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    word, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(said)
        try:
            if os.read(word, 1):
                for name in ("uid_map", "gid_map"):
                    with open(f"/proc/self/{name}") as file:
                        ranges = [line.split() for line in file]
                    target = os.open(name, os.O_WRONLY, dir_fd=own)
                    os.write(target, "".join(f"{first} {first} {count}\n" for first, _, count in ranges).encode())
            os._exit(0)
        except OSError:
            os._exit(1)

    def finish(write: bool) -> bool:
        os.write(said, b"w" if write else b"")
        for descriptor in (said, word, own):
            os.close(descriptor)
        return os.waitpid(child, 0)[1] == 0

    return finish


def keep_network_capabilities() -> None:
    """Let the program that is executed next use its host's network as root would: ip, ping, tcpdump, ports < 1024.

    Ambient capabilities survive the exec of an ordinary user's program; they reach no further than this
    user namespace, so they give no power over the machine.
    """
    bits = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    effective, permitted, _, *high = struct.unpack("=6I", data.raw)
    _check(_libc.capset(header, struct.pack("=6I", effective, permitted, bits & permitted, *high)), "capset")
    for capability in (CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW):
        _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0), "prctl(PR_CAP_AMBIENT)")


def end_with_parent() -> None:
    """Let the kernel SIGKILL this process when its parent ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def adopt_orphans() -> None:
    """Let this process become the parent of those of its descendants whose parents end."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def allow_inspection() -> None:
    """Let other processes of this user look at this one again, which a change of its user namespace forbids."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def set_timer_slack(nanoseconds: int) -> None:
    """Ask the kernel to wake this process that exactly. The default of 50 µs would be seen on every packet."""
    _check(_libc.prctl(PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0), "prctl(PR_SET_TIMERSLACK)")
