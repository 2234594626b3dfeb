"""A forked child that becomes a program, for the helper and for a keeper (labkit.loopback.keeper).

Standard library only: both run without site-packages, the keeper on systems other than Linux, too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import NoReturn


def start(argv: list[str], env: Mapping[str, str], cwd: str, prepare: Callable[[], None]) -> int:
    """Start a program in a session of its own, and wait until it is executed. Returns its process id.

    Args:
        argv, env, cwd: as execve(2) has them.
        prepare: what the child does before.

    Raises:
        OSError: the kernel's reason why it cannot be executed; nothing is left of the child.
    """
    # Closed by a successful exec, so an empty read says that the program runs (as in subprocess).
    error_read, error_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, prepare, error_write)
    os.close(error_write)
    with open(error_read, "rb") as pipe:
        report = pipe.read()
    if report:
        os.waitpid(pid, 0)
        failure = json.loads(report)
        raise OSError(failure["errno"], failure["error"])
    return pid


def _become(
    argv: list[str], env: Mapping[str, str], cwd: str, prepare: Callable[[], None], error_write: int
) -> NoReturn:
    try:
        os.setsid()
        prepare()
        if os.isatty(0):
            _take_terminal(0)
        # A notebook in the background of a script ignores some by inheritance, and so would the program.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):  # those that another system keeps for itself
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.set_wakeup_fd(-1)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as exc:
        os.write(error_write, json.dumps({"errno": exc.errno, "error": exc.strerror}).encode())
    except ValueError as exc:  # a null character in an argument
        os.write(error_write, json.dumps({"errno": errno.EINVAL, "error": str(exc)}).encode())
    finally:
        os._exit(127)


def _take_terminal(descriptor: int) -> None:
    """Make it this session's terminal: Ctrl-C and its end are signals to the program. One of another session stays."""
    import fcntl  # few programs have a terminal, and every lab's start waits for imports
    import termios

    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
