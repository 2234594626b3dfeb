"""What the section "Send and receive queues" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.execution.clients import both_ends
from book.execution.kernel import unacknowledged, unsent
from book.learn.grading import describe
from labkit.capture.captured import Captured
from labkit.capture.messages import Dissected, Message
from labkit.errors import MeasurementFailed
from labkit.handshakes.phases import begins, connections
from labkit.lab import Lab
from labkit.waiting import happens, wait_until

TEXT = Text(__file__)

RTT_MS = 10
LOOK_S = 0.005

# Exercise 1

PATIENCE_S = 5.0
SHORT_S = 0.6
HELD_S = 0.5  # for so long the path is dead
LATE_S = 3.0  # after the acknowledgment: whoever returns later has waited for something else


def _asked(flush: Callable[..., Any], client: socket.socket, timeout_s: float) -> tuple[Any, float]:
    client.settimeout(None)
    begin = time.monotonic()
    told = flush(client, timeout_s)
    took_s = time.monotonic() - begin
    if isinstance(told, bool) or not isinstance(told, int):
        raise Wrong(f"it returned {told!r}: expected a number of bytes")
    if client.fileno() == -1:
        raise Wrong("it closed the socket: leave the connection as it is")
    return told, took_s


def _note_when_empty(client: socket.socket, moments: list[float]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed
        while unacknowledged(client):
            time.sleep(LOOK_S)
        moments.append(time.monotonic())


def _judge_flush(flush: Callable[..., Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab:
        # What the client sends is lost for a while, and the kernel's timer has to send it again.
        with both_ends(lab) as (client, server):
            emptied: list[float] = []
            lossy = lab.wire.drop(source="client", payload=True)
            mended = threading.Timer(HELD_S, lossy.remove)
            mended.start()
            try:
                client.sendall(bytes(1000))
                threading.Thread(target=_note_when_empty, args=(client, emptied), daemon=True).start()
                begin = time.monotonic()
                told, took_s = _asked(flush, client, PATIENCE_S)
                left = unacknowledged(client)
            finally:
                mended.cancel()
                mended.join()
                lossy.remove()
            if told == 0 and left:
                raise Wrong(
                    f"it returned 0, and {left:,} bytes are not acknowledged: they have been sent, and the packet was "
                    "lost. Sent is not acknowledged"
                )
            if told and took_s < PATIENCE_S:
                raise Wrong(
                    f"it returned {told:,} after {took_s:.2f} s, with {PATIENCE_S:g} s to wait: the kernel sends lost "
                    "data again by itself, so look again until the deadline"
                )
            wait_until(lambda: bool(emptied), what="the acknowledgment")
            late_s = begin + took_s - emptied[0]
            if told and late_s < LATE_S:
                raise MeasurementFailed(f"the acknowledgment took {emptied[0] - begin:.1f} s: is the machine busy?")
            if told:
                raise Wrong(f"it returned {told:,}, and the acknowledgment had come {late_s:.1f} s before: look again")
            if late_s > LATE_S:
                raise Wrong(
                    f"it took {took_s:.1f} s of {PATIENCE_S:g} s, and the acknowledgment had come long before: return "
                    "as soon as nothing is left"
                )
            if len(server.recv(2000)) != 1000:
                raise Wrong("the server did not receive what was written: leave the connection as it is")
        # A peer that never reads.
        with both_ends(lab, rcvbuf=4096, sndbuf=8192) as (client, _):
            client.setblocking(False)
            wait_until(lambda: _fills(client), what="a full send queue")
            told, took_s = _asked(flush, client, SHORT_S)
            left = unacknowledged(client)
    if told != left:
        raise Wrong(f"the peer does not read, and the send queue holds {left:,} bytes; it returned {told:,}")
    if took_s < SHORT_S * 0.9:
        raise Wrong(f"it gave up after {took_s:.2f} s, with {SHORT_S:g} s to wait")
    return f"A lost packet was waited for, and of a peer that does not read {left:,} bytes were told as left."


def _fills(client: socket.socket) -> bool:
    """Write on; whether nothing more is taken and all that was sent is acknowledged."""
    with contextlib.suppress(BlockingIOError):
        client.send(bytes(65536))
        return False
    return unacknowledged(client) == unsent(client)


FLUSH = TEXT.exercise("flush", _judge_flush, deadline_s=15.0, needs="kernel")


# Exercise 2

MESSAGES, MESSAGE_BYTES = 40, 2000
LONG_S, STALL_S = 30.0, 0.8
FAN_OUT_S = 5.0


class _Reader:
    """A client that reads all."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.read = sock, b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.sock.recv(65536):
                self.read += data


