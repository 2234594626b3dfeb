"""``with host:`` — whose sockets are whose, proved by the kernel's own cookie of a socket's network namespace."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import trustme
import websockets
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration

from labkit import Lab
from labkit.network import sockets
from labkit.network.host import Host

SO_NETNS_COOKIE = 71


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def here() -> int:
    """The namespace that a new socket belongs to."""
    with socket.socket() as sock:
        return cookie(sock)


def of(host: Host) -> int:
    with host.socket() as sock:
        return cookie(sock)


def test_hosts_and_the_notebook_are_three_namespaces(lab: Lab) -> None:
    outside = here()
    assert len({outside, of(lab.client), of(lab.server)}) == 3


def test_a_block_chooses_the_host_and_leaving_restores(lab: Lab) -> None:
    outside = here()
    with lab.client:
        assert here() == of(lab.client)
        with lab.server:
            assert here() == of(lab.server)
            with lab.client:
                assert here() == of(lab.client)
        assert here() == of(lab.client)
    assert here() == outside
    with pytest.raises(RuntimeError, match="in the block"), lab.client:
        raise RuntimeError("in the block")
    assert here() == outside


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, socket.AF_NETLINK])
def test_each_family_comes_from_the_host(lab: Lab, family: socket.AddressFamily) -> None:
    with lab.client, socket.socket(family, socket.SOCK_RAW if family > 10 else socket.SOCK_DGRAM) as sock:
        assert cookie(sock) == of(lab.client)


def test_other_families_and_given_descriptors_stay_the_notebooks(lab: Lab) -> None:
    outside = here()
    with socket.socket() as sock, lab.client:
        with socket.socket(fileno=sock.dup().detach()) as copy:
            assert cookie(copy) == outside
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert cookie(ours) == outside


def test_two_labs_at_once_are_two_networks() -> None:
    with Lab(rtt_ms=0) as one, Lab(rtt_ms=0) as two:
        assert len({here(), *(of(host) for lab in (one, two) for host in (lab.client, lab.server))}) == 5
        with two.server, socket.create_server(("", 80)):
            with two.client, socket.create_connection(("server.lab", 80)) as sock:
                assert cookie(sock) == of(two.client)
            with one.client, pytest.raises(ConnectionRefusedError):
                socket.create_connection(("server.lab", 80))


def test_threads_started_inside_inherit_and_outside_do_not(lab: Lab) -> None:
    outside, seen = here(), {}
    before = threading.Event()

    def look(key: str) -> None:
        if key == "older":
            before.wait(10)
        seen[key] = here()

    older = threading.Thread(target=look, args=("older",))
    older.start()
    with lab.client:
        inside = threading.Thread(target=look, args=("inside",))
        inside.start()
        before.set()
        older.join(10)
        inside.join(10)
    after = threading.Thread(target=look, args=("after",))
    after.start()
    after.join(10)
    assert seen == {"older": outside, "inside": of(lab.client), "after": outside}
    assert "run" not in vars(inside), "the thread still refers to itself"


def test_threads_side_by_side_do_not_mix(lab: Lab) -> None:
    together = threading.Barrier(8)
    seen: list[tuple[int, int]] = []

    def look(host: Host) -> None:
        with host:
            together.wait(10)
            seen.extend((here(), of(host)) for _ in range(20))

    threads = [threading.Thread(target=look, args=(host,)) for host in (lab.client, lab.server) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 160
    assert all(was == wanted for was, wanted in seen)


def test_tasks_side_by_side_do_not_mix(lab: Lab) -> None:
    async def look(host: Host, turn: asyncio.Barrier) -> list[int]:
        with host:
            found = []
            for _ in range(10):
                await turn.wait()  # so that the tasks run by turns, each inside its block
                found.append(here())
            return found

    async def main() -> None:
        turn = asyncio.Barrier(4)
        pairs = [(host, look(host, turn)) for host in (lab.client, lab.server) * 2]
        for (host, _), found in zip(pairs, await asyncio.gather(*(job for _, job in pairs)), strict=True):
            assert found == [of(host)] * 10
        with lab.server:
            task = asyncio.create_task(asyncio.sleep(0, result=None))
            child = asyncio.create_task(child_task())
        await task
        assert await child == of(lab.server)

    async def child_task() -> int:
        return here()

    asyncio.run(main())
    assert here() not in (of(lab.client), of(lab.server))


def test_pools_take_the_callers_host_and_keep_none(lab: Lab) -> None:
    outside = here()
    with ThreadPoolExecutor(1) as pool:
        with lab.client:
            assert pool.submit(here).result(10) == of(lab.client)  # the pool's thread starts here
        assert pool.submit(here).result(10) == outside
        with lab.server:
            assert list(pool.map(lambda _: here(), range(3))) == [of(lab.server)] * 3
            with pytest.raises(ZeroDivisionError):
                pool.submit(lambda: 1 / 0).result(10)
        assert pool.submit(here).result(10) == outside

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lab.client:
            assert await asyncio.to_thread(here) == of(lab.client)
            assert await loop.run_in_executor(None, here) == of(lab.client)
            assert (await loop.getaddrinfo("server", 80, type=socket.SOCK_STREAM))[0][4] == (lab.server.ip, 80)
        assert await asyncio.to_thread(here) == outside
        assert await loop.run_in_executor(None, here) == outside
        with pytest.raises(OSError, match=r"."):
            await loop.getaddrinfo("server.lab", 80)

    asyncio.run(main())


def test_a_pool_changes_nothing_else_for_its_callers(lab: Lab) -> None:
    """Outside a block ``submit`` behaves as ever: other context variables do not travel."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="thread")
    with ThreadPoolExecutor(1) as pool:
        variable.set("caller")
        assert pool.submit(variable.get).result(10) == "thread"
        with lab.client:
            assert pool.submit(variable.get).result(10) == "thread"


