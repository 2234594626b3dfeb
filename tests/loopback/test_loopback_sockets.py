"""Python's sockets and the libraries on top of them, unchanged, on hosts that are names for 127.0.0.1."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import websockets
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration

from labkit import Lab, NotAvailableHere
from labkit.handshakes.clients import client_for, server_for
from labkit.handshakes.phases import begins, connections, timeline
from labkit.handshakes.variants import VARIANTS
from labkit.loopback import sockets
from labkit.network import patches
from labkit.network import sockets as network_sockets
from labkit.network.host import Host
from labkit.servers import HttpServer, Response

Until = Callable[..., None]
LIVE = [variant for variant in VARIANTS if not variant.fast_open]


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The block raises OSError with this number."""
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        yield
    assert caught.value.errno == number


@contextmanager
def echo(host: Host, port: int = 7) -> Iterator[list[tuple[object, ...]]]:
    """A server that sends back what one client sends. What it saw: the client's address, twice, and its own."""
    seen: list[tuple[object, ...]] = []

    def serve() -> None:
        connection, peer = listener.accept()
        with connection:
            seen.append((peer, connection.getpeername(), connection.getsockname()))
            while data := connection.recv(65536):
                connection.sendall(data)

    with host, socket.create_server((host.ip, port)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield seen
        thread.join(10)


def test_addresses_are_those_of_the_lab(lab: Lab) -> None:
    with lab.server, socket.create_server(("server.lab", 443)) as listener:
        assert listener.getsockname() == ("192.0.2.2", 443)
    with echo(lab.server) as seen, lab.client, socket.create_connection(("server", 7)) as client:
        assert client.getpeername() == ("192.0.2.2", 7)
        ip, port = client.getsockname()
        assert ip == "192.0.2.1"
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert seen == [((ip, port), (ip, port), ("192.0.2.2", 7))]


def test_everything_listens_on_127_0_0_1(lab: Lab) -> None:
    with lab.server, socket.create_server(("", 80)) as listener, socket.socket(type=socket.SOCK_DGRAM) as sink:
        sink.bind(("", 53))
        for sock in (listener, sink):
            real = socket.socket.getsockname.__wrapped__  # type: ignore[attr-defined]
            assert real(sock)[0] == "127.0.0.1"


def test_bytes_of_any_size_arrive_in_order(lab: Lab) -> None:
    data = bytes(range(256)) * 20_000
    with echo(lab.server), lab.client, socket.create_connection(("server.lab", 7)) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while part := client.recv(1 << 20):
            received += part
        sender.join(10)
    assert bytes(received) == data


def test_a_refused_connection_takes_a_round_trip(lab: Lab) -> None:
    with lab.capture() as capture, lab.client:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("server.lab", 9999))
        with socket.socket() as sock:
            assert sock.connect_ex(("server.lab", 9999)) == errno.ECONNREFUSED
    assert [str(packet["TCP"].flags) for packet in capture.packets] == ["S", "RA"] * 2


def test_a_closed_listener_refuses(lab: Lab) -> None:
    with lab.server:
        socket.create_server(("server.lab", 80)).close()
    with lab.client, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("server.lab", 80))


@pytest.mark.parametrize(
    ("address", "number"),
    [
        (("192.0.2.99", 80), errno.EHOSTUNREACH),
        (("198.51.100.1", 80), errno.ENETUNREACH),
        (("127.0.0.1", 80), errno.ECONNREFUSED),
        (("client.lab", 80), errno.ECONNREFUSED),
    ],
)
def test_where_nothing_is(lab: Lab, address: tuple[str, int], number: int) -> None:
    with lab.client, socket.socket() as sock, refused(number):
        sock.connect(address)


def test_ports_are_taken_and_free_again(lab: Lab) -> None:
    with lab.server, socket.socket() as first, socket.socket() as second:
        first.bind(("server.lab", 80))
        with refused(errno.EADDRINUSE):
            second.bind(("server.lab", 80))
        first.close()
        second.bind(("server.lab", 80))
    with lab.client, socket.socket() as other:
        other.bind(("", 80))  # another host's port is another port
        with refused(errno.EADDRNOTAVAIL):
            other.bind(("server.lab", 81))


def test_listeners_that_share_a_port_go_on_without_each_other(lab: Lab) -> None:
    with lab.server, socket.create_server(("server.lab", 80), reuse_port=True) as first:
        second = socket.create_server(("server.lab", 80), reuse_port=True)
        second.close()
        with lab.client, socket.create_connection(("server.lab", 80)):
            first.accept()[0].close()
    with lab.client, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("server.lab", 80))


