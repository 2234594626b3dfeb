"""The relay: a process between sockets on 127.0.0.1 that holds what they send for the path's delay.

It is a wire (labkit.network.wire) whose frames do not come from a kernel's interfaces. It writes them itself, for what
it reads from sockets, and what is due it turns back into bytes::

    client's socket ─▶ relay's socket ─▶ frame ─▶ fate ─▶ queue of the path ─▶ relay's socket ─▶ server's socket

- A TCP connection of the lab is two connections of this machine, one on each side of the relay. Opening it takes a SYN
  to the server's host, a SYN-ACK back (or a RST where nobody listens) and an ACK, each held as any frame.
- A program cannot be taught the lab's addresses. It listens on a port of 127.0.0.1 that is told to the relay, or comes
  through a door (labkit.loopback.doors).
- A datagram for an endpoint goes to a socket that stands for it, its *mouth*: what others send to an endpoint they
  send to its mouth, and what comes from its mouth was sent by it.
- TCP is not lost, doubled or reordered here, because nobody would repair it: a link's loss is for UDP. A rule that
  drops a segment leaves a hole, and nothing behind the hole arrives.

Each request of the notebook is a connection of its own, with the token that only the notebook knows. Standard library
only: it runs without site-packages.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hmac
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

from labkit.loopback.doors import READ_BYTES, Door
from labkit.loopback.frames import (
    ACK,
    FIN,
    MAX_PAYLOAD,
    PSH,
    RST,
    SYN,
    TCP,
    TCP_START,
    UDP_START,
    Endpoint,
    endpoints,
    tcp_frame,
    udp_frame,
)
from labkit.loopback.ports import LOOPBACK_ADDRESS, taken
from labkit.network.wire import AWAKE_NS, Port, Wire

START_TIMEOUT_S = 20.0
LOOK_EVERY_S = 1.0
IN_FLIGHT_BYTES = 5 << 20  # of one connection and direction, as on a lab's hosts that have a kernel
DATAGRAM_BUFFER_BYTES = 4 << 20
MAX_REQUEST_BYTES = 1 << 16
MAX_STRANGERS = 64
SPARE_MOUTHS = 64
# What a tap is sent for each frame, before its bytes: time (CLOCK_REALTIME, ns), host, whether it sent it, length.
RECORD = struct.Struct("<QBBI")
MARK = RECORD.pack(0, 0, 0, 0)

Reply = dict[str, Any]


class Ended(Exception):
    """The notebook has gone."""


def listen() -> socket.socket:
    listener = socket.create_server((LOOPBACK_ADDRESS, 0), backlog=1024)
    listener.setblocking(False)
    return listener


def without_delay(sock: socket.socket) -> None:
    """No Nagle, no delayed acknowledgment between the relay and its neighbours: they are not the path."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    acknowledge_at_once(sock)


def acknowledge_at_once(sock: socket.socket) -> None:
    if hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class HostPort(Port):
    """Where a host is plugged in. Its frames are made by the relay, and arrive there."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self.send = send  # type: ignore[assignment]  # a socket's takes flags, too

    def missed(self) -> int:
        return 0

    def waiting(self) -> bool:
        return False


class Request:
    """A connection of the notebook's: one request, and its answer now or later."""

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self.relay, self.sock = relay, sock
        self.buffer = b""
        self.forget: Callable[[], None] | None = None  # what to do when the notebook stops waiting
        relay.watch(sock, self.read)

    def read(self) -> None:
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self.buffer) > MAX_REQUEST_BYTES:
            self.close()
            if self.forget is not None:
                self.forget()
            return
        self.buffer += data
        if self.buffer.endswith(b"\n"):
            self.obey()

    def obey(self) -> None:
        try:
            message = json.loads(self.buffer)
            known = hmac.compare_digest(str(message.pop("token", "")), self.relay.token)
        except (ValueError, AttributeError, TypeError):
            known = False
        if not known:  # somebody else on this machine
            self.close()
            return
        try:
            answer = self.relay.obey(message, self)
        except OSError as exc:
            answer = {"errno": exc.errno or errno.EIO, "error": exc.strerror or str(exc)}
        if answer is not None:
            self.answer(answer)

    def answer(self, reply: Reply) -> None:
        self.forget = None
        with contextlib.suppress(OSError):  # it has stopped waiting
            self.sock.setblocking(True)
            self.sock.sendall(json.dumps(reply).encode() + b"\n")
        self.close()

    def close(self) -> None:
        self.relay.unwatch(self.sock)
        self.sock.close()


