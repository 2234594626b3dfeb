"""What judges have in common: run a learner's server on a host, and read what crossed the wire."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from book.learn.grading import Deadline, Wrong, describe
from labkit.capture.capture import Capture
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import Timeline, connections, timeline
from labkit.network.host import Host
from labkit.waiting import fewest

END_S = 5.0
LOOK_S = 0.02


class Enough(BaseException):
    """Ends an answer that is wrong already. No Exception, so that a learner's ``except Exception`` lets it through."""


def connected(host: Host, port: int, timeout_s: float = 5.0) -> socket.socket:
    """A connection from a host to a judge's own server, on the lab's server.

    Raises:
        MeasurementFailed: there is none, for which no answer is to blame.
    """
    try:
        with host:
            return socket.create_connection(("server.lab", port), timeout=timeout_s)
    except OSError as exc:
        raise MeasurementFailed(f"no connection to the lab's server: {exc}") from exc


@contextlib.contextmanager
def serving(host: Host, serve: Callable[..., Any], *arguments: Any, port: int = 8443) -> Iterator[socket.socket]:
    """Run a learner's ``serve(listener, *arguments)`` in a thread for the length of a block.

    Args:
        host: where it listens.
        serve: the learner's; it accepts from the listener and returns when it has served.
        arguments: what it takes besides.
        port: of the listener.

    Yields:
        the listener.

    Raises:
        Wrong: the server raised, with its exception as the cause.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            serve(listener, *arguments)
        except BaseException as exc:
            raised.append(exc)

    with host, socket.create_server((host.ip, port)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield listener
        except Exception:
            thread.join(1)  # what the client met is the consequence; the cause may be on its way
            if not raised:
                raise
        else:
            thread.join(END_S)
    if raised:
        raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]


@contextlib.contextmanager
def running(function: Callable[..., Any], *args: Any) -> Iterator[list[BaseException]]:
    """Run a learner's server, which need not return, in a thread of this process; it ends with the process.

    Yields:
        a list that gets the exception with which the server has ended, if it has.

    Raises:
        Wrong: what the block raised, with the server's exception as the reason where there is one.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function(*args)
        except BaseException as exc:
            raised.append(exc)

    threading.Thread(target=run, name="your server", daemon=True).start()
    try:
        yield raised
    except Wrong:
        if raised:
            raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
        raise


def killed_by_itself(work: Callable[[], object], seconds: float) -> bool:
    """Run this in a process of its own, which it kills in the middle. Whether it came so far.

    Args:
        work: sends its process SIGKILL; nothing of it is left but what it has written.
        seconds: until it has to have ended.

    Raises:
        MeasurementFailed: it has not.
    """
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by == signal.SIGALRM:
        raise MeasurementFailed(
            f"a process of its own did not end within {seconds:g} s: the machine is busy, or your code waits there for "
            "what never comes"
        )
    return ended_by == signal.SIGKILL


def in_time(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it happens in so many seconds in which no thread of this process has to wait for a CPU.

    Args:
        condition: called again and again; it holds where the result is true.
        seconds: of a CPU that is free for this process.

    Raises:
        MeasurementFailed: it has not happened, and they have to wait most of the time.
    """
    deadline = Deadline(seconds, os.getpid())
    while not condition():
        time.sleep(LOOK_S)
        late = deadline.overdue()
        if late is not None and not condition():
            if late.outcome != "wrong":
                raise MeasurementFailed(late.reason)
            return False
    return True


def least(measure: Callable[[], int], enough: int, times: int = 4) -> int:
    """Measure a few times what a busy machine can only make larger, such as round trips: the least is the true one.

    Args:
        measure: one measurement, from the beginning.
        enough: with this or less, no further one is needed.
        times: so many at most.

    Returns:
        the least.

    Raises:
        MeasurementFailed: all were more than enough, and they differ: the machine has a part in them.
    """
    found: list[int] = []

    def counted(count: int) -> int:
        found.append(count)
        return count

    true = fewest(measure, counted, enough, times)
    if true > enough and len(set(found)) > 1:
        raise MeasurementFailed(
            f"measured {times} times, it came out as {', '.join(map(str, found))}: the machine is busy"
        )
    return true


def the_request(capture: Capture, port: int = 8443) -> Timeline:
    """The timeline of the one connection to this port. Raises Wrong where there is none, or no request in it."""
    mine = [group for group in connections(capture.messages) if group[0].flow.server_port == port]
    if len(mine) != 1:
        raise Wrong(f"{len(mine)} connections to port {port} were captured: one was expected")
    try:
        return timeline(mine[0])
    except MeasurementFailed as exc:
        raise Wrong(str(exc)) from exc


def watch_nodelay(context: ssl.SSLContext) -> list[bool]:
    """Note what each socket says that is wrapped with a context from now on: for a tier where no kernel holds it back.

    Args:
        context: a client's.

    Returns:
        a list that fills: whether TCP_NODELAY was on when a connection sent its first bytes over TLS.
    """
    noted: list[bool] = []

    class Watched(ssl.SSLSocket):
        asked = False

        def _ask(self) -> None:
            if not self.asked:
                self.asked = True
                noted.append(bool(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

        def send(self, *args: Any, **kwargs: Any) -> int:  # sendall comes here, too
            self._ask()
            return super().send(*args, **kwargs)

        def write(self, *args: Any, **kwargs: Any) -> int:
            self._ask()
            return super().write(*args, **kwargs)

    context.sslsocket_class = Watched
    return noted