def test_a_name_that_is_no_host(lab: Lab) -> None:
    with lab.client, socket.socket() as sock, pytest.raises(socket.gaierror, match=r"client\.lab, server\.lab"):
        sock.connect(("nowhere.lab", 80))


def test_two_labs_have_ports_of_their_own() -> None:
    with Lab(rtt_ms=0) as one, Lab(rtt_ms=0) as two:
        with one.server, socket.create_server(("", 80)), two.server, socket.create_server(("", 80)):
            for lab in (one, two):
                with lab.client:
                    socket.create_connection(("server.lab", 80)).close()
        with one.server, socket.create_server(("", 81)), two.client, pytest.raises(ConnectionRefusedError):
            socket.create_connection(("server.lab", 81))


def test_a_host_talks_to_itself_without_the_wire(lab: Lab) -> None:
    with lab.capture() as capture, echo(lab.server), lab.server:
        with socket.create_connection(("127.0.0.1", 7)) as client:
            client.sendall(b"here")
            assert client.recv(10) == b"here"
    assert not capture.frames


def test_a_reset_arrives_as_a_reset(lab: Lab) -> None:
    with lab.server, socket.create_server(("server.lab", 80)) as listener:
        with lab.client, socket.create_connection(("server.lab", 80), timeout=10) as client:
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_datagrams_know_where_they_come_from(lab: Lab) -> None:
    with lab.server, socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("server.lab", 53))
        with lab.client, socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"question", ("server.lab", 53))
            data, peer = server.recvfrom(100)
            assert (data, peer) == (b"question", ("192.0.2.1", client.getsockname()[1]))
            server.sendmsg([b"ans", b"wer"], [], 0, peer)
            data, _, _, source = client.recvmsg(100)
            assert (data, source) == (b"answer", ("192.0.2.2", 53))
        with lab.client, socket.socket(type=socket.SOCK_DGRAM) as connected:
            connected.connect(("server.lab", 53))
            connected.send(b"again")
            assert server.recvfrom(100)[0] == b"again"
            assert connected.getpeername() == ("192.0.2.2", 53)


def test_sockets_of_the_notebook_stay_its_own(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            connection, peer = listener.accept()
            with connection:
                assert peer == client.getsockname()
                assert sockets.place_of(client) is None


def test_a_descriptor_that_was_closed_behind_our_back_is_nobodys(lab: Lab) -> None:
    with lab.client:
        sock = socket.socket()
    number = sock.fileno()
    socket.close(sock.detach())
    with socket.socket() as other:
        assert other.fileno() == number
        assert sockets.place_of(other) is None


def test_connections_side_by_side_wait_side_by_side(lab: Lab) -> None:
    """asyncio waits for twenty connections at once: all of them ask before the first is answered, a second later."""
    lab.set_link(rtt_ms=1000)

    async def together() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(1))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        with lab.server:
            server = await asyncio.start_server(answer, "server.lab", 7)

        async def one() -> None:
            reader, writer = await asyncio.open_connection("server.lab", 7)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
            await writer.wait_closed()

        with lab.client:
            await asyncio.gather(*(one() for _ in range(20)))
        server.close()
        await server.wait_closed()

    with lab.capture() as capture:
        asyncio.run(together())
    packets = capture.messages
    syns = [packet.transit for packet in packets if packet.label == "SYN"]
    answers = [packet.transit for packet in packets if packet.label == "SYN-ACK"]
    assert len(syns) == 20
    first_answer = min(transit.received_ns or 0 for transit in answers)
    assert sum(transit.sent_ns < first_answer for transit in syns if transit.sent_ns) > 1


def test_asyncio_is_refused_as_well(lab: Lab) -> None:
    async def knock() -> None:
        with lab.client:
            await asyncio.open_connection("server.lab", 9)

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(knock())


def test_httpx_both_ways(lab: Lab) -> None:
    def handler(request: object) -> Response:
        return Response.text("hello\n")

    async def fetch(url: str) -> str:
        async with httpx.AsyncClient(verify=lab.authority.client_context(), http2=True) as client:
            return (await client.get(url)).text

    with HttpServer(lab.server, handler, tls="1.3") as server, lab.client:
        assert httpx.get(server.url, verify=lab.authority.client_context()).text == "hello\n"
        assert asyncio.run(fetch(server.url)) == "hello\n"


def test_websockets(lab: Lab) -> None:
    async def chat() -> str | bytes:
        async def greet(connection: websockets.ServerConnection) -> None:
            await connection.send(f"hello {await connection.recv()!r} from {connection.remote_address[0]}")

        with lab.server:
            server = await websockets.serve(greet, "server.lab", 8001)
        async with server:
            with lab.client:
                async with websockets.connect("ws://server.lab:8001/", proxy=None) as client:
                    await client.send("me")
                    return await client.recv()

    assert asyncio.run(chat()) == "hello 'me' from 192.0.2.1"


