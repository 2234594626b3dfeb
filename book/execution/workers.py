"""How the chapter's servers start their workers, in threads or processes, and wait for sockets."""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from labkit.load.thread_names import call_this_thread

PR_SET_PDEATHSIG = 1
EPOLLEXCLUSIVE: int = getattr(select, "EPOLLEXCLUSIVE", 1 << 28)  # where there is no epoll, cells can still be defined


class Start(Protocol):
    """How a pattern starts its workers: ``thread`` or ``process``."""

    def __call__(self, name: str, function: Callable[..., object], *args: Any) -> None: ...


def thread(name: str, function: Callable[..., object], *args: Any) -> None:
    """Run a function in a thread of this process: it shares the GIL with the others."""
    threading.Thread(target=function, args=args, name=name, daemon=True).start()


def process(name: str, function: Callable[..., object], *args: Any) -> None:
    """Run a function in a fork of this process: a GIL of its own, and the sockets of the parent."""
    parent = os.getpid()
    if os.fork() != 0:
        return
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it ended before this process could ask for its end
            call_this_thread(name)
            function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def readable(selector: selectors.BaseSelector) -> list[socket.socket]:
    """Wait until some of a selector's sockets can be read or accepted from. Returns those."""
    return [key.fileobj for key, _ in selector.select()]  # type: ignore[misc]
