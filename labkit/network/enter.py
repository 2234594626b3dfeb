"""How a process of the notebook's gets onto a host: by setns, once it is alone in its new process.

The kernel lets the user that made a lab into its namespaces, but only a process with one thread. So this happens in a
child: after a fork, or, where a program is started, in an interpreter that stands where the program will stand: same
process id, same descriptors, same session. It enters the host and executes the program. That costs 25 ms, and is right
with threads, which Python code between fork and exec is not.

Source: setns(2), user_namespaces(7), ptrace(2) for PR_SET_DUMPABLE.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
from collections.abc import Mapping

from labkit.network.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    allow_inspection,
    keep_network_capabilities,
    setns,
)

# In this order: the user namespace brings the right to enter the others.
KINDS = {"user": CLONE_NEWUSER, "net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "mnt": CLONE_NEWNS}


def enter(namespaces: Mapping[str, int]) -> None:
    """Move this process, which has one thread, onto a host.

    Args:
        namespaces: see labkit.network.engine.Engine.namespaces.

    Raises:
        OSError: the kernel's.
    """
    where = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    for kind, number in KINDS.items():
        # The kernel refuses to enter the user namespace that one is in.
        if kind in namespaces and not os.path.samestat(os.fstat(namespaces[kind]), os.stat(f"/proc/self/ns/{kind}")):
            setns(namespaces[kind], number)
    os.fchdir(where)  # a mount namespace is entered at its root
    os.close(where)
    keep_network_capabilities()
    allow_inspection()  # by the lab's guardian, which ends this process with the lab
    # It looks for such processes once the lab has ended. One that comes later has to end by itself.
    poll = select.poll()
    poll.register(namespaces["lab"], select.POLLIN)
    if poll.poll(0):
        raise OSError(errno.ESRCH, "the lab has ended")


def main() -> None:
    """Arguments: what to do as JSON, then the program's own, its name first. See labkit.network.children.plan."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    plan = json.loads(sys.argv[1])
    told: int = plan["told"]
    os.set_inheritable(told, False)
    try:
        # As it was given: the interpreter may have changed its own (PEP 538).
        with open("/proc/self/environ", "rb") as file:
            variables = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
        enter(plan["namespaces"])
        for descriptor in plan["namespaces"].values():
            os.set_inheritable(descriptor, False)
        if plan["close_from"] is not None:
            for number in map(int, os.listdir("/proc/self/fd")):
                if number >= plan["close_from"]:
                    with contextlib.suppress(OSError):  # that of the listing itself
                        os.set_inheritable(number, False)
        become(plan)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which every Python process ignores
            signal.signal(number, signal.SIG_DFL if plan["restore_signals"] else signal.SIG_IGN)
    except OSError as exc:
        os.write(told, f"LabError:0:this process could not enter the host: {exc}".encode())
        os._exit(255)
    try:
        os.write(told, f"OSError:{execute(plan['programs'], variables):x}:".encode())
    except ValueError as exc:  # an empty name of the program, which Python does not execute
        os.write(told, f"LabError:0:{exc}".encode())
    os._exit(255)


def become(plan: Mapping[str, object]) -> None:
    """The user, group and groups that were asked for: ``Popen(user=…, group=…, extra_groups=…)``."""
    if plan["groups"] is not None:
        os.setgroups(plan["groups"])  # type: ignore[arg-type]
    if plan["gid"] is not None:
        os.setregid(plan["gid"], plan["gid"])  # type: ignore[arg-type]
    if plan["uid"] is not None:
        os.setreuid(plan["uid"], plan["uid"])  # type: ignore[arg-type]


def execute(programs: list[str], variables: Mapping[bytes, bytes]) -> int:
    """Execute the first of these files that can be. Returns the error number where none can: the first that says more
    than that there is no such file, as execvp(3) and subprocess have it."""
    failed = 0
    for path in programs:
        try:
            os.execve(path, sys.argv[2:], variables)
        except OSError as exc:
            if failed in (0, errno.ENOENT, errno.ENOTDIR):
                failed = exc.errno or errno.EIO
    return failed