class _FanOut:
    """A learner's fan_out at work for four clients. The second and the fourth are stuck, the others read."""

    def __init__(self, fan_out: Callable[..., Any], stack: contextlib.ExitStack, stall_s: float) -> None:
        # Sockets of this machine, without a lab: the queues are the same, and every tier has them.
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.ends, self.clients = [], []
        for stuck in (False, True, False, True):
            end = stack.enter_context(socket.socket())
            if stuck:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            end.connect(listener.getsockname())
            self.ends.append(end)
            self.clients.append(stack.enter_context(listener.accept()[0]))
        self.messages = [b"%-*d\n" % (MESSAGE_BYTES - 1, number) for number in range(MESSAGES)]
        self.readers = [_Reader(self.ends[0]), _Reader(self.ends[2])]
        self.result: list[Any] = []
        self.raised: list[BaseException] = []
        self.begin = time.monotonic()
        self.thread = threading.Thread(target=self._run, args=(fan_out, stall_s), daemon=True)
        self.thread.start()

    def _run(self, fan_out: Callable[..., Any], stall_s: float) -> None:
        try:
            self.result.append(fan_out(list(self.clients), list(self.messages), stall_s))
        except BaseException as exc:
            self.raised.append(exc)

    @property
    def counts(self) -> list[int]:
        """Whole messages that each client which reads has."""
        return [len(reader.read) // MESSAGE_BYTES for reader in self.readers]

    def all_read(self) -> bool:
        return all(len(reader.read) >= MESSAGES * MESSAGE_BYTES for reader in self.readers)

    def closed(self) -> list[socket.socket]:
        return [client for client in self.clients if client.fileno() == -1]

    def check(self) -> None:
        """Raises Wrong where it raised, or a client that reads has other bytes than it should."""
        if self.raised:
            raise Wrong(f"fan_out raised {describe(self.raised[0])}") from self.raised[0]
        for reader, number in zip(self.readers, self.counts, strict=True):
            if reader.read != b"".join(self.messages):
                raise Wrong(
                    f"a client that reads all received {number} whole messages of {MESSAGES}, or received them out of "
                    "order: send may take a part of a message, and the rest has to follow"
                )

    def dropped(self) -> set[Any]:
        """What it returned. Raises Wrong where that is no collection."""
        if not isinstance(self.result[0], (list, tuple, set)):
            raise Wrong(f"it returned {self.result[0]!r:.60}: return the clients that were dropped, as a list")
        return set(self.result[0])


def _judge_fan_out(fan_out: Callable[..., Any]) -> str:
    _judge_patience(fan_out)
    return _judge_dropping(fan_out)


def _judge_patience(fan_out: Callable[..., Any]) -> None:
    """Nobody has to be dropped for a long time: what the others do not have by then, they do not get meanwhile."""
    with contextlib.ExitStack() as stack:
        run = _FanOut(fan_out, stack, LONG_S)
        happens(lambda: run.all_read() or bool(run.closed()) or not run.thread.is_alive(), FAN_OUT_S)
        if not run.raised and (dropped := run.closed()):
            raise Wrong(
                f"{len(dropped)} of four clients were dropped after {time.monotonic() - run.begin:.2f} s: the deadline "
                f"was {LONG_S:g} s without a byte taken"
            )
        if run.thread.is_alive() and not run.all_read():
            raise Wrong(
                f"after {FAN_OUT_S:g} s the two clients that read have {run.counts[0]} and {run.counts[1]} of "
                f"{MESSAGES} messages: it waits for a client that does not read"
            )
        stuck = [_Reader(run.ends[1]), _Reader(run.ends[3])]  # they wake up
        run.thread.join(FAN_OUT_S)
        if run.thread.is_alive():
            raise Wrong(
                f"two clients read late, {[len(reader.read) // MESSAGE_BYTES for reader in stuck]} of {MESSAGES} "
                f"messages by now, and {FAN_OUT_S:g} s later it has not returned: return when all was sent"
            )
        happens(lambda: run.all_read() or bool(run.raised), FAN_OUT_S)
        run.check()
        if run.dropped():
            raise Wrong(f"it returned {len(run.dropped())} clients as dropped, and all had taken what was sent")


def _judge_dropping(fan_out: Callable[..., Any]) -> str:
    with contextlib.ExitStack() as stack:
        run = _FanOut(fan_out, stack, STALL_S)
        happens(lambda: bool(run.closed()) or not run.thread.is_alive(), FAN_OUT_S)
        first_s = time.monotonic() - run.begin
        run.thread.join(FAN_OUT_S)
        took_s = time.monotonic() - run.begin
        if run.thread.is_alive():
            raise Wrong(
                f"after {took_s:.0f} s it has not returned, and two clients have taken nothing for longer than "
                f"{STALL_S:g} s: drop them"
            )
        happens(lambda: run.all_read() or bool(run.raised), FAN_OUT_S)
        run.check()
        stuck = {run.clients[1], run.clients[3]}
        if run.dropped() != stuck:
            raise Wrong(
                f"two clients do not read, and it returned {len(run.dropped())} of the four: return the clients that "
                "were dropped"
            )
        if any(client.fileno() != -1 for client in stuck):
            raise Wrong("a client was dropped and its socket is still open: close it, or its queue stays in memory")
        if first_s < STALL_S * 0.9:
            raise Wrong(
                f"a client was dropped after {first_s:.2f} s: its deadline is {STALL_S:g} s without a byte taken"
            )
    return f"Two clients read all {MESSAGES} messages, two were dropped, and {took_s:.1f} s were enough."


FAN_OUT = TEXT.exercise("fan_out", _judge_fan_out, deadline_s=20.0)

EXERCISES = (FLUSH, FAN_OUT)

QUIZ = TEXT.quiz


# The hidden trace

TRACE_BYTES = 4 * 1448


@recorded
def trace(lab: Lab) -> Captured:
    """More than fits is written; after the first probe was answered the server reads all of it."""
    before = lab.client.counters
    with lab.capture() as capture, both_ends(lab, rcvbuf=4096) as (client, server):
        client.sendall(bytes(TRACE_BYTES))
        wait_until(lambda: (lab.client.counters - before)["TcpExtTCPWinProbe"] >= 1, what="a zero-window probe")
        lab.wire.settle()
        left = TRACE_BYTES
        while left and (data := server.recv(left)):
            left -= len(data)
    return capture


def _named(packets: Sequence[Dissected]) -> list[Dissected]:
    """The acknowledgments of the story get a name, by which a trace shows them: the others are left out."""
    named: list[Dissected] = []
    said: set[str] = set()
    closed = False
    for packet in packets:
        header = packet.headers.tcp
        name = ""
        if header is not None and packet.bare_ack:
            if not packet.from_client and header.window == 0:
                closed, name = True, "ACK, window 0"
            elif closed and packet.from_client and "window update" not in said:
                name = "probe"
            elif closed and not packet.from_client:
                name = "window update"
        if name == "ACK, window 0" and "probe" in said:
            name = "ACK, answers the probe"
        if name and name not in said:
            says = Message("TCP", name, "", "", packet.index, packet.index, 0, b"")
            packet = replace(packet, label=name, messages=(says,))
        named.append(packet)
        said.add(name)
    return named


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A connection whose receive queue fills, live or recorded, with four blanks."""
    capture = trace(lab)
    (packets,) = [group for group in connections(capture.messages) if begins(group[0])]
    return TEXT.trace(
        _named(packets),
        [
            Blank("window 0", "what", "the receive queue is full: which number does the receiver advertise?"),
            Blank("probe", "from", "who has something to send, and may not?"),
            Blank(
                "probe",
                "seq",
                "the probe repeats a number that is acknowledged already: one below that of the next data segment",
            ),
            Blank("window update", "what", "nothing was asked: the receiver says by itself that there is room again"),
        ],
        tier=capture.tier,
    )
