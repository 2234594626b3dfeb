"""What the section "QUIC with 0-RTT" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from aioquic._buffer import Buffer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from aioquic.quic.packet import QuicTransportParameters, pull_quic_transport_parameters
from aioquic.tls import SessionTicket

from book import Blank, HiddenTrace, Text, Wrong
from book.https.reading import messages_of, opened
from labkit.capture.captured import Captured
from labkit.capture.messages import Message
from labkit.errors import MeasurementFailed
from labkit.handshakes import QuicClient, measure_once
from labkit.handshakes.phases import steps
from labkit.lab import Lab
from labkit.servers import Handler, Http3Server, Request, Response
from labkit.servers.hosts import HostLike

TEXT = Text(__file__)

RTT_MS = 20
INITIAL_RTT_S = 0.333  # RFC 9002, section 6.2.2; aioquic's own is shorter
WAIT_S = 6.0
MEET_S = 1.0
IDLE_S = 10.0
TRANSPORT_PARAMETERS = 0x39  # type of the extension (RFC 9001, section 8.2)


def configuration(server: Http3Server, log: TextIO, ticket: SessionTicket | None = None) -> QuicConfiguration:
    """What a client of this server needs: the lab's authority, a key log, and a ticket where it has one."""
    lab = server.host.lab
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        server_name=server.host.fqdn,
        cadata=lab.authority.ca_pem,
        secrets_log_file=log,
        initial_rtt=INITIAL_RTT_S,
        idle_timeout=IDLE_S,
        session_ticket=ticket,
    )


def connect(
    server: Http3Server, log: TextIO, ticket: SessionTicket | None, keep: Callable[[SessionTicket], None]
) -> QuicConnection:
    """A connection that is ready to send its ClientHello, with a ticket or without.

    Args:
        server: where to.
        log: the lab's key log.
        ticket: of an earlier connection, None for a full handshake.
        keep: takes the tickets that the server gives.
    """
    quic = QuicConnection(configuration=configuration(server, log, ticket), session_ticket_handler=keep)
    quic.connect((server.host.ip, server.port), now=time.monotonic())
    return quic


def converse(quic: QuicConnection, sock: socket.socket, sent: list[bytes]) -> Iterator[list[QuicEvent]]:
    """The loop of the section on QUIC: send what is to be sent, wait for a datagram or QUIC's timer, tell the events.

    Args:
        quic: a connection that has been told to connect.
        sock: its UDP socket.
        sent: each datagram is added to it.

    Raises:
        ConnectionError: the connection has ended.
    """
    while True:
        for datagram, address in quic.datagrams_to_send(now=time.monotonic()):
            sock.sendto(datagram, address)
            sent.append(datagram)
        sock.settimeout(max(0.001, (quic.get_timer() or 0) - time.monotonic()))
        try:
            datagram, address = sock.recvfrom(65536)
            quic.receive_datagram(datagram, address, now=time.monotonic())
        except TimeoutError:
            quic.handle_timer(now=time.monotonic())
        events = list(iter(quic.next_event, None))
        for event in events:
            if isinstance(event, ConnectionTerminated):
                raise ConnectionError(event.reason_phrase or f"closed, code {event.error_code:#x}")
        yield events


def hand_over(quic: QuicConnection, http: H3Connection, method: str, path: str, body: bytes) -> int:
    """Give a connection a request to send, as soon as it can. Returns its stream."""
    fields = {":method": method, ":scheme": "https", ":authority": "server.lab", ":path": path}
    stream = quic.get_next_available_stream_id()
    http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields.items()], end_stream=not body)
    if body:
        http.send_data(stream, body, end_stream=True)
    return stream


def say_goodbye(quic: QuicConnection, sock: socket.socket) -> None:
    """Close a connection, and tell the server."""
    quic.close()
    for datagram, address in quic.datagrams_to_send(now=time.monotonic()):
        sock.sendto(datagram, address)


def transport_parameters(ticket: SessionTicket) -> QuicTransportParameters:
    """Those of the server that a client remembers with its ticket (RFC 9000, section 7.4.1)."""
    extensions = dict(ticket.other_extensions)
    return pull_quic_transport_parameters(Buffer(data=extensions[TRANSPORT_PARAMETERS]))


def request_stream(message: Message) -> bool:
    """Whether it goes on a stream for requests: bidirectional, opened by the client (RFC 9000, section 2.1)."""
    return message.stream is not None and message.stream % 4 == 0


