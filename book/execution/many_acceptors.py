"""What the section "Many acceptors on one socket" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.workers import process
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed, NotReady
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.load.server_process import ServerProcess
from labkit.queues.run_queue import state
from labkit.waiting import wait_until

TEXT = Text(__file__)

PORT = 8080
WAIT_S = 10.0
SOON_S = 1.0  # an answer that has not come by then is looked for more closely
SPINS_S = 1.0  # so much CPU time has no acceptor used that waits for events
ACCEPTORS = 3  # of the judges' servers
CONNECTIONS = 12
SHARE = 2
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"  # of "acceptor 1" and the others
SLEEPS, STOPPED = "S", "T"  # the states of a thread that waits for an event, and of a stopped one, proc_pid_stat(5)


def asleep(server: ServerProcess, acceptors: int) -> dict[str, int]:
    """Wait until so many acceptors are there and all of them sleep.

    Args:
        server: whose workers are called "acceptor 1", "acceptor 2", …
        acceptors: how many.

    Returns:
        by name how often each has given up the CPU to wait for something: once for each time that it was woken.

    Raises:
        NotReady: they do not sleep in time; with what the server said.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = [times for times in server.threads().values() if times.name.startswith("acceptor ")]
        if len(found) == acceptors and all(state(times.pid) == SLEEPS for times in found):
            return {times.name: times.voluntary for times in sorted(found, key=lambda times: times.name)}
        if server.stderr:
            break
        time.sleep(0.001)
    raise NotReady(f"{acceptors} acceptors should wait by now. The server said: {server.stderr.strip() or 'nothing'}")


def who(lab: Lab, server: ServerProcess, acceptors: int, opened: contextlib.ExitStack) -> str:
    """One client more connects when all acceptors sleep, and asks. Returns who answers; `opened` keeps it connected."""
    asleep(server, acceptors)
    with lab.client:
        client = opened.enter_context(socket.create_connection(("server.lab", PORT), timeout=WAIT_S))
    client.sendall(b"who?")
    return client.recv(100).decode()


def stop(server: ServerProcess, acceptors: int) -> list[int]:
    """Stop all acceptors (SIGSTOP). Returns their process ids, when none of them runs any more."""
    asleep(server, acceptors)
    found = [times for times in server.threads().values() if times.name.startswith("acceptor ")]
    pids = [times.pid for times in sorted(found, key=lambda times: times.name)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state(pid) == STOPPED for pid in pids), what=f"the stop of {acceptors} acceptors")
    return pids


class _Judged:
    """Three acceptors with a learner's function in them, and the clients that ask them.

    Args:
        lab: on its server they run.
        server: their process.
    """

    def __init__(self, lab: Lab, server: ServerProcess) -> None:
        self._lab, self._server = lab, server

    def asleep(self) -> dict[str, int]:
        """As the function of that name, but Wrong where it is the learner's code that does not sleep."""
        try:
            return asleep(self._server, ACCEPTORS)
        except NotReady:
            said = self._server.stderr.strip()
            found = [times for times in self._server.threads().values() if times.name.startswith("acceptor ")]
            if said or len(found) < ACCEPTORS:
                why = said.splitlines()[-1] if said else "its function returned"
                raise Wrong(f"an acceptor ended: {why}") from None
            if max(times.running_s for times in found) > SPINS_S:
                raise Wrong(
                    "an acceptor never sleeps: it asks again and again, where it should wait for an event"
                ) from None
            raise

    def connect(self) -> socket.socket:
        with self._lab.client:
            return socket.create_connection(("server.lab", PORT), timeout=WAIT_S)

    def ask(self, client: socket.socket, task: str) -> str:
        """Send a line, and return who answers. Raises Wrong where nobody does."""
        try:
            client.sendall(b"who?\n")
            if not select.select([client], [], [], SOON_S)[0] and self._nobody_will(client):
                raise Wrong(f"nobody answered {task}")
            name = client.recv(100).decode()
        except TimeoutError:
            raise MeasurementFailed(f"the answer did not come within {WAIT_S:g} s: the machine is busy") from None
        except ConnectionError as exc:
            raise Wrong(f"the connection ended ({exc}) {task}") from None
        if not name:
            raise Wrong(f"the connection was closed without an answer {task}")
        return name

    def _nobody_will(self, client: socket.socket) -> bool:
        """Nothing is under way, all acceptors sleep, and nothing has come of that: so there will be no answer."""
        if not self._lab.wire.settle():
            return False
        self.asleep()
        return self._lab.wire.settle() and not select.select([client], [], [], 0)[0]


