"""A site of two workers behind a balancer, and browsers that use it: whoever gets a 401 was logged out.

::

    with Site(lab, handle, InMemory, balance) as site:
        users = site.log_in(20)
        logged_out(users, times=2)                       # one user after the other
        restart_under_load(users, site.workers["blue"].restart)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from http.cookies import SimpleCookie
from typing import Any, Self

from labkit import MeasurementFailed
from labkit.capture.captured import Captured
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.servers import HttpServer, Request, Response
from labkit.services import HAProxy
from labkit.waiting import wait_until

WORKERS = ("red", "blue")
WORKER_PORT, FRONT_PORT = 8000, 80
TIMEOUT_S = 20.0
HOP_BY_HOP = ("connection", "content-length", "keep-alive", "transfer-encoding")  # a server sets its own


def cookies_of(request: Request) -> dict[str, str]:
    """The cookies that a request brings, by name; of two of one name the first."""
    found: dict[str, str] = {}
    for pair in (request.header("cookie") or "").split(";"):
        name, _, value = pair.strip().partition("=")
        found.setdefault(name, value)
    return found


def exchange(host: Host, name: str, port: int, request: Request) -> Response:
    """Send a request on from a host, over a connection of its own. OSError where there was no whole response."""
    with host:
        connection = HTTPConnection(f"{name}.lab", port, timeout=TIMEOUT_S)
        try:
            connection.request(request.method, request.target, request.body or None, dict(request.headers))
            response = connection.getresponse()
            body = response.read()
        except HTTPException as exc:
            raise ConnectionError(f"{name} gave no whole response: {exc!r}") from exc
        finally:
            connection.close()
    fields = tuple((name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP)
    return Response(response.status, fields, body)


class Restartable:
    """A server whose handler is made anew at each start: what the old one kept is gone.

    Args:
        host: where it runs.
        port: where it listens.
        make_handler: called at each start.
    """

    def __init__(self, host: Host, port: int, make_handler: Callable[[], Callable[[Request], Response]]) -> None:
        self.host, self.port, self._make = host, port, make_handler
        self.start()

    def start(self) -> None:
        """Listen, with a new handler."""
        self._server = HttpServer(self.host, self._make(), port=self.port)

    def stop(self) -> None:
        """It no longer listens, and its memory is gone."""
        self._server.close()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Worker(Restartable):
    """A server and the sessions that it has: after a restart those that it makes then.

    Args:
        host: where it runs.
        handle: called with a request and the sessions.
        make_sessions: called at each start, with the host.

    Attributes:
        sessions: what ``make_sessions`` gave it at its latest start.
        served: how many requests it has had, over all starts.
    """

    def __init__(self, host: Host, handle: Callable[..., Response], make_sessions: Callable[[Host], Any]) -> None:
        self.served = 0

        def make_handler() -> Callable[[Request], Response]:
            self.sessions = sessions = make_sessions(host)

            def answer(request: Request) -> Response:
                self.served += 1
                return handle(request, sessions)

            return answer

        super().__init__(host, WORKER_PORT, make_handler)


def at_once(*calls: Callable[[], object], patience_s: float = 2 * TIMEOUT_S) -> None:
    """Call all of these at the same time, each in a thread.

    Args:
        calls: take nothing.
        patience_s: to wait for each.

    Raises:
        what the first of them raised that raised anything.
        MeasurementFailed: one has not ended.
    """
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s)
    if failed:
        raise failed[0]
    if any(thread.is_alive() for thread in threads):
        raise MeasurementFailed("what was called at once did not end in time: the machine is busy")


class Browser:
    """A user agent with a cookie jar, on a host.

    Args:
        lab: whose server has the site.
        host: where the user is.

    Attributes:
        statuses: of all its responses, in their order.
    """

    def __init__(self, lab: Lab, host: Host) -> None:
        self.lab, self.host = lab, host
        self.cookies: dict[str, str] = {}
        self.statuses: list[int] = []
        self._connection: HTTPConnection | None = None

    def ask(self, target: str) -> int:
        """One request over the kept connection. Returns the status."""
        with self.host:
            if self._connection is None:
                self._connection = HTTPConnection(self.lab.server.fqdn, FRONT_PORT, timeout=TIMEOUT_S)
            fields = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
            try:
                self._connection.request("GET", target, headers=fields if self.cookies else {})
                response = self._connection.getresponse()
                response.read()
            except (OSError, HTTPException) as exc:
                self.close()
                raise MeasurementFailed(f"the balancer gave no response to {target} ({exc!r}): run it again") from exc
        for text in response.headers.get_all("set-cookie", []):
            self.cookies.update({name: morsel.value for name, morsel in SimpleCookie(text).items()})
        self.statuses.append(response.status)
        return response.status

    def move(self, host: Host) -> None:
        """Go to another network, with all cookies."""
        self.close()
        self.host = host

    @property
    def logged_out(self) -> bool:
        """Whether it was ever asked to log in again."""
        return 401 in self.statuses

    def close(self) -> None:
        """Close its connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Site:
    """Workers on the hosts ``red`` and ``blue``, a balancer on the server.

    Args:
        lab: with these hosts.
        handle: what a worker does, called with a request and its sessions.
        make_sessions: from a worker's host to what it knows at its start.
        front: the balancer: from request to response, or the text of HAProxy's configuration.
    """

    def __init__(
        self,
        lab: Lab,
        handle: Callable[..., Response],
        make_sessions: Callable[[Host], Any],
        front: Callable[[Request], Response] | str,
    ) -> None:
        self.lab = lab
        self._all = ExitStack()
        self.browsers: list[Browser] = []
        self.workers: dict[str, Worker] = {}
        try:
            for name in WORKERS:
                self.workers[name] = Worker(getattr(lab, name), handle, make_sessions)
                self._all.callback(self.workers[name].stop)
            opened: Any = (
                HAProxy(lab.server, front) if isinstance(front, str) else HttpServer(lab.server, front, port=FRONT_PORT)
            )
            self._all.callback(opened.close)
        except BaseException:
            self._all.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for browser in self.browsers:
            browser.close()
        self._all.close()

    def log_in(self, users: int) -> list[Browser]:
        """So many users on the client's host log in, one after the other."""
        browsers = [Browser(self.lab, self.lab.client) for _ in range(users)]
        self.browsers += browsers
        for number, browser in enumerate(browsers, 10):
            browser.ask(f"/login/user{number}")
        return browsers

    @property
    def served(self) -> Mapping[str, int]:
        """How many requests each worker has had."""
        return {name: worker.served for name, worker in self.workers.items()}


