"""What is started inside ``with host:`` runs on that host: programs, forked processes, multiprocessing's workers.

While a lab is open these look at the block they are called in (labkit.network.inside):

- what starts a program: ``subprocess`` and all on top of it (``asyncio.create_subprocess_exec``, ``os.popen``),
  ``os.posix_spawn``, ``os.system``, ``multiprocessing`` with "spawn". The child is the caller's own, and on the host.
- what forks: ``os.fork``, ``os.forkpty`` and all on top of them (``os.spawnv``, ``pty.fork``, "fork"). The same.
- ``os.exec``: in such a child it goes on there; else it is refused, because it would take the caller's process away.
- ``multiprocessing`` with "forkserver": its server serves all blocks and is on no host, so each worker is spawned.

They all end with the lab, as what ``host.start`` starts. On the tier "loopback" a process cannot be on a host: programs
are refused there, but for those in HARMLESS, and a forked process has the host by Python's sockets alone.
"""

from __future__ import annotations

import _posixsubprocess
import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from labkit import child
from labkit.errors import LabError, NotAvailableHere
from labkit.network import environment, patches
from labkit.network.engine import OnHost
from labkit.network.inside import being, current_host

# What libraries start to look at the machine (platform, ctypes.util, uuid, torch): nothing of it uses a network.
HARMLESS = frozenset(
    (
        *("arch", "arp", "cat", "cc", "clang", "echo", "false", "fc-list", "file", "gcc", "getconf", "id", "ifconfig"),
        *("ip", "ld", "ldconfig", "ls", "lsb_release", "lscpu", "nproc", "nvidia-smi", "objdump", "ps", "pwd", "sleep"),
        *("stty", "sw_vers", "sysctl", "true", "tput", "tty", "uname", "which", "whoami"),
    )
)
HARMLESS_GIT = frozenset(
    (
        *("--version", "branch", "config", "describe", "diff", "log", "ls-files", "rev-list", "rev-parse", "show"),
        *("status", "symbolic-ref"),
    )
)
GIT_OPTIONS = ("-C", "-c", "--git-dir", "--work-tree")  # which have a value
FIRST_FREE = 10  # a descriptor above those that a program may expect at a place

_settled: tuple[int, OnHost] | None = None  # this process, if it was forked onto a host: it may go to others


def ways_in(host: OnHost) -> str:
    """The calls that run a program on a host, for errors."""
    return f"lab.{host.name}.run([...]) and lab.{host.name}.start([...]), or a ServerProcess for a Python function"


def settled(host: OnHost | None = None) -> bool:
    """Whether this process was forked onto this host, or onto any, so that all that it opens is there."""
    return _settled is not None and _settled[0] == os.getpid() and host in (None, _settled[1])


@contextlib.contextmanager
def _over(host: OnHost) -> Iterator[None]:
    """In a process that was forked onto a host: what this thread starts in this block is on another one."""

    if settled(host):  # who closes all descriptors between fork and exec has none of a namespace either
        yield
        return
    from labkit.network.namespaces import CLONE_NEWNET, CLONE_NEWUTS, setns  # ctypes: when it is needed

    kinds = {"net": CLONE_NEWNET, "uts": CLONE_NEWUTS}
    there = host.namespaces()
    back = {kind: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in kinds if kind in there}
    try:
        for kind in back:
            setns(there[kind], kinds[kind])
        yield
    finally:
        for kind, descriptor in back.items():
            setns(descriptor, kinds[kind])
            os.close(descriptor)


def _namespaces(host: OnHost, program: str, arguments: Sequence[Any]) -> Mapping[str, int] | None:
    """What a program has to enter; None for a harmless one where no process can be on a host."""
    try:
        return host.namespaces()
    except NotAvailableHere as exc:
        name, words = os.path.basename(program), [os.fsdecode(word) for word in arguments[1:]]
        if name in HARMLESS or (name == "git" and _git_command(words) in HARMLESS_GIT):
            return None
        raise NotAvailableHere(
            f"{program!r}, started inside `with lab.{host.name}:`, would use this machine's network: {exc}. "
            f"Start it outside the block; where a lab has a kernel's network it runs on the host, as by {ways_in(host)}"
        ) from None


