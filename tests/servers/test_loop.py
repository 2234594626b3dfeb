from __future__ import annotations

import asyncio
import signal
import socket
import threading

import pytest

from labkit import Lab, LabClosed, NotReady
from labkit.servers.loop import LoopLease, run


async def thread_name() -> str:
    return threading.current_thread().name


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "labkit-loop"]


def test_one_thread_serves_all_users_and_ends_with_the_last() -> None:
    with LoopLease() as first, LoopLease() as second:
        assert first.run(thread_name(), 5) == second.run(thread_name(), 5) == "labkit-loop"
        assert len(loop_threads()) == 1
        first.close()
        first.close()
        assert second.run(thread_name(), 5) == "labkit-loop"
    assert not loop_threads()


def test_the_result_and_the_error_come_back() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("by the coroutine")

    assert run(thread_name(), 5) == "labkit-loop"
    with pytest.raises(ZeroDivisionError, match="by the coroutine"):
        run(fail(), 5)
    assert not loop_threads()


def test_a_deadline_that_passes_cancels_the_coroutine() -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(NotReady, match=r"0\.01 s"):
        run(forever(), 0.01)
    assert cancelled.is_set()


def test_the_coroutines_own_timeout_stays_its_own() -> None:
    async def give_up() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        run(give_up(), 5)


def test_an_interrupt_of_the_caller_cancels_the_coroutine() -> None:
    cancelled = threading.Event()

    async def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with LoopLease() as lease:
        with pytest.raises(KeyboardInterrupt):
            lease.run(interrupt(), 30)
        assert cancelled.wait(5)
        assert lease.run(thread_name(), 5) == "labkit-loop"


def test_a_closed_lease_runs_nothing() -> None:
    lease = LoopLease()
    lease.close()
    with pytest.raises(LabClosed, match="closed before"):
        lease.run(thread_name(), 5)


def test_tasks_that_are_left_are_cancelled_at_the_end() -> None:
    ended = threading.Event()

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def leave_one_behind() -> asyncio.Task[None]:
        task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        return task

    run(leave_one_behind(), 5)
    assert ended.is_set()


def test_a_task_opens_its_sockets_on_the_callers_host(lab: Lab) -> None:
    async def own_address() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((lab.server.ip, 9))
            return str(sock.getsockname()[0])

    with lab.client, LoopLease() as lease:
        assert lease.run(own_address(), 5) == lab.client.ip
        with lab.server:
            assert lease.run(own_address(), 5) == lab.server.ip