def test_the_originals_come_back_with_the_last_lab() -> None:
    def functions() -> list[object]:
        return [(owner, name, vars(owner).get(name), getattr(owner, name)) for owner, name, _ in sockets.LAYER]

    before = functions()
    with Lab(rtt_ms=0):
        with Lab(rtt_ms=0):
            inside = functions()
        assert functions() == inside
        assert all(now[3] is not then[3] for now, then in zip(inside, before, strict=True))
    for now, then in zip(functions(), before, strict=True):
        assert now[2] is then[2]
        assert now[3] is then[3]


# Names.


def test_names_resolve_to_this_labs_hosts(lab: Lab) -> None:
    with lab.client:
        for name in ("server.lab", "server", "SERVER.lab", "server.lab."):
            assert socket.gethostbyname(name) == lab.server.ip
            assert {entry[4][0] for entry in socket.getaddrinfo(name, 80)} == {lab.server.ip}
        (entry,) = socket.getaddrinfo("server.lab", 443, socket.AF_INET6, socket.SOCK_STREAM)
        assert entry[4][:2] == (lab.server.ip6, 443)
        assert socket.getaddrinfo(b"server.lab", 80, type=socket.SOCK_STREAM)[0][4] == (lab.server.ip, 80)
        assert socket.gethostbyaddr(lab.server.ip)[0] == "server.lab"
        assert socket.getfqdn("192.0.2.2") == "server.lab"


@pytest.mark.parametrize("look_up", ["getaddrinfo", "gethostbyname"])
def test_an_unknown_lab_name_says_which_there_are(lab: Lab, look_up: str) -> None:
    with lab.client, pytest.raises(socket.gaierror, match=r"unknown\.lab.*client\.lab, server\.lab"):
        getattr(socket, look_up)("unknown.lab", *([80] if look_up == "getaddrinfo" else []))


def test_lab_names_mean_nothing_outside(lab: Lab) -> None:
    with pytest.raises(OSError, match=r"."):
        socket.getaddrinfo("server.lab", 80)


@pytest.mark.parametrize("ipv6", [False, True])
def test_sockets_themselves_take_names(lab: Lab, ipv6: bool) -> None:
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with lab.server:
        listener = socket.socket(family)
        listener.bind(("server.lab", 80))
        listener.listen()
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.bind(("server", 53))
    assert listener.getsockname()[0] == (lab.server.ip6 if ipv6 else lab.server.ip)
    with listener, receiver, lab.client:
        with socket.socket(family) as sock, socket.socket(family) as other:
            sock.connect(("server.lab", 80))
            assert other.connect_ex(("server.lab", 80)) == 0
            assert sock.getpeername()[1] == 80
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"one", ("server.lab", 53))
            sock.sendto(b"two", 0, ("server.lab", 53))
            receiver.settimeout(10)
            assert [receiver.recv(100), receiver.recv(100)] == [b"one", b"two"]
            with pytest.raises(socket.gaierror, match="no host of this lab"):
                sock.connect(("unknown.lab", 53))


def test_a_host_named_like_an_interface_takes_nothing_away() -> None:
    with Lab(rtt_ms=0, hosts=["eth0"]) as lab, lab.client:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 3))
            assert sock.getsockname()[0] == "eth0"


# Libraries, unchanged.


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    authority = trustme.CA()
    issued = authority.issue_cert("server.lab")
    paths = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(paths[0])
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths[1], append=True)
    issued.private_key_pem.write_to_path(paths[2])
    return paths