# Exercise 1


def _acceptors(address: tuple[str, int], worker: Callable[..., object], *args: object) -> None:
    listener = socket.create_server(address, backlog=64)
    listener.setblocking(False)
    for number in range(1, ACCEPTORS + 1):
        process(f"acceptor {number}", worker, listener, b"acceptor %d" % number, *args)
    signal.pause()


def _greet(listener: socket.socket, name: bytes, register: Callable[..., object], head: bytes = b"") -> None:
    """An acceptor that tells its name and closes. `head` stands before the name: that of an HTTP response, or none."""
    with select.epoll() as epoll:
        register(epoll, listener)
        while True:
            epoll.poll()
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            with connection:
                connection.recv(100)
                connection.sendall(head + name)


def _judge_register(register: Callable[..., object]) -> str:
    served: collections.Counter[str] = collections.Counter()
    with Lab(rtt_ms=2) as lab, ServerProcess(lab.server, PORT, _acceptors, _greet, register) as server:
        judged = _Judged(lab, server)
        before = after = judged.asleep()
        for number in range(1, CONNECTIONS + 1):
            with judged.connect() as client:
                served[
                    judged.ask(client, f"on connection {number}: is the listener registered, and does it stay so?")
                ] += 1
                client.recv(1)
            after = judged.asleep()
    woken = sum(after[name] - before[name] >= 0.9 * CONNECTIONS for name in after)
    if woken > 1:
        raise Wrong(f"{woken} of {ACCEPTORS} acceptors woke up for each of {CONNECTIONS} connections")
    return f"{CONNECTIONS} connections, and each woke one acceptor of {ACCEPTORS}."


REGISTER = TEXT.exercise("register", _judge_register, needs="kernel")


# Exercise 2


def _judge_keep_share(keep_share: Callable[..., object]) -> str:
    opened: list[socket.socket] = []
    names: list[str] = []
    clients = ACCEPTORS * SHARE
    with Lab(rtt_ms=2) as lab, ServerProcess(lab.server, PORT, _acceptors, keep_share, SHARE) as server:
        judged = _Judged(lab, server)
        try:
            for number in range(1, clients + 1):
                judged.asleep()
                opened.append(judged.connect())
                names.append(judged.ask(opened[-1], f"on connection {number} of {clients}"))
            name, most = collections.Counter(names).most_common(1)[0]
            if most > SHARE:
                raise Wrong(f"{name} holds {most} connections at a time: its share was {SHARE}")
            for client, before in zip(opened, names, strict=True):
                if judged.ask(client, "when asked again") != before:
                    raise Wrong("a connection changed its acceptor: who accepts it answers on it")
            opened.pop().close()
            opened.append(judged.connect())
            name = judged.ask(
                opened[-1], "after a connection was closed: its acceptor had room, and does not accept again"
            )
        finally:
            for client in opened:
                client.close()
    return f"{clients} connections, {SHARE} with each acceptor, and {name} accepted again when it had room."


KEEP_SHARE = TEXT.exercise("keep_share", _judge_keep_share, needs="kernel")

EXERCISES = (REGISTER, KEEP_SHARE)

QUIZ = TEXT.quiz


@recorded
def one_connection(lab: Lab) -> Captured:
    """A client asks one of three acceptors, by HTTP, who serves it."""
    with ServerProcess(lab.server, PORT, _acceptors, _greet, _exclusively, HEAD) as server:
        asleep(server, ACCEPTORS)
        with lab.capture() as capture, lab.client, socket.create_connection(("server.lab", PORT), timeout=10) as client:
            client.sendall(b"GET /who HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            while client.recv(100):
                pass
    return capture


def _exclusively(epoll: select.epoll, listener: socket.socket) -> None:
    epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """One connection to one of three acceptors, on this lab or recorded, with three blanks."""
    capture = one_connection(lab)
    (packets,) = (group for group in connections(capture.messages) if begins(group[0]))
    return TEXT.trace(
        packets,
        [
            Blank("SYN-ACK", "round trip", "does anybody have to wake up before the kernel answers?"),
            Blank("HTTP/1.1 200", "round trip", "the request has to arrive first, and it waits for the SYN-ACK"),
            Blank("FIN", "from", "who has nothing more to say after its answer?"),
        ],
        tier=capture.tier,
    )
