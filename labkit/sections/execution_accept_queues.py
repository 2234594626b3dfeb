"""What the section "SYN and accept queues" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.grading import describe
from labkit.learn.judging import happens, wait_until
from labkit.network.host import Counters
from labkit.queues.diag import LISTEN, NETLINK_SOCK_DIAG, ask, request
from labkit.queues.watch import Watch

PORT = 8080
RTT_MS = 10
WAIT_S = 8.0
TRIES = 5
SLOW_MS = 100  # for one round trip: whoever takes that for no answer is misled by the machine
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _new_client(lab: Lab) -> socket.socket:
    client = lab["client"].socket()
    client.setblocking(False)
    return client


def _call(lab: Lab, client: socket.socket) -> None:
    """Begin to connect: the SYN leaves."""
    client.connect_ex((lab.server.ip, PORT))


def _connected(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError:
        return False
    return True


def _refused(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, 0)  # an error is told in any case, and stays
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _listen(lab: Lab, backlog: int) -> socket.socket:
    with lab.server:
        return socket.create_server((lab.server.ip, PORT), backlog=backlog)


def _count(watch: Watch, name: str) -> int:
    return watch.so_far().counters.get(f"TcpExt{name}", 0)


def _queued(lab: Lab) -> int:
    """Connections in the accept queue, asked for now: what a watch has sampled may be of a moment ago."""
    with lab.server.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        return sum(entry.receive_queue for entry in ask(netlink, request(states=1 << LISTEN, port=PORT)))


def _slowest_ms(capture: Captured) -> float:
    """The longest that a client waited for the answer to its SYN, milliseconds; 0 where none was answered."""
    waits = [0.0]
    for group in connections(capture.messages):
        answers = (p.transit.received_ns for p in group if p.label.startswith("SYN-ACK"))
        came_ns = next((moment for moment in answers if moment), None)
        if begins(group[0]) and came_ns:
            waits.append((came_ns - group[0].transit.time_ns) / 1e6)
    return max(waits)


# What the experiments need on a busy machine


def call_all(lab: Lab, clients: Sequence[socket.socket]) -> None:
    """Let clients begin to connect at the same moment: all SYNs are on their way before the first one arrives.

    Raises:
        MeasurementFailed: this process was held up in between.
    """
    began = time.monotonic()
    for client in clients:
        _call(lab, client)
    if time.monotonic() - began > lab.rtt_ms / 2000:
        raise MeasurementFailed(f"{len(clients)} clients did not call at the same moment: is the machine busy?")


def check_sent_once(lab: Lab, before: Counters) -> None:
    """Raises MeasurementFailed where a client's timer has sent a SYN again since its host's counters were read."""
    if again := (lab.client.counters - before)["TcpExtTCPSynRetrans"]:
        raise MeasurementFailed(f"{again} SYNs were sent again, after a second: is the machine busy?")


def steadily(run: Callable[..., Any], lab: Lab, *args: Any, once: bool = True) -> Any:
    """Make a run; again where the machine was held up, and the run is not what it should be.

    Args:
        run: called with the lab and args; raises MeasurementFailed where it was held up.
        lab, args: for the run.
        once: whether each SYN has to be sent once only.

    Returns:
        what the run returns. Raises MeasurementFailed where it was held up each time.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(MeasurementFailed):
            return _run_once(run, lab, *args, once=once)
    return _run_once(run, lab, *args, once=once)


def _run_once(run: Callable[..., Any], lab: Lab, *args: Any, once: bool) -> Any:
    before = lab.client.counters
    result = run(lab, *args)
    if once:
        check_sent_once(lab, before)
    return result


# Exercise 1