def keys_of_requests(capture: Captured) -> list[str]:
    """Under which keys the client of the last connection sent its request, each copy."""
    return [message.level for _, message in messages_of(capture) if message.role == "request"]


def first_and_last(capture: Captured) -> tuple[int, int]:
    """Whole round trips to the first and to the last byte of a response, whatever stream it came on.

    Args:
        capture: the last connection in it counts.

    Returns:
        both, counted by cause and effect (see ``labkit.handshakes.phases.steps``).
    """
    packets = opened(capture)
    found = [
        step // 2
        for packet, step in zip(packets, steps(packets), strict=True)
        if not packet.from_client and any(request_stream(m) for m in packet.messages)
    ]
    return found[0], found[-1]


def rtts_and_copies(capture: Captured) -> tuple[int, int]:
    """What a busy machine can only make more: round trips to the first byte, and how often the request was sent."""
    return first_and_last(capture)[0], len(keys_of_requests(capture))


# Exercise 1: the request in the first datagram.


def _judge_first_flight(first_flight: Callable[..., Any]) -> str:
    asked: list[tuple[str, bool]] = []
    served = threading.Event()

    def handler(request: Request) -> Response:
        asked.append((request.target, request.facts["early_data"]))
        served.set()
        return Response.text("hello\n")

    with Lab(rtt_ms=RTT_MS) as lab, Http3Server(lab.server, handler) as server:
        client = QuicClient(lab.client, server, early_data=True)
        client.fetch("/ticket")
        asked.clear()
        served.clear()
        headers = [(":method", "GET"), (":scheme", "https"), (":authority", "server.lab"), (":path", "/early")]
        with open(lab.keylog_path, "a", encoding="ascii") as log:
            address = lab.server.ip, server.port
            datagrams = first_flight(
                configuration(server, log, client.ticket),
                address,
                [(name.encode(), value.encode()) for name, value in headers],
                time.monotonic(),
            )
        if not isinstance(datagrams, list) or not all(isinstance(datagram, bytes) for datagram in datagrams):
            raise Wrong("first_flight has to return a list of datagrams, each of them bytes")
        with lab.capture() as capture, lab.client, socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            port = sock.getsockname()[1]
            for datagram in datagrams:
                sock.send(datagram)
            lab.wire.settle()
        sent = [packet for packet in capture.messages if packet.from_client and packet.flow.client_port == port]
        early = {
            number: message
            for number, packet in enumerate(sent, 1)
            for message in packet.messages
            if message.level == "early" and message.stream == 0
        }
        # A request that has ended must reach the handler, however late. For one without an end nobody has to wait.
        if any(message.fin for message in early.values()) and not served.wait(WAIT_S):
            raise MeasurementFailed(f"the request came, and in {WAIT_S:g} s no handler ran: is the machine too busy?")
    carriers = sorted(early)
    if not carriers:
        raise Wrong(
            f"the server got {len(sent)} datagram(s) and no request in a 0-RTT packet: hand the request over before "
            "you take the datagrams, or it waits for the server's answer"
        )
    if carriers[0] > 1:
        raise Wrong(
            f"the request came in datagram {carriers[0]}: take the datagrams once, when ClientHello and request are "
            "both there to be sent, then one datagram carries them"
        )
    if not asked:
        raise Wrong("a 0-RTT packet with headers came, but the handler did not run: the request has not ended")
    if asked != [("/early", True)]:
        raise Wrong(f"the handler saw {asked}: one early request for /early was expected")
    return "One datagram, and the handler ran before the client had heard anything."


FIRST_FLIGHT = TEXT.exercise("first_flight", _judge_first_flight)


# Exercise 2: a ticket is good once, wherever the copy arrives.


class SharedTickets(dict[bytes, Any]):
    """Tickets in a store on another machine: after a look the other server may look as well; pop is one step.

    Attributes:
        both: where two servers look at the same moment: each goes on when the other one has looked, too.
    """

    both: threading.Barrier | None = None

    def _looked(self) -> None:
        if self.both is not None:
            with contextlib.suppress(threading.BrokenBarrierError):  # nobody else looks: it takes in one step
                self.both.wait(MEET_S)

    def get(self, label: bytes, default: Any = None) -> Any:
        value = super().get(label, default)
        self._looked()
        return value

    def __getitem__(self, label: bytes) -> Any:
        value = super().__getitem__(label)
        self._looked()
        return value

    def __contains__(self, label: object) -> bool:
        there = super().__contains__(label)
        self._looked()
        return there