class Tap:
    """A capture: copies of frames on their way to the notebook."""

    def __init__(self, relay: Relay, sock: socket.socket, host: int | None) -> None:
        self.relay, self.sock, self.host = relay, sock, host
        self.buffer = bytearray(MARK)  # it has begun
        relay.watch(sock, self.read)

    def read(self) -> None:
        """A byte asks for a mark: all that was seen before stands before it."""
        try:
            asked = len(self.sock.recv(READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            asked = 0
        if not asked:
            self.close()
            return
        self.buffer += MARK * asked
        self.flush()

    def add(self, number: int, sent: bool, data: bytes) -> None:
        if self.host in (None, number):
            self.buffer += RECORD.pack(time.time_ns(), number, sent, len(data)) + data

    def flush(self) -> None:
        try:
            while self.buffer:
                del self.buffer[: self.sock.send(self.buffer)]
        except BlockingIOError:
            self.relay.watch(self.sock, self.read, self.flush)
        except OSError:
            self.close()
        else:
            self.relay.watch(self.sock, self.read)

    def close(self) -> None:
        self.relay.taps.discard(self)
        self.relay.unwatch(self.sock)
        self.sock.close()


class State(Enum):
    """Of the relay's socket towards an end; STEPS has what may follow what."""

    ABSENT = "the server's, until the client's ACK is there"
    CONNECTING = "the server's, until the real listener has it"
    HELD = "the client's, until its SYN is answered"
    OPEN = "read from and written to"
    GONE = "closed"


# Anything else is a fault of the relay.
STEPS = {
    (State.ABSENT, State.CONNECTING),
    (State.CONNECTING, State.OPEN),
    (State.HELD, State.OPEN),
    *((state, State.GONE) for state in State),
}


class Half(Enum):
    """What an end says, or what it is told: bytes, then a FIN, which is passed on when the bytes are, then nothing."""

    BYTES, FIN, OVER = range(3)


class End:
    """One end of a connection: the endpoint of the lab, and the relay's socket towards it."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket | None) -> None:
        self.endpoint, self.sock = endpoint, sock
        self.state = State.HELD if sock else State.ABSENT
        self.says = self.is_told = Half.BYTES
        self.next_seq = secrets.randbits(32)  # of what it sends
        self.expected_seq = 0  # of what arrives for it
        self.in_flight = 0  # bytes that it sent and the other end's socket has not taken
        self.pending = bytearray()  # bytes that have arrived and its socket has not taken

    def become(self, state: State) -> None:
        if (self.state, state) not in STEPS:
            raise AssertionError(f"{self.endpoint} cannot become {state} from {self.state}")
        self.state = state


class Connection:
    """A TCP connection of the lab."""

    def __init__(self, relay: Relay, client: End, server: End, answer: Callable[[Reply], None]) -> None:
        self.relay, self.ends, self.answer = relay, (client, server), answer
        if (old := relay.connections.get((client.endpoint, server.endpoint))) is not None:
            old.drop(reset=True)
        relay.connections[client.endpoint, server.endpoint] = self
        self.emit(client, SYN)
        client.next_seq += 1

    def emit(self, sender: End, flags: int, payload: bytes = b"") -> None:
        receiver = self.ends[1] if sender is self.ends[0] else self.ends[0]
        ack = sender.expected_seq if flags & ACK else 0
        self.relay.emit(
            tcp_frame(sender.endpoint, receiver.endpoint, flags, sender.next_seq, ack, 65535, payload), lossless=True
        )

    def arrive(self, frame: bytes, from_client: bool) -> None:
        """A segment has reached its host."""
        client, server = self.ends
        receiver = server if from_client else client
        flags, payload = frame[47], frame[TCP_START:]
        seq = int.from_bytes(frame[38:42], "big")
        if flags & RST:
            if client.state is State.HELD:
                self.answer({"errno": errno.ECONNREFUSED, "error": "refused"})
            self.drop(reset=True)
            return
        if flags & SYN:
            receiver.expected_seq = seq + 1
            if from_client:
                self.answer_syn(server)
            else:
                self.emit(client, ACK)
                self.answer({})
                if client.state is State.HELD:
                    client.become(State.OPEN)
                self.watch(client)
            return
        if server.state is State.ABSENT and not self.connect(server):
            return
        if (payload or flags & FIN) and seq == receiver.expected_seq % 2**32:
            receiver.expected_seq += len(payload)
            receiver.pending += payload
            if flags & FIN:
                receiver.expected_seq += 1
                receiver.is_told = Half.FIN
            self.write(receiver)

    def answer_syn(self, server: End) -> None:
        if self.relay.listens(server.endpoint):
            self.emit(server, SYN | ACK)
            server.next_seq += 1
        else:
            server.next_seq = 0
            self.emit(server, RST | ACK)

    def connect(self, server: End) -> bool:
        """The client's ACK is there: connect to the real listener, which holds the connection for accept(2)."""
        real_port = self.relay.listeners.get(server.endpoint, 0)
        server.become(State.CONNECTING)
        server.sock = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        without_delay(sock)
        code = sock.connect_ex((LOOPBACK_ADDRESS, real_port)) if real_port else errno.ECONNREFUSED
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self.break_off(server)
            return False
        self.relay.peers[sock.getsockname()[1]] = self.ends[0].endpoint
        self.watch(server)
        return True

    def watch(self, end: End) -> None:
        if end.sock is None:
            return
        hungry = end.state is State.OPEN and end.says is Half.BYTES and end.in_flight < IN_FLIGHT_BYTES
        full = end.state is State.CONNECTING or bool(end.pending)
        self.relay.watch(
            end.sock, (lambda: self.read(end)) if hungry else None, (lambda: self.writable(end)) if full else None
        )

    def writable(self, end: End) -> None:
        assert end.sock is not None
        if end.state is State.CONNECTING:
            if end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.break_off(end)
                return
            end.become(State.OPEN)
        self.write(end)

    def read(self, end: End) -> None:
        """The end has something to say, or nothing any more."""
        assert end.sock is not None
        try:
            data = end.sock.recv(READ_BYTES)
            acknowledge_at_once(end.sock)
        except BlockingIOError:
            return
        except OSError:
            self.break_off(end)
            return
        for start in range(0, len(data), MAX_PAYLOAD):
            part = data[start : start + MAX_PAYLOAD]
            self.emit(end, PSH | ACK if start + len(part) == len(data) else ACK, part)
            end.next_seq += len(part)
            end.in_flight += len(part)
        if not data:
            end.says = Half.OVER
            self.emit(end, FIN | ACK)
            end.next_seq += 1
        self.watch(end)

    def write(self, end: End) -> None:
        """Hand over what has arrived, as far as the socket takes it."""
        if end.sock is None or end.state is State.CONNECTING:
            return
        other = self.ends[1] if end is self.ends[0] else self.ends[0]
        try:
            while end.pending:
                size = end.sock.send(end.pending)
                del end.pending[:size]
                other.in_flight -= size
        except BlockingIOError:
            pass
        except OSError:
            self.break_off(end)
            return
        if end.is_told is Half.FIN and not end.pending:
            end.is_told = Half.OVER
            with contextlib.suppress(OSError):  # reset meanwhile: reading will tell
                end.sock.shutdown(socket.SHUT_WR)
        if end.is_told is other.is_told is Half.OVER:
            self.drop()
            return
        self.watch(end)
        self.watch(other)

    def break_off(self, end: End) -> None:
        """This end has gone without a goodbye: tell the other."""
        if end.sock is not None:
            self.relay.unwatch(end.sock)
            end.sock.close()
            end.sock = None
        end.become(State.GONE)
        self.emit(end, RST | ACK)

    def drop(self, *, reset: bool = False) -> None:
        """Forget the connection. With `reset` the sockets' owners get ECONNRESET."""
        self.relay.connections.pop((self.ends[0].endpoint, self.ends[1].endpoint), None)
        for end in self.ends:
            if end.sock is not None:
                if reset:
                    with contextlib.suppress(OSError):  # not connected any more
                        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.relay.unwatch(end.sock)
                end.sock.close()
                end.sock = None
            end.become(State.GONE)


class Relay(Wire):
    """The hosts' endpoints, the connections between them, and the loop."""

    def __init__(self, token: str, seed: int) -> None:
        self.token = token
        self.selector = selectors.DefaultSelector()
        self.control_listener, self.stream_listener = listen(), listen()
        super().__init__(self.control_listener, seed)
        self.life: socket.socket | None = None
        self.taps: set[Tap] = set()
        self.strangers: dict[
            int, socket.socket
        ] = {}  # by the client's port: connections whose request is still to come
        self.listeners: dict[Endpoint, int] = {}  # the real port of a TCP listener
        self.programs: set[Endpoint] = set()  # those that are a program's, which may listen there or not
        self.doors: dict[tuple[int, Endpoint], Door] = {}  # by host and where they lead
        self.connections: dict[tuple[Endpoint, Endpoint], Connection] = {}
        self.peers: dict[int, Endpoint] = {}  # by the relay's port towards a server: the client behind it
        self.bound: dict[Endpoint, int] = {}  # the real port of a UDP socket
        self.senders: dict[int, Endpoint] = {}  # and the way back
        self.mouths: dict[Endpoint, socket.socket] = {}
        self.unused: deque[Endpoint] = deque()  # whose mouths may still have something to deliver
        self.watch(self.control_listener, self.accept_request)
        self.watch(self.stream_listener, self.accept_stream)

    # Sockets to watch: a callback for reading, one for writing.

    def watch(
        self, sock: socket.socket, read: Callable[[], None] | None, write: Callable[[], None] | None = None
    ) -> None:
        events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        known = sock in self.selector.get_map()
        if not events:
            if known:
                self.selector.unregister(sock)
        elif known:
            self.selector.modify(sock, events, (read, write))
        else:
            self.selector.register(sock, events, (read, write))

    def unwatch(self, sock: socket.socket) -> None:
        self.watch(sock, None)

    # What the notebook asks for.

    def plug_in(self, request: dict[str, Any]) -> HostPort:
        def send(data: bytes) -> int:
            self.arrive(request["number"], data)
            return len(data)

        return HostPort(send)

    def obey(self, message: dict[str, Any], request: Request) -> Reply | None:
        operation = message["op"]
        if operation in self.handlers:
            if operation == "counts":
                self.serve(0)  # what was written before the question is on its way, and counted
                self.deliver()
            reply = self.handlers[operation](message, [], request.sock)
            return reply[0] if reply else None
        endpoint = Endpoint(message.get("number", 0), message.get("port", 0))
        if operation == "live":
            self.life = request.sock
            request.forget = self.end
            return None
        if operation == "tap":
            self.unwatch(request.sock)
            self.taps.add(Tap(self, request.sock, message["host"]))
            return None
        if operation in ("listen", "program"):
            self.listeners[endpoint] = message["real"]
            (self.programs.add if operation == "program" else self.programs.discard)(endpoint)
        elif operation == "door":
            return {"port": self.door(message["from"], endpoint)}
        elif operation == "close":
            self.serve(0)  # what it sent before is on its way
            self.close_endpoint(endpoint, message["real"])
        elif operation == "bind":
            self.bound[endpoint], self.senders[message["real"]] = message["real"], endpoint
            return {"mouth": self.mouth(endpoint)}
        elif operation == "mouth":
            return {"mouth": self.mouth(endpoint)}
        elif operation == "peer":
            peer = self.peers.get(message["real"])
            return {"number": peer.number, "port": peer.port} if peer else {}
        elif operation == "open":
            return self.open(endpoint, Endpoint(message["to"], message["to_port"]), message["real"], request)
        else:
            raise OSError(errno.EINVAL, f"no such request: {operation}")
        return {}

    def end(self) -> None:
        raise Ended

    def open(self, client: Endpoint, server: Endpoint, real_port: int, request: Request) -> Reply | None:
        self.accept_stream()
        sock = self.strangers.pop(real_port, None)
        if sock is None:
            return {"errno": errno.ECONNABORTED, "error": "the connection to the relay has gone"}
        request.forget = Connection(self, End(client, sock), End(server, None), request.answer).drop
        return None

    def connect(self, client: Endpoint, server: Endpoint, sock: socket.socket) -> None:
        """A program has come through a door. Nobody waits for an answer: its connection breaks where there is none."""
        sock.setblocking(False)
        without_delay(sock)
        Connection(self, End(client, sock), End(server, None), lambda reply: None)

    def door(self, number: int, server: Endpoint) -> int:
        """The port of the door by which programs of a host reach an endpoint."""
        if (number, server) not in self.doors:
            self.doors[number, server] = Door(self, number, server)
        return self.doors[number, server].port

    def listens(self, endpoint: Endpoint) -> bool:
        """Whether somebody listens at an endpoint. A program says nothing to the notebook: the kernel is asked."""
        real_port = self.listeners.get(endpoint)
        if real_port is None:
            return False
        return endpoint not in self.programs or taken(socket.SOCK_STREAM, real_port, reuse=1)

    def close_endpoint(self, endpoint: Endpoint, real_port: int) -> None:
        """A socket that was bound has been closed; only if no other has taken its place."""
        if self.listeners.get(endpoint) == real_port:
            del self.listeners[endpoint]
            self.programs.discard(endpoint)
        if self.bound.get(endpoint) == real_port:
            del self.bound[endpoint]
            self.senders.pop(real_port, None)
            self.spare_mouth(endpoint)

    def lend_mouth(self, endpoint: Endpoint) -> None:
        """For a program that sends datagrams, and says nothing when it does so no more."""
        self.mouth(endpoint)
        self.spare_mouth(endpoint)

    def spare_mouth(self, endpoint: Endpoint) -> None:
        """Its mouth may still have something to deliver, and goes when others need the room."""
        self.unused.append(endpoint)
        if len(self.unused) > SPARE_MOUTHS:
            oldest = self.unused.popleft()
            if oldest not in self.bound and (mouth := self.mouths.pop(oldest, None)) is not None:
                self.unwatch(mouth)
                mouth.close()

    def mouth(self, endpoint: Endpoint) -> int:
        """The port of the socket that stands for a UDP endpoint."""
        sock = self.mouths.get(endpoint)
        if sock is None:
            sock = self.mouths[endpoint] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((LOOPBACK_ADDRESS, 0))
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, DATAGRAM_BUFFER_BYTES)
            self.watch(sock, lambda: self.read_datagrams(endpoint, sock))
        return int(sock.getsockname()[1])

    # What comes in from the machine's sockets.

    def accept_request(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self.control_listener.accept()
            sock.setblocking(False)
            Request(self, sock)

    def accept_stream(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, (_, port) = self.stream_listener.accept()
                sock.setblocking(False)
                without_delay(sock)
                if (old := self.strangers.pop(port, None)) is not None:
                    old.close()
                self.strangers[port] = sock
                if len(self.strangers) > MAX_STRANGERS:
                    self.strangers.pop(next(iter(self.strangers))).close()

    def read_datagrams(self, destination: Endpoint, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(64):
                data, (_, port) = sock.recvfrom(READ_BYTES)
                source = self.senders.get(port)
                if source is not None:  # nobody else's datagrams are the lab's
                    self.emit(udp_frame(source, destination, data))

    # Frames.

    def emit(self, frame: bytes, *, lossless: bool = False) -> None:
        """A host sends a frame."""
        number = frame[11]
        self.copy(number, True, frame)
        counts = self.fate.links[number][0].counts
        counts.frames += 1
        counts.bytes += len(frame)
        path = self.fate.paths.get((number, frame[5]))
        if path is None:
            counts.unaddressed += 1
        else:
            self.fate.decide(path, frame, time.monotonic_ns(), lossless=lossless)

    def arrive(self, number: int, frame: bytes) -> None:
        """A frame has reached a host."""
        self.copy(number, False, frame)
        source, destination = endpoints(frame)
        if frame[23] == TCP:
            if (connection := self.connections.get((source, destination))) is not None:
                connection.arrive(frame, True)
            elif (connection := self.connections.get((destination, source))) is not None:
                connection.arrive(frame, False)
        elif (real_port := self.bound.get(destination)) is not None and source in self.mouths:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.mouths[source].sendto(frame[UDP_START:], (LOOPBACK_ADDRESS, real_port))
        elif (door := self.doors.get((number, source))) is not None and destination in self.mouths:
            door.deliver(destination, frame[UDP_START:])

    def copy(self, number: int, sent: bool, frame: bytes) -> None:
        for tap in self.taps:
            tap.add(number, sent, frame)

    # The loop.

    def report_counts(self, *_: object) -> tuple[Reply, list[int]]:
        reply, passed = super().report_counts()
        reply["in_flight"] += sum(
            bool(end.pending) for connection in self.connections.values() for end in connection.ends
        )
        return reply, passed

    def serve(self, timeout_s: float) -> None:
        """Wait for sockets, and serve those that are ready."""
        if timeout_s and hasattr(self.selector, "fileno"):
            # An epoll waits for whole milliseconds; select, which can wait for it, for microseconds.
            import select

            select.select([self.selector.fileno()], [], [], timeout_s)
            timeout_s = 0
        for key, events in self.selector.select(timeout_s):
            for event, callback in zip((selectors.EVENT_READ, selectors.EVENT_WRITE), key.data, strict=True):
                if events & event and callback is not None and self.still_watched(key):
                    callback()

    def still_watched(self, key: selectors.SelectorKey) -> bool:
        """Whether no earlier callback has closed this socket, which then cannot be looked up itself."""
        now = self.selector.get_map().get(key.fd)
        return now is not None and now.fileobj is key.fileobj

    def run(self) -> None:
        """Carry until the notebook has gone."""
        parent, started = os.getppid(), time.monotonic()
        while True:
            self.deliver()
            due = self.fate.next_due_ns()
            wait_s = LOOK_EVERY_S
            if due is not None:
                wait_s = min(wait_s, max(0.0, (due - AWAKE_NS - time.monotonic_ns()) / 1e9))
            for tap in list(self.taps):
                if tap.buffer:
                    tap.flush()
            self.serve(wait_s)
            # A forked child may hold the notebook's sockets open, so the end of its process counts, too.
            if os.getppid() != parent or (self.life is None and time.monotonic() > started + START_TIMEOUT_S):
                raise Ended


def main() -> None:
    """Arguments: the lab's directory, the seed. The token comes by standard input, the ports go to standard output."""
    directory, seed = sys.argv[1], int(sys.argv[2])
    token = sys.stdin.readline().strip()
    os.mkdir(directory, 0o700)
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if sys.platform == "linux":
            from labkit.network.namespaces import set_timer_slack

            set_timer_slack(1)
        gc.disable()
        relay = Relay(token, seed)
        ports = [listener.getsockname()[1] for listener in (relay.control_listener, relay.stream_listener)]
        print(*ports, flush=True)
        relay.run()
    except Ended:
        pass
    finally:
        shutil.rmtree(directory, ignore_errors=True)