def _git_command(words: Sequence[str]) -> str:
    """The first word that is no option: "show" asks nobody, and "remote show" a server."""
    rest = iter(words)
    for word in rest:
        if word in GIT_OPTIONS:
            next(rest, None)
        elif word == "--version" or not word.startswith("-"):
            return word
    return ""


def plan(
    namespaces: Mapping[str, int],
    told: int,
    programs: Iterable[Any],
    *,
    restore_signals: bool = False,
    ids: tuple[Any, Any, Any] = (None, None, None),
    close_from: int | None = None,
) -> str:
    """What labkit.network.enter is told: the namespaces' descriptors, where it tells why it failed, files to try."""
    gid, groups, uid = ids
    what = {
        "namespaces": dict(namespaces),
        "told": told,
        "programs": [os.fsdecode(path) for path in programs],
        "restore_signals": restore_signals,
        "gid": gid,
        "groups": None if groups is None else list(groups),
        "uid": uid,
        "close_from": close_from,
    }
    return json.dumps(what)


def _fork_exec(original: Callable[..., int]) -> Callable[..., int]:
    """Of _posixsubprocess, for Popen and multiprocessing: the same call, with an interpreter that enters first."""

    def fork_exec(*given: Any) -> int:
        host = current_host()
        if host is None:
            return original(*given)
        argv, programs, close_fds, pass_fds, cwd, env, *middle = given
        variables = [os.fsencode(f"{name}={value}") for name, value in os.environ.items()] if env is None else env
        if settled():
            with _over(host):
                return original(argv, programs, close_fds, pass_fds, cwd, variables, *middle)
        namespaces = _namespaces(host, os.fsdecode(programs[0]), argv)
        if namespaces is None:
            return original(argv, programs, close_fds, pass_fds, cwd, variables, *middle)
        told, restore_signals, ids = middle[7], middle[8], middle[11:14]
        # A copy, because the original ends when the interpreter is executed.
        copy = fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        try:
            words = plan(namespaces, copy, programs, restore_signals=bool(restore_signals), ids=tuple(ids))
            command = [*child.command("labkit.network.enter", words, bare=True), *argv]
            pass_fds = tuple(sorted({*pass_fds, copy, *namespaces.values()}))
            middle[11:14] = [None, None, None]
            interpreter = [os.fsencode(sys.executable)]
            return original(command, interpreter, close_fds, pass_fds, cwd, variables, *middle)
        finally:
            os.close(copy)

    return fork_exec


def _posix_spawn(search: bool) -> Callable[[Callable[..., int]], Callable[..., int]]:
    def wrap(original: Callable[..., int]) -> Callable[..., int]:
        def posix_spawn(path: Any, argv: Sequence[Any], env: Mapping[Any, Any], /, **options: Any) -> int:
            host = current_host()
            if host is None:
                return original(path, argv, env, **options)
            if settled():
                with _over(host):
                    return original(path, argv, env, **options)
            namespaces = _namespaces(host, os.fsdecode(path), argv)
            if namespaces is None:
                return original(path, argv, env, **options)
            name = os.fsdecode(path)
            folders = os.get_exec_path() if search and "/" not in name else [""]
            hear, told = os.pipe()
            try:
                copy = fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
                os.close(told)
                told = copy
                # Onto itself: open in the child, and in no other process that is started meanwhile.
                kept = [(os.POSIX_SPAWN_DUP2, each, each) for each in (told, *namespaces.values())]
                actions = list(options.get("file_actions") or ())
                # What closes all others would close these: left to the interpreter (Popen does so from Python 3.13 on).
                closing = [action for action in actions if action[0] == getattr(os, "POSIX_SPAWN_CLOSEFROM", None)]
                options["file_actions"] = [*(action for action in actions if action not in closing), *kept]
                words = plan(
                    namespaces,
                    told,
                    [os.path.join(folder, name) for folder in folders],
                    restore_signals=signal.SIGPIPE in (options.get("setsigdef") or ()),
                    close_from=min((first for _, first in closing), default=None),
                )
                command = [*child.command("labkit.network.enter", words, bare=True), *argv]
                pid = original(sys.executable, command, env, **options)
                os.close(told)
                told = -1
                with open(hear, "rb", closefd=False) as file:
                    said = file.read()
            finally:
                os.close(hear)
                if told >= 0:
                    os.close(told)
            if not said:
                return pid
            os.waitpid(pid, 0)
            kind, number, why = said.decode().split(":", 2)
            if kind != "OSError":
                raise LabError(f"{name!r} on {host.name}: {why}")
            raise OSError(int(number, 16), os.strerror(int(number, 16)), name)

        return posix_spawn

    return wrap


