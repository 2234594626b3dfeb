"""One asyncio event loop in a background thread, shared by all that needs one (HTTP/3).

A notebook's own loop serves the cells, and a cell that computes or sleeps blocks it: a server on that loop
would stop answering. The thread starts with its first user and ends with its last::

    with LoopLease() as loop:
        answer = loop.run(fetch(), timeout_s=5)

A task gets the context of the thread that called ``run``, so a ``with host:`` block there holds for the task, too.

An interrupt of the notebook's can fall between any two steps of the main thread, also between making a lease and
giving it to whoever closes it. So nobody counts: a lease is a claim as long as it exists and is not closed, and the
thread itself, which no interrupt reaches, looks now and then whether a claim is left.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from labkit.errors import LabClosed, NotReady

T = TypeVar("T")
START_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
LOOK_EVERY_S = 0.2


class _LoopThread:
    """The thread and its loop. Ready when the constructor returns.

    Args:
        first: the first claim on it.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, first: LoopLease) -> None:
        self.claims = [weakref.ref(first)]
        self._running = threading.Event()
        # Without a context of its own the thread would keep the host of whoever came first.
        empty = contextvars.Context()
        self._thread = threading.Thread(target=empty.run, args=(self._run,), name="labkit-loop", daemon=True)
        self._thread.start()
        if not self._running.wait(START_TIMEOUT_S):
            raise NotReady(f"the background event loop did not start in {START_TIMEOUT_S:g} s: try again")

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()  # here, where no interrupt can leave its sockets open
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._running.set)
        self.loop.call_soon(self._look)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def claimed(self) -> bool:
        """Whether somebody still needs it. Call it with the lock held."""
        self.claims = [claim for claim in self.claims if (lease := claim()) is not None and not lease.closed]
        return bool(self.claims)

    def _look(self) -> None:
        """End for want of claims. Mostly the last lease's ``close`` was here before; an interrupt can keep it away."""
        global _thread
        # Not waiting: whoever holds the lock may be waiting for this thread.
        if _lock.acquire(blocking=False):
            try:
                if not self.claimed():
                    if _thread is self:
                        _thread = None
                    self.loop.stop()
                    return
            finally:
                _lock.release()
        self.loop.call_later(LOOK_EVERY_S, self._look)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_TIMEOUT_S)


_lock = threading.Lock()
_thread: _LoopThread | None = None  # the one that takes new claims


class LoopLease:
    """A claim on the background loop, which runs until the last claim is closed.

    Raises:
        NotReady: the loop did not start in time.
    """

    def __init__(self) -> None:
        global _thread
        self.closed = False
        with _lock:
            if _thread is None:
                _thread = _LoopThread(self)
            else:
                _thread.claims.append(weakref.ref(self))
            self._thread = _thread

    def close(self) -> None:
        """Give the claim back. The last one ends the thread. Closing twice is fine."""
        global _thread
        self.closed = True
        with _lock:
            if _thread is self._thread and not _thread.claimed():
                _thread = None
                self._thread.stop()

    def __enter__(self) -> LoopLease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run a coroutine on the loop and wait for its result.

        Args:
            coroutine: what to run; it is cancelled when the deadline passes or the waiting thread is interrupted.
            timeout_s: deadline in seconds.

        Raises:
            NotReady: the deadline passed.
            LabClosed: this claim was closed before.
            whatever the coroutine raises.
        """
        if self.closed:
            coroutine.close()
            raise LabClosed("this claim on the background loop was closed before")
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[None]] = []

        async def deliver() -> None:
            try:
                outcome.set_result(await _bounded(coroutine, timeout_s))
            except BaseException as exc:
                outcome.set_exception(exc)

        def start() -> None:
            tasks.append(asyncio.ensure_future(deliver()))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        try:
            self._thread.loop.call_soon_threadsafe(start)
            return outcome.result()
        except asyncio.CancelledError:
            raise LabClosed("the background loop ended while this was waiting for it") from None
        except KeyboardInterrupt:
            # It arrives in this thread only, and maybe before the task exists: the loop sorts that out in order.
            self._thread.loop.call_soon_threadsafe(cancel)
            raise


async def _bounded(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return await coroutine
    except TimeoutError:
        if not deadline.expired():
            raise  # the coroutine's own
        raise NotReady(f"nothing came back within {timeout_s:g} s: see the server's log, or allow more time") from None


def run(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run one coroutine on the background loop. Raises as ``LoopLease.run`` does."""
    with LoopLease() as lease:
        return lease.run(coroutine, timeout_s)
