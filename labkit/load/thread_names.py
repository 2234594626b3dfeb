"""Threads under the names that the kernel shows, for whoever asks it which of them works and which waits."""

from __future__ import annotations

import threading
from pathlib import Path

COMM_BYTES = 15  # of a name the kernel keeps so many


def call_this_thread(name: str) -> None:
    """Let the kernel know a thread's name, which Python before 3.14 does not."""
    Path("/proc/thread-self/comm").write_bytes(name.encode()[:COMM_BYTES])


def name_threads() -> None:
    """From now on the kernel knows each new thread of this process by its name."""
    start = threading.Thread.start

    def start_named(thread: threading.Thread) -> None:
        run = thread.run

        def run_named() -> None:
            call_this_thread(thread.name)
            run()

        thread.run = run_named  # type: ignore[method-assign]
        start(thread)

    threading.Thread.start = start_named  # type: ignore[assignment, method-assign]