class _ClusterServer(Http3Server):
    """One of several servers that keep their tickets together."""

    def __init__(
        self, host: HostLike, handler: Handler, *, port: int, tickets: SharedTickets, take: Callable[..., Any]
    ) -> None:
        self.shared, self.take = tickets, take
        super().__init__(host, handler, port=port)

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        self.shared[ticket.ticket] = ticket

    def _take_ticket(self, label: bytes) -> SessionTicket | None:
        taken = self.take(self.shared, label)
        return taken if isinstance(taken, SessionTicket) else None


def _judge_take(take: Callable[..., Any]) -> str:
    try:
        unknown = take(SharedTickets(), b"unknown")
    except KeyError as exc:
        raise Wrong(
            "a label that the store does not have made it raise KeyError: after a restart clients bring such tickets, "
            "and get a full handshake; return None"
        ) from exc
    if unknown is not None:
        raise Wrong(f"for a label that the store does not have it returned {unknown!r}: return None")
    if take(SharedTickets(known="ticket"), "known") != "ticket":
        raise Wrong("for a label that the store has it did not return the ticket: every client gets a full handshake")
    sold = _replayed_elsewhere(take)
    if sold != 1:
        raise Wrong(
            f"a datagram that bought something at one server was sent to the other one as well: {sold} purchases. The "
            "ticket was still in the store"
        )
    tickets = SharedTickets(label="ticket")
    tickets.both = threading.Barrier(2)
    taken = _both_at_once(lambda: take(tickets, "label"))
    if sorted(taken, key=str) != [None, "ticket"]:
        raise Wrong(
            f"two servers asked for the same ticket at the same moment and got {taken[0]!r} and {taken[1]!r}: between "
            "your look and your removal the other server looks as well. One operation must do both"
        )
    return "One purchase, whichever server the copy is sent to, and one ticket for two servers at the same moment."


def _both_at_once(call: Callable[[], Any]) -> list[Any]:
    start = threading.Barrier(2)
    results: list[Any] = [None, None]

    def run(place: int) -> None:
        start.wait(WAIT_S)
        try:
            results[place] = call()
        except Exception as exc:
            results[place] = exc

    threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    if any(thread.is_alive() for thread in threads):
        raise MeasurementFailed(f"two calls at the same moment did not end in {WAIT_S:g} s")
    return results


def _replayed_elsewhere(take: Callable[..., Any]) -> int:
    """How often a purchase happens whose first datagram is sent to the other server as well."""
    sold: list[str] = []

    def shop(request: Request) -> Response:
        sold.append(request.target)
        return Response.text("sold\n")

    tickets = SharedTickets()
    with Lab(rtt_ms=RTT_MS) as lab:
        first = _ClusterServer(lab.server, shop, port=443, tickets=tickets, take=take)
        second = _ClusterServer(lab.server, shop, port=8443, tickets=tickets, take=take)
        client = QuicClient(lab.client, first, early_data=True)
        client.fetch("/ticket")
        with lab.capture() as capture:
            client.fetch("/buy", "POST")
        datagram = opened(capture)[0]
        with lab.client, socket.socket(type=socket.SOCK_DGRAM) as attacker:
            attacker.settimeout(WAIT_S)
            attacker.sendto(datagram.transit.data[-datagram.payload :], (lab.server.ip, second.port))
            attacker.recv(65536)  # whatever it thinks of the ticket, it begins a handshake
        for server in (first, second):
            server.close()  # waits for the handlers
    return sold.count("/buy")


TAKE = TEXT.exercise("take", _judge_take)

EXERCISES = (FIRST_FLIGHT, TAKE)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request in 0-RTT on this lab, with four blanks."""
    run = measure_once(lab, "quic-0rtt").runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank("0-RTT", "what", "it carries the request behind the ClientHello, in a packet with keys of its own"),
            Blank("EncryptedExtensions", "what", "it tells the client whether its early data was accepted"),
            Blank("HANDSHAKE_DONE", "from", "one side knows that the handshake is over when the other's Finished came"),
            Blank("NewSessionTicket", "round trip", "the server gives it when the client's Finished has arrived"),
        ],
    )