def test_an_aioquic_endpoint(lab: Lab) -> None:
    """aioquic's own server; its client asks for IPv6, which this tier does not have, so ours stands in for it."""
    certificate = lab.authority.certificate_for("server.lab")
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    path = lab.directory / "leaf.pem"
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    configuration.load_cert_chain(path)

    async def start() -> None:
        with lab.server:
            server = await serve("server.lab", 4433, configuration=configuration)
        server.close()

    asyncio.run(start())


def test_selectors_see_its_sockets(lab: Lab) -> None:
    with lab.server, socket.create_server(("server.lab", 80)) as listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        with lab.client, socket.socket() as client:
            client.setblocking(False)
            client.connect(("server.lab", 80))  # it waits: no kernel holds the connection half open
            assert selector.select(10)
            connection, _ = listener.accept()
            connection.close()


@pytest.mark.parametrize("variant", LIVE, ids=[variant.name for variant in LIVE])
def test_round_trips_are_those_of_theory(lab: Lab, variant: object) -> None:
    with server_for(variant, lab.server) as server:  # type: ignore[arg-type]
        client = client_for(variant, lab.client, server)  # type: ignore[arg-type]
        client.fetch()
        lab.wire.settle()
        with lab.capture() as capture:
            assert client.fetch().status == 200
    # The connection before may still have sent its FIN.
    (packets,) = [packets for packets in connections(capture.messages) if begins(packets[0])]
    assert sum(timeline(packets).whole_rtts().values()) == variant.theory_rtts  # type: ignore[attr-defined]


def test_what_needs_a_kernel_says_so(lab: Lab) -> None:
    uses: list[Callable[[], object]] = [
        lambda: lab.client.counters,
        lambda: lab.client.sysctl["net.ipv4.tcp_fastopen"],
        lambda: lab.client.sysctl.__setitem__("net.ipv4.tcp_fastopen", 3),
        lambda: lab.client.run(["true"]),
        lambda: lab.client.start(["true"]),
        lambda: lab.client.socket(17, socket.SOCK_RAW),
        lambda: lab.wire.drop(source="client", tcp_flags="S", count=1),
    ]
    for use in uses:
        with pytest.raises(NotAvailableHere, match="labkit doctor"):
            use()
    with lab.client, socket.socket() as sock, pytest.raises(OSError, match="Fast Open"):
        sock.setsockopt(socket.IPPROTO_TCP, sockets.TCP_FASTOPEN_CONNECT, 1)
    with lab.client, refused(errno.EAFNOSUPPORT):
        socket.socket(socket.AF_INET6)


def test_the_methods_are_the_standard_librarys_again_afterwards() -> None:
    before = {name: socket.socket.__dict__.get(name) for name in ("bind", "accept", "getsockname", "_real_close")}
    connect = asyncio.SelectorEventLoop.sock_connect
    with Lab(rtt_ms=0):
        assert socket.socket.bind is not before["bind"]
    assert {name: socket.socket.__dict__.get(name) for name in before} == before
    assert asyncio.SelectorEventLoop.sock_connect is connect


def test_tls_keeps_the_lab_under_it(lab: Lab) -> None:
    context = lab.authority.server_context("server.lab")

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(repr(tls.getpeername()[0]).encode())

    with lab.server, socket.create_server(("server.lab", 8443)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        client_context: ssl.SSLContext = lab.authority.client_context()
        with lab.client, socket.create_connection(("server.lab", 8443)) as sock:
            with client_context.wrap_socket(sock, server_hostname="server.lab") as tls:
                assert tls.recv(100) == b"'192.0.2.1'"
                assert tls.getsockname()[0] == "192.0.2.1"
        thread.join(10)


def test_its_methods_go_with_its_last_lab() -> None:
    """Also where a lab of another tier stays open."""
    before = socket.socket.accept, socket.socket.bind
    patches.install(network_sockets.LAYER)  # as that lab does
    try:
        other = socket.socket.accept, socket.socket.bind
        with Lab(rtt_ms=0):
            assert socket.socket.accept is not other[0]
            with Lab(rtt_ms=0):
                pass
            assert socket.socket.accept is not other[0]
        assert socket.socket.accept is other[0] is before[0]
        assert socket.socket.bind is not before[1]
    finally:
        patches.uninstall(network_sockets.LAYER)
    assert (socket.socket.accept, socket.socket.bind) == before
