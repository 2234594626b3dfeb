"""The program that makes the load: one process, one epoll loop, requests and responses as bytes.

``load.py`` starts it on a host, with what is asked as JSON on its standard input. One JSON object with what came of it
leaves on its standard output. It has to be quicker than the Python server that it measures, so a response whose head it
has seen before is known by that head and not read again.

When a request's time begins:

- closed loop: when its client's response before it was complete. The next request is sent then.
- open loop: when it was due. Request i is due i / rate seconds after the start, whatever the server does. One that
  finds no connection free waits here, and that counts. The time from the send alone is kept beside it.

A connection that has to be made counts as part of its request. Every request that began (in the open loop: was sent)
is completed, one error, or unfinished in the end. Those of the warm-up count nowhere, and what it could not send by
its end is not sent.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import random
import resource
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hdrh.histogram import HdrHistogram

from labkit.load.response import END_OF_HEAD, Malformed, Response

LOWEST_US, HIGHEST_US, DIGITS = 1, 60_000_000, 3  # of the histograms
DRAIN_S = 2.0  # what is still out when the time is over gets as long as this, at most its own deadline
RETRY_S = 0.01  # a client of the closed loop whose request failed pauses: a refused connection would make it spin
MOST_HEADS = 1000  # that are remembered; a server that dates its responses has a new one each second
RECEIVE = 65536
S = 1_000_000_000  # the clock counts nanoseconds

clock = time.monotonic_ns

KINDS = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timeout"}


def kind_of(error: OSError) -> str:
    """What an error of the kernel is counted as: "refused", "reset", "timeout", else its name, such as "EMFILE"."""
    number = error.errno or 0
    return KINDS.get(number) or errno.errorcode.get(number, str(error))


@dataclass(frozen=True)
class Task:
    """What is asked: the arguments of ``labkit.load.load.load``, an IP address for the target."""

    address: str
    port: int
    clients: int
    seconds: float
    rate: float | None
    new_connections: bool
    requests: list[bytes]
    weights: list[float]
    warmup_s: float
    timeout_s: float
    seed: int


class Client:
    """One connection after the other, and the request that is out on it."""

    __slots__ = ("began", "due", "kind", "receive", "response", "send", "socket", "unsent", "waiting")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.receive: Callable[[int], bytes]
        self.send: Callable[[bytes], int]
        self.kind = 0  # of the request: its place in the list of requests
        self.due = 0  # when its latency begins
        self.began = 0  # when it was sent, or its connection begun
        self.waiting = False  # a request is out
        self.unsent = b""  # the part of it that the kernel did not take yet
        self.response: Response | None = None  # where it did not come in one well-known piece


class Generator:
    """The loop. ``run`` makes the load and returns what came of it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.family = socket.AF_INET6 if ":" in task.address else socket.AF_INET
        self.timeout = int(task.timeout_s * S)
        self.bodiless = [request.startswith(b"HEAD ") for request in task.requests]
        self.random = random.Random(task.seed)
        self.chosen: list[int] = []
        self.epoll = select.epoll()
        self.all = [Client() for _ in range(task.clients)]
        self.clients: dict[int, Client] = {}  # by descriptor
        self.free: deque[Client] = deque()  # open loop: without a request
        self.resting: deque[tuple[int, Client]] = deque()  # closed loop: until when
        self.heads: dict[bytes, int] = {}  # head -> bytes of the whole response, where it is 2xx and can be reused
        self.latencies = [array("q") for _ in task.requests]  # nanoseconds, by kind of request
        self.services = [array("q") for _ in task.requests if task.rate]
        self.errors: Counter[str] = Counter()
        self.look_every = min(max(self.timeout // 20, S // 200), S // 10)
        self.next_look = 0  # for requests that have timed out

    def run(self) -> dict[str, Any]:
        """Make the load.

        Returns:
            completed, errors by kind, unfinished, unsent (due, and never sent), duration_s, cpu_s of this process in
            that time, and the histograms "latency" and "service" by kind of request, encoded.
        """
        task = self.task
        if not task.new_connections:
            for client in self.all:
                with contextlib.suppress(OSError):  # the first request meets it again, and counts it
                    self.connect(client)
        self.start = clock()
        self.index = 0  # open loop: the request that is due next
        rate = task.rate or 0
        first, self.total = (math.ceil(round(rate * s, 6)) for s in (task.warmup_s, task.warmup_s + task.seconds))
        self.counted_from = self.due(first) if rate else self.start + int(task.warmup_s * S)
        self.end = self.start + int((task.warmup_s + task.seconds) * S)
        if rate:
            self.free.extend(self.all)
        else:
            for client in self.all:
                self.begin(client, now := clock(), now)
        self.until(self.start + int(task.warmup_s * S))
        self.index = max(self.index, first)  # what the warm-up could not send must not stand in the way of what counts
        began, cpu = clock(), time.process_time()
        self.until(self.end)
        ended, cpu = clock(), time.process_time() - cpu
        self.take_turns(ended)  # for what became due in the last moment
        unsent = max(0, self.total - max(self.index, first))
        self.total = self.index  # no more leave
        self.until(ended + min(int(DRAIN_S * S), self.timeout), lambda: not any(c.waiting for c in self.all))
        return {
            "completed": sum(map(len, self.latencies)),
            "errors": dict(self.errors),
            "unfinished": sum(client.waiting and client.due >= self.counted_from for client in self.all),
            "unsent": unsent,
            "duration_s": (ended - began) / S,
            "cpu_s": cpu,
            "latency": [encoded(values) for values in self.latencies],
            "service": [encoded(values) for values in self.services],
        }

    def due(self, index: int) -> int:
        """When a request of the open loop is due."""
        assert self.task.rate
        return self.start + int(index * S / self.task.rate)

    def until(self, moment: int, over: Callable[[], bool] = lambda: False) -> None:
        """Let the loop run until a moment, or until it is over."""
        while (now := clock()) < moment and not over():
            wake = min(moment, self.next_look)
            if self.resting:
                wake = min(wake, self.resting[0][0])
            if self.free and self.index < self.total:
                wake = min(wake, self.due(self.index))
            self.take_answers(self.wait(max(0, wake - now)))
            self.take_turns(clock())

    def wait(self, nanoseconds: int) -> Iterable[tuple[int, int]]:
        """What epoll has to tell, waiting for it no longer than that."""
        if self.task.rate and nanoseconds:
            if events := self.epoll.poll(0):
                return events
            # epoll waits for whole milliseconds, select for microseconds: a request is to leave when it is due.
            select.select([self.epoll], [], [], nanoseconds / S)
            nanoseconds = 0
        return self.epoll.poll(nanoseconds / S)

    def take_answers(self, events: Iterable[tuple[int, int]]) -> None:
        """Read what has come, and send what follows on it. All the speed is here."""
        clients, length_by_head = self.clients.get, self.heads.get
        latencies = [values.append for values in self.latencies]
        services = [values.append for values in self.services]
        counted_from = self.counted_from
        for descriptor, _ in events:
            client = clients(descriptor)
            if client is None:
                continue  # closed since the kernel told of it
            try:
                if client.unsent:
                    self.send_rest(client)
                    continue
                data = client.receive(RECEIVE)
            except BlockingIOError:
                continue
            except OSError as exc:
                self.fail(client, kind_of(exc))
                continue
            now = clock()
            head = data[: data.find(END_OF_HEAD) + 4]
            known = client.waiting and client.response is None and length_by_head(head) == len(data)
            if not known and not self.read(client, data):
                continue
            if client.due >= counted_from:
                latencies[client.kind](now - client.due)
                if services:
                    services[client.kind](now - client.began)
            self.go_on(client, now)

    def read(self, client: Client, data: bytes) -> bool:
        """Read a response that is not well known. Returns whether it is complete and a 2xx, to be counted as such."""
        if not client.waiting:
            self.drop(client)  # closed between two requests, as a server may; the next one connects again
            return False
        response = client.response = client.response or Response(self.bodiless[client.kind])
        whole = not response.head
        try:
            complete = response.feed(data) if data else response.closed()
        except Malformed:
            self.fail(client, "malformed")
            return False
        if not complete:
            if not data:
                self.fail(client, "closed")
            return False
        good = 200 <= response.status < 300
        if good and whole and response.sized and response.reusable and data.startswith(response.head):
            if len(self.heads) >= MOST_HEADS:
                self.heads.clear()
            self.heads[response.head] = len(data)
        client.response = None
        if not response.reusable:
            self.leave(client)
        if not good:
            self.count_error(client, "status")
            self.go_on(client, clock())
        return good

    def go_on(self, client: Client, now: int) -> None:
        """The client's response is complete: its next request, where it is time for one."""
        client.waiting = False
        if self.task.new_connections:
            self.drop(client)
        if self.task.rate is None:
            if now < self.end:
                self.begin(client, now, now)
        elif now < self.end and self.index < self.total and (due := self.due(self.index)) <= now:
            self.index += 1
            self.begin(client, due, now)
        else:
            self.free.append(client)

    def take_turns(self, now: int) -> None:
        """Do what the time asks for: clients that have paused, requests that are due, those that have timed out."""
        while self.resting and self.resting[0][0] <= now:
            _, client = self.resting.popleft()
            if now < self.end:
                self.begin(client, now, now)
        for _ in range(len(self.free)):  # each once: where all fail at once, the loop still sees the time
            if self.index >= self.total or (due := self.due(self.index)) > now:
                break
            self.index += 1
            self.begin(self.free.popleft(), due, clock())
        if now >= self.next_look:
            self.next_look = now + self.look_every
            for client in self.all:
                if client.waiting and now - client.began > self.timeout:
                    self.fail(client, "timeout")

    def begin(self, client: Client, due: int, now: int) -> None:
        """Send a request, on a new connection where the client has none."""
        if len(self.task.requests) > 1:
            client.kind = self.choose()
        client.due, client.began, client.waiting = due, now, True
        request = self.task.requests[client.kind]
        try:
            if client.socket is None:
                self.connect(client)
            sent = client.send(request)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.fail(client, kind_of(exc))
            return
        if sent < len(request):
            assert client.socket is not None
            client.unsent = request[sent:]
            self.epoll.modify(client.socket, select.EPOLLOUT)

    def send_rest(self, client: Client) -> None:
        """Send what the kernel had no room for, or no connection yet. Raises OSError."""
        client.unsent = client.unsent[client.send(client.unsent) :]
        if not client.unsent:
            assert client.socket is not None
            self.epoll.modify(client.socket, select.EPOLLIN)

    def connect(self, client: Client) -> None:
        """Begin a connection. Raises OSError."""
        sock = client.socket = socket.socket(self.family, socket.SOCK_STREAM)
        client.send, client.receive = sock.send, sock.recv
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.epoll.register(sock, select.EPOLLIN)
        self.clients[sock.fileno()] = client
        number = sock.connect_ex((self.task.address, self.task.port))
        if number not in (0, errno.EINPROGRESS):
            self.drop(client)
            raise OSError(number, "connect")

    def drop(self, client: Client) -> None:
        """Close its connection."""
        if client.socket is not None:
            self.clients.pop(client.socket.fileno(), None)
            client.socket.close()  # which takes it out of epoll, too
        client.socket, client.unsent, client.response = None, b"", None

    def leave(self, client: Client) -> None:
        """Leave its connection to the server, which said that it closes it.

        Who closes first keeps the port for a minute. Here that would use up the ports, and searching for one that is
        left would take the kernel longer than the request.
        """
        left = Client()  # without a request: ``read`` drops it when the close has come
        left.socket, left.receive, client.socket = client.socket, client.receive, None
        assert left.socket is not None
        self.clients[left.socket.fileno()] = left

    def fail(self, client: Client, kind: str) -> None:
        """Count an error, close the connection, let the client wait for its turn."""
        self.drop(client)
        if not client.waiting:
            return  # the connection alone has ended, no request with it
        self.count_error(client, kind)
        client.waiting = False
        if self.task.rate is None:
            self.resting.append((clock() + int(RETRY_S * S), client))
        else:
            self.free.append(client)

    def count_error(self, client: Client, kind: str) -> None:
        """Count it, where its request counts."""
        if client.due >= self.counted_from:
            self.errors[kind] += 1

    def choose(self) -> int:
        """The kind of the next request, by weight. The same seed gives the same order."""
        if not self.chosen:
            self.chosen = self.random.choices(range(len(self.task.requests)), self.task.weights, k=1000)
        return self.chosen.pop()


def encoded(nanoseconds: Iterable[int]) -> str:
    """An HDR histogram of times in microseconds, as text. Filled afterwards: it is too slow for the loop."""
    histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for microseconds, count in Counter(value // 1000 for value in nanoseconds).items():
        histogram.record_value(min(max(microseconds, LOWEST_US), HIGHEST_US), count)
    return str(histogram.encode().decode())


def main() -> None:
    """Read a task, make the load, write the result."""
    fields = json.load(sys.stdin)
    fields["requests"] = [request.encode("latin-1") for request in fields["requests"]]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError):  # a timer may be late by this many nanoseconds, 50000 by default
        with open("/proc/self/timerslack_ns", "w") as slack:
            slack.write("1")
    gc.disable()  # a pause here would be a latency there; what there is to collect ends with the program
    json.dump(Generator(Task(**fields)).run(), sys.stdout)