def lookups(capture: Captured, host: str = "store") -> tuple[int, int]:
    """What asking a host costs: round trips (whatever it has to answer: a SYN, a request), and packets with payload.

    What a busy machine made a kernel send again does not count.
    """
    packets = [packet for packet in capture.messages if not packet.retransmission]
    asked = [packet for packet in packets if packet.transit.destination == host]
    answered = [packet for packet in packets if packet.transit.source == host]
    waited = sum("SYN" in packet.flags or packet.payload > 0 for packet in asked)
    return waited, sum(packet.payload > 0 for packet in asked + answered)


def logged_out(browsers: Sequence[Browser], times: int = 2) -> int:
    """Each user asks so many times, one user after the other. Returns how many were logged out so far."""
    for browser in browsers:
        for _ in range(times):
            if (status := browser.ask("/me")) not in (200, 401):
                raise MeasurementFailed(f"/me was answered with {status}, which is neither in nor out: run it again")
    return sum(browser.logged_out for browser in browsers)


def restart_under_load(browsers: Sequence[Browser], restart: Callable[[], None], after: int = 2) -> int:
    """All users ask at the same time, before, during and after a restart.

    Args:
        browsers: of the users.
        restart: called when each of them has had a response.
        after: requests of each when it is over.

    Returns:
        how many were logged out by it: those that were not before.
    """
    before = [browser for browser in browsers if not browser.logged_out]
    answered = [threading.Event() for _ in browsers]
    over = threading.Event()
    failed: list[BaseException] = []

    def use(browser: Browser, first: threading.Event) -> None:
        try:
            while not over.is_set():
                browser.ask("/me")
                first.set()
            for _ in range(after):
                browser.ask("/me")
        except BaseException as exc:
            failed.append(exc)
            first.set()

    threads = [threading.Thread(target=use, args=pair, daemon=True) for pair in zip(browsers, answered, strict=True)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(event.is_set() for event in answered), TIMEOUT_S, "a response for each user")
        restart()
    finally:
        over.set()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
    if failed:
        raise failed[0]
    return sum(browser.logged_out for browser in before)