def _system(original: Callable[[Any], int]) -> Callable[[Any], int]:
    def system(command: Any) -> int:
        if current_host() is None:
            return original(command)
        status = subprocess.call(["/bin/sh", "-c", os.fspath(command)])
        return -status if status < 0 else status << 8  # as wait(2) has it

    return system


def _fork(original: Callable[[], Any]) -> Callable[[], Any]:
    """Of os.fork and os.forkpty."""

    def fork() -> Any:
        host = current_host()
        if host is None:
            return original()
        from labkit.network.enter import enter  # here, and not in a child whose other threads are gone

        try:
            namespaces = host.namespaces()  # asked for here, where an error can be told
        except NotAvailableHere:
            return original()  # Python's sockets are the host's in the child, too, and exec is refused
        forked = original()
        if (forked[0] if isinstance(forked, tuple) else forked) == 0:
            _settle(host, lambda: enter(namespaces))
        return forked

    return fork


def _settle(host: OnHost, enter: Callable[[], None]) -> None:
    """In a forked child: be on the host as a whole. One that cannot must not go on."""
    global _settled
    try:
        enter()
        environment.move_in()
    except OSError as exc:
        os.write(2, f"labkit: a forked process could not enter {host.name}: {exc}\n".encode())
        os._exit(255)
    _settled = os.getpid(), host


def _exec(original: Callable[..., Any]) -> Callable[..., Any]:
    def execute(path: Any, *arguments: Any) -> Any:
        host = current_host()
        if host is None:
            return original(path, *arguments)
        if settled():
            if not settled(host):
                from labkit.network.enter import enter

                enter(host.namespaces())
            return original(path, *arguments)
        program = path if isinstance(path, int) else os.fsdecode(path)
        words = (
            f"os.exec of {program!r} inside `with lab.{host.name}:` would replace this process, which is on no host: "
            f"start it by {ways_in(host)}"
        )
        try:
            if _namespaces(host, str(program), arguments[0]) is None:
                return original(path, *arguments)
        except NotAvailableHere as exc:
            words = str(exc)
        raise OSError(errno.EPERM, words)  # and not an error of labkit's: who forks and executes expects this one

    return execute


LAYER: patches.Layer = (
    (_posixsubprocess, "fork_exec", _fork_exec),
    (subprocess, "_fork_exec", _fork_exec),
    (os, "posix_spawn", _posix_spawn(search=False)),
    (os, "posix_spawnp", _posix_spawn(search=True)),
    (os, "system", _system),
    (os, "fork", _fork),
    (os, "forkpty", _fork),
    (os, "execv", _exec),
    (os, "execve", _exec),
)


# multiprocessing.


def _outside(original: Callable[..., Any]) -> Callable[..., Any]:
    """For what serves the whole process and outlives a block."""

    def start(*arguments: Any, **options: Any) -> Any:
        with being(()):
            return original(*arguments, **options)

    return start


def _forkserver(original: Callable[..., Any]) -> Callable[..., Any]:
    def popen(process: Any) -> Any:
        if current_host() is None:
            return original(process)
        from multiprocessing.context import SpawnProcess

        return SpawnProcess._Popen(process)

    return popen


LATE: patches.LateLayers = {
    "multiprocessing.resource_tracker": [
        ("ResourceTracker", "ensure_running", _outside),
        ("ResourceTracker", "_launch", _outside),  # from Python 3.14 on `register` goes by it alone
    ],
    "multiprocessing.forkserver": [("ForkServer", "ensure_running", _outside)],
    "multiprocessing.context": [("ForkServerProcess", "_Popen", _forkserver)],
}