def test_http_server_and_httpx(lab: Lab, certificate: tuple[Path, Path, Path]) -> None:
    ca, chain, key = certificate
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(chain, key)
    client_context = ssl.create_default_context(cafile=str(ca))
    with lab.server:
        server = HTTPServer(("", 443), Hello)
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with lab.client, httpx.Client(verify=client_context) as client:
            assert client.get("https://server.lab/").text == lab.client.ip

        async def main() -> str:
            with lab.client:
                async with httpx.AsyncClient(verify=client_context) as client:
                    return (await client.get("https://server.lab/")).text

        assert asyncio.run(main()) == lab.client.ip
        with lab.client, client_context.wrap_socket(socket.socket(), server_hostname="server.lab") as sock:
            sock.connect(("server.lab", 443))
            assert sock.version() == "TLSv1.3"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_websockets(lab: Lab) -> None:
    async def shout(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(str(message).upper())

    async def main() -> str:
        with lab.server:
            server = await websockets.serve(shout, "server.lab", 8000)
        async with asyncio.timeout(20), server:
            with lab.client:
                async with websockets.connect("ws://server.lab:8000/") as connection:
                    assert connection.local_address[0] == lab.client.ip
                    await connection.send("hello")
                    return str(await connection.recv())

    assert asyncio.run(main()) == "HELLO"


def test_asyncio_streams_and_datagrams(lab: Lab) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            self.transport.sendto(data + address[0].encode(), address)  # type: ignore[attr-defined]

    class Ask(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            self.answer.set_result(data)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline() + writer.get_extra_info("peername")[0].encode())
        writer.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lab.server:
            server = await asyncio.start_server(handle, "server.lab", 7)
            udp, _ = await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 7))
        async with asyncio.timeout(20), server:
            with lab.client:
                reader, writer = await asyncio.open_connection("server.lab", 7)
                asking, ask = await loop.create_datagram_endpoint(Ask, remote_addr=("server.lab", 7))
            writer.write(b"hello\n")
            assert await reader.read() == b"hello\n192.0.2.1"
            asking.sendto(b"udp ")
            assert await ask.answer == b"udp 192.0.2.1"
            writer.close()
            await writer.wait_closed()
            asking.close()
            udp.close()

    asyncio.run(main())


def test_aioquic_by_name(lab: Lab, certificate: tuple[Path, Path, Path]) -> None:
    ca, chain, key = certificate

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.write_eof()

    async def main() -> bytes:
        server_settings = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
        server_settings.load_cert_chain(chain, key)
        client_settings = QuicConfiguration(is_client=True, alpn_protocols=["echo"])
        client_settings.load_verify_locations(str(ca))
        tasks = []

        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.create_task(echo(reader, writer)))

        async with asyncio.timeout(20):
            with lab.server:
                server = await serve("::", 443, configuration=server_settings, stream_handler=handle)
            with lab.client:
                async with connect("server.lab", 443, configuration=client_settings) as protocol:
                    reader, writer = await protocol.create_stream()
                    writer.write(b"over QUIC")
                    writer.write_eof()
                    answer = await reader.read()
            server.close()
            return answer

    assert asyncio.run(main()) == b"over QUIC"


def test_scapy_sends_and_sniffs_on_a_host(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """scapy reads interfaces and routes once, when it is imported, and asks for link addresses by ARP, which a lab
    has not: in a block it must look again, and leave routing to the host's kernel (L3RawSocket)."""
    from scapy.config import conf
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.sendrecv import AsyncSniffer, send, sr1
    from scapy.supersocket import L3RawSocket

    with lab.server:
        listener = socket.create_server(("", 80))
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("", 53))
    receiver.settimeout(10)
    try:
        with listener, receiver, lab.client:
            conf.ifaces.reload()
            conf.route.resync()
            monkeypatch.setattr(conf, "L3socket", L3RawSocket)
            started = threading.Event()
            sniffer = AsyncSniffer(iface="eth0", count=2, started_callback=started.set)
            sniffer.start()
            assert started.wait(10)
            answer = sr1(IP(dst="server.lab") / TCP(sport=5555, dport=80, flags="S"), timeout=10, verbose=0)
            assert answer[TCP].flags == "SA"
            assert answer[IP].src == lab.server.ip
            sniffer.join(10)
            assert [packet[TCP].flags for packet in sniffer.results] == ["S", "SA"]
            send(IP(dst="server.lab") / UDP(sport=1234, dport=53) / b"from scapy", verbose=0)
            assert receiver.recv(100) == b"from scapy"
    finally:
        conf.ifaces.reload()
        conf.route.resync()