def _judge_capacity(accept_capacity: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab, _listen(lab, 5):
        with lab.watch(PORT) as watch, lab.capture() as capture:
            with lab.client:
                answer = accept_capacity((lab.server.ip, PORT))
            lab.wire.settle()
        seen = watch.history  # with a last look: nobody accepts, so whoever got in is still there
    held = seen.accept_queue.peak
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Wrong(f"it returned {answer!r}: give the number of connections as an int")
    if seen.counters.get("TcpExtSyncookiesRecv") and answer > held:
        raise Wrong(
            f"you say {answer}, and the server's accept queue held {held}: the SYN queue was full, so the others "
            "got SYN cookies and believe that they are connected. Let each client finish before the next one "
            "begins"
        )
    if not seen.counters.get("TcpExtListenDrops"):
        if (slowest_ms := _slowest_ms(capture)) > SLOW_MS:
            raise MeasurementFailed(f"a SYN was answered after {slowest_ms:.0f} ms instead of {RTT_MS}")
        raise Wrong(
            f"the server dropped nothing: its accept queue held {held} when you stopped, and there was room left"
        )
    if answer != held:
        raise Wrong(
            f"you say {answer}, and the server's accept queue held {held}: count the clients that got a connection"
        )
    return f"The server called listen(5), and {held} fit: found from outside."


CAPACITY = Exercise(
    id="execution.accept_queues.capacity",
    task=(
        "A server listens at `address` and accepts nothing. Write `accept_capacity(address)`: find out from the "
        "client's side how many connections fit into its accept queue, and return the number. You do not see the "
        "server's counters. The round trip takes 10 ms."
    ),
    starter="def accept_capacity(address):\n    return ...\n",
    solution=(
        "import contextlib\n"
        "import socket\n\n\n"
        "def accept_capacity(address):\n"
        "    with contextlib.ExitStack() as waiting:\n"
        "        count = 0\n"
        "        while True:\n"
        "            try:\n"
        "                waiting.enter_context(socket.create_connection(address, timeout=0.4))\n"
        "            except TimeoutError:\n"
        "                return count\n"
        "            count += 1\n"
    ),
    explanation=(
        "One client after the other, so that each handshake has left the SYN queue before the next begins: then no "
        "SYN gets a cookie, and connect tells the truth. A client that gets no answer within many round trips met a "
        "full accept queue. The time-out of connect has to be shorter than the second after which the kernel sends "
        "the SYN again."
    ),
    hints=(
        "What does a client see whose SYN finds the accept queue full? It is not an error from the server.",
        "socket.create_connection takes a timeout. How many round trips are enough to say that no answer comes?",
        "Connect in a loop, keep the sockets, and count until a TimeoutError. One after the other: at once, SYN "
        "cookies would let every connect succeed.",
    ),
    mistakes=(
        Mistake(
            "import contextlib\n"
            "import socket\n"
            "import time\n\n\n"
            "def accept_capacity(address):\n"
            "    with contextlib.ExitStack() as stack:\n"
            "        clients = [stack.enter_context(socket.socket()) for _ in range(30)]\n"
            "        for client in clients:\n"
            "            client.setblocking(False)\n"
            "            client.connect_ex(address)\n"
            "        time.sleep(0.8)\n"
            "        return sum(not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients)\n",
            "believe that they are connected",
        ),
        Mistake(
            "import socket\n\n\n"
            "def accept_capacity(address):\n"
            "    waiting = []\n"
            "    try:\n"
            "        for number in range(1, 100):\n"
            "            waiting.append(socket.create_connection(address, timeout=0.4))\n"
            "    except TimeoutError:\n"
            "        return number\n",
            "count the clients that got a connection",
        ),
        Mistake(
            "import socket\n\n\n"
            "def accept_capacity(address):\n"
            "    waiting = [socket.create_connection(address, timeout=0.4) for _ in range(3)]\n"
            "    return len(waiting)\n",
            "there was room left",
        ),
    ),
    judge=_judge_capacity,
    needs="kernel",
)


# Exercise 2

CLIENTS = 10
BACKLOG = 2
PATIENCE_S = 3.0


class _Work:
    """Serves one connection, and takes as long as the judge wants: a backend that is slow."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            self.go_on.wait()
            connection.sendall(ANSWER)


def _answered(client: socket.socket, deadline: float) -> bool:
    try:
        client.settimeout(max(0.01, deadline - time.monotonic()))
        return client.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _judge_keep_accepting(keep_accepting: Callable[..., Any]) -> str:
    raised: list[BaseException] = []
    work = _Work()

    def run() -> None:
        try:
            keep_accepting(listener, work, CLIENTS)
        except BaseException as exc:
            raised.append(exc)

    with (
        Lab(rtt_ms=RTT_MS) as lab,
        _listen(lab, BACKLOG) as listener,
        lab.watch(PORT) as watch,
        contextlib.ExitStack() as callers,
    ):
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        clients = []
        patience_s = PATIENCE_S
        for number in range(1, CLIENTS + 1):
            client = callers.enter_context(_new_client(lab))
            clients.append(client)
            _call(lab, client)

            def decided(client: socket.socket = client) -> bool:
                return _connected(client) or _refused(client) or bool(raised) or _count(watch, "ListenDrops") > 0

            wait_until(decided)
            if raised:
                raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
            if _refused(client):
                raise Wrong(f"client {number} was refused: your function has closed the listener")
            if _connected(client):
                client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            lab.wire.settle()  # the last ACK puts a connection into the queue, half a round trip after the client's own
            if not happens(lambda: not _queued(lab), patience_s):
                patience_s = 0.02  # nobody accepts: the others need not wait as long
        seen = watch.so_far()
        dropped, held = seen.counters.get("TcpExtListenDrops", 0), _queued(lab)
        if dropped:
            raise Wrong(
                f"while `work` was busy nobody accepted: {held} connections stood in the accept queue, and the "
                "kernel dropped what came after them"
            )
        if held:
            raise Wrong(
                f"while `work` was busy nobody accepted: the accept queue held {held} connections. A longer queue "
                "lets them wait, it does not serve them"
            )
        work.go_on.set()
        deadline = time.monotonic() + WAIT_S
        answers = sum(_answered(client, deadline) for client in clients)
        thread.join(WAIT_S / 2)
    if raised:
        raise Wrong(f"your server raised {describe(raised[0])}") from raised[0]
    if answers < CLIENTS:
        raise Wrong(f"{answers} of {CLIENTS} clients got a response: hand every connection to `work`")
    if thread.is_alive():
        raise Wrong(f"all {CLIENTS} clients are served, and your function has not returned")
    most = seen.accept_queue.peak
    return f"{CLIENTS} clients, listen({BACKLOG}), nothing dropped: at most {most} was seen in the accept queue."


KEEP_ACCEPTING = Exercise(
    id="execution.accept_queues.keep_accepting",
    task=(
        "Write `keep_accepting(listener, work, clients)`: accept that many connections and call `work(connection)` "
        "for each. `work` reads the request, answers and closes, but its backend is slow: it may not return before "
        "all clients are there. The listener has a backlog of 2, and 10 clients come. None may be left in the accept "
        "queue while `work` is busy. Return when all are served."
    ),
    starter="def keep_accepting(listener, work, clients):\n    return ...\n",
    solution=(
        "from concurrent.futures import ThreadPoolExecutor\n\n\n"
        "def keep_accepting(listener, work, clients):\n"
        "    with ThreadPoolExecutor(max_workers=4) as pool:\n"
        "        for _ in range(clients):\n"
        "            connection, _ = listener.accept()\n"
        "            pool.submit(work, connection)\n"
    ),
    explanation=(
        "The thread that accepts does nothing else, so a slow backend cannot keep it away from the accept queue. "
        "Connections that no worker can take yet wait in the pool's queue. That one the program sees: it can count "
        "them, refuse some with 503, or stop accepting on purpose. In the kernel's queue it can do none of that."
    ),
    hints=(
        "Where is your program while `work` waits for its backend, and who calls accept meanwhile?",
        "Let one thread only accept, and hand each connection to another thread.",
        "ThreadPoolExecutor.submit returns at once, also when all workers are busy. Leaving its with block waits for "
        "all.",
    ),
    mistakes=(
        Mistake(
            "def keep_accepting(listener, work, clients):\n"
            "    for _ in range(clients):\n"
            "        connection, _ = listener.accept()\n"
            "        work(connection)\n",
            "the kernel dropped what came after them",
        ),
        Mistake(
            "def keep_accepting(listener, work, clients):\n"
            "    listener.listen(128)\n"
            "    for _ in range(clients):\n"
            "        connection, _ = listener.accept()\n"
            "        work(connection)\n",
            "A longer queue lets them wait",
        ),
        Mistake(
            "import threading\n\n\n"
            "def keep_accepting(listener, work, clients):\n"
            "    busy = None\n"
            "    for _ in range(clients):\n"
            "        connection, _ = listener.accept()\n"
            "        if busy is None or not busy.is_alive():\n"
            "            busy = threading.Thread(target=work, args=(connection,))\n"
            "            busy.start()\n"
            "        else:\n"
            "            connection.close()\n"
            "    busy.join()\n",
            "1 of 10 clients got a response",
        ),
    ),
    judge=_judge_keep_accepting,
    deadline_s=20.0,
    needs="kernel",
)

EXERCISES = (CAPACITY, KEEP_ACCEPTING)


# The hidden trace


def _seventh(lab: Lab) -> Captured:
    """Five clients fill the queue of a listener with backlog 4, two more come; then the server accepts again."""
    with (
        contextlib.ExitStack() as stack,
        _listen(lab, 4) as listener,
        lab.watch(PORT) as watch,
    ):

        def decided() -> int:
            seen = watch.so_far()
            return seen.accept_queue.last + seen.counters.get("TcpExtListenDrops", 0)

        def settle(clients: int) -> None:
            happens(lambda: decided() >= clients)

        *five, sixth, seventh = (stack.enter_context(_new_client(lab)) for _ in range(7))
        for client in five:
            _call(lab, client)
        settle(5)
        _call(lab, sixth)
        settle(6)
        with lab.capture() as capture:
            _call(lab, seventh)
            settle(7)
            mine = seventh.getsockname()
            listener.settimeout(WAIT_S)
            while True:
                connection, peer = listener.accept()
                stack.enter_context(connection)
                if peer == mine:
                    break
            seventh.settimeout(WAIT_S)
            seventh.sendall(b"GET /seventh HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            connection.sendall(ANSWER)
            seventh.recv(65536)
    return capture


def hidden_trace(lab: Lab) -> HiddenTrace:
    """What the SYN of client 7 goes through at a backlog of 4, live or recorded, with four blanks."""
    capture = lab.live_or_recorded("execution.accept_queues/trace", _seventh, lab)
    groups = [group for group in connections(capture.messages) if begins(group[0])]
    packets = max(groups, key=lambda group: sum(packet.payload for packet in group))
    return HiddenTrace(
        "execution.accept_queues.trace",
        packets,
        [
            Blank("SYN-ACK", "what", "there was room when the second SYN came: how does a server answer it?"),
            Blank("GET /seventh", "seq", "a SYN takes one number, and the second SYN was the first one again"),
            Blank("GET /seventh", "round trip", "a timer is no round trip: which answers had the client waited for?"),
            Blank("200 OK", "from", "who answers a request?"),
        ],
        hints=(
            "The first SYN found the accept queue full. No packet answers it: the client's timer sends it once more.",
            "The SYN has number 0, each time that it is sent. What comes next has number 1.",
            "Round trips are counted by cause and effect: the request waited for one answer, the SYN-ACK.",
        ),
        explanation=(
            "SYN, dropped without a word; after a second, by the client's timer, the same SYN again with the same "
            "number (RFC 6298 §2.1). By then the server accepts, so this one is answered. Two SYNs, one round trip, "
            "and more than a second that no host was busy in."
        ),
        tier=capture.tier,
    )


QUIZ = Quiz(
    Question(
        "A dashboard shows ListenOverflows growing all day. The CPU is idle, the database slow. What helps the "
        "clients?",
        (
            Option(
                "A larger backlog and somaxconn.",
                "That lets more of them wait. With a server slower than its load the longer queue is full as well, "
                "and each client in it waits longer.",
            ),
            Option(
                "Accepting at once, and refusing early what cannot be served.",
                "Then the program decides who waits, and a client that is refused can go elsewhere, instead of "
                "waiting for a timer.",
                right=True,
            ),
            Option(
                "SYN cookies.",
                "They replace places in the SYN queue. The accept queue is full here, and they make no room in it.",
            ),
        ),
    ),
    Question(
        "listen(1000) on a host with net.core.somaxconn = 128. How many connections can wait for accept?",
        (
            Option("1001", "The kernel caps what you ask for, and tells nobody: listen returns without an error."),
            Option("129", "min(1000, 128), and the one that this kernel takes more.", right=True),
            Option("none: listen fails", "It succeeds. Only ss -ltn or netlink shows what the limit has become."),
        ),
    ),
    Question(
        "Most connects to a service take 2 ms, some take 1.002 s, hardly any lie in between. What do you look at "
        "first?",
        (
            Option(
                "The accept queue of the service and ListenOverflows.",
                "One second is the first retransmission of a SYN. Something dropped it, and a full accept queue is "
                "the usual reason where the network is sound.",
                right=True,
            ),
            Option(
                "The CPU of the service.",
                "A busy server delays by any amount of time. Exactly one second more is a timer.",
            ),
            Option("Nagle's algorithm.", "It holds small segments of data back, for 40 ms at most, and never a SYN."),
        ),
    ),
)
