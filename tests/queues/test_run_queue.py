"""What the scheduler says of threads."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import NotAvailableHere
from labkit.queues import run_queue
from labkit.queues.run_queue import between, state, threads_of, tree

BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
pid = os.fork()
print("begun", flush=True) if pid else None
while True:
    pass
"""


def test_two_processes_on_one_cpu_wait_for_each_other(
    python: Callable[..., subprocess.Popen[str]], until: Callable[..., None]
) -> None:
    process = python(BUSY, str(min(os.sched_getaffinity(0))))
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    before = threads_of(tree(process.pid))
    assert len(before) == 2

    def both_ran() -> bool:
        return all(times.running_s > 0.2 for times in between(before, threads_of(tree(process.pid))))

    until(both_ran, 30)
    for times in between(before, threads_of(tree(process.pid))):
        # One of two, or of more where others use this CPU, too: it waits as long as it runs, or longer.
        assert times.waiting_s > 0.5 * times.running_s
        assert times.involuntary > 0
    os.killpg(process.pid, 9)


def test_a_thread_that_waits_gives_the_cpu_up_by_itself(until: Callable[..., None]) -> None:
    reading, writing = os.pipe()

    def wait_often() -> None:
        while os.read(reading, 1) != b"q":
            pass

    def asleep() -> bool:
        """It has read what was written, and waits: for a byte, or for the GIL."""
        unread = int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder)
        return not unread and state(thread.native_id or 0) == "S"

    thread = threading.Thread(target=wait_often)
    thread.start()
    try:
        until(asleep)
        before = threads_of([os.getpid()])
        for _ in range(50):
            os.write(writing, b"x")
            until(asleep)
        (times,) = (times for times in between(before, threads_of([os.getpid()])) if times.tid == thread.native_id)
        assert times.voluntary >= 50
        assert times.pid == os.getpid()
    finally:
        os.write(writing, b"q")
        thread.join()
        os.close(reading)
        os.close(writing)


def test_what_has_ended_is_left_out() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert threads_of([process.pid]) == {}
    assert list(tree(process.pid)) == []


def test_a_thread_that_is_new_counts_from_its_begin() -> None:
    now = threads_of([os.getpid()])
    assert {times.tid for times in between({}, now)} == set(now)
    assert all(times.running_s == now[times.tid].running_s for times in between({}, now))


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_queue, "PROC", tmp_path)
    with pytest.raises(NotAvailableHere, match="schedstat"):
        threads_of([os.getpid()])
