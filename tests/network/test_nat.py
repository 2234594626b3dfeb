"""Address translation: packet by packet, and on a host of the lab as an ordinary user."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from processes import FIXED, ORDINARY

from labkit import InvalidValue, Lab
from labkit.network.nat import Translation
from labkit.network.translation import ICMP, KINDS, TCP, UDP, Translator, checksum
from labkit.waiting import happens

PUBLIC, INSIDE, SERVER, OTHER = (
    socket.inet_aton(each) for each in ("198.51.100.1", "192.0.2.1", "198.51.100.2", "203.0.113.9")
)
Require = Callable[[str], str]


# Packets.


def packet(protocol: int, source: tuple[bytes, int], destination: tuple[bytes, int], data: bytes = b"data") -> bytes:
    """An IPv4 packet with right checksums. Of ICMP an echo, whose identifier is the source's port."""
    if protocol == UDP:
        body = struct.pack("!HHHH", source[1], destination[1], 8 + len(data), 0) + data
    elif protocol == TCP:
        body = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 2, 5 << 4, 0x18, 1000, 0, 0) + data
    else:
        kind = 8 if source[1] else 0
        body = struct.pack("!BBHHH", kind, 0, 0, source[1] or destination[1], 1) + data
    pseudo = source[0] + destination[0] + struct.pack("!BBH", 0, protocol, len(body))
    at = {UDP: 6, TCP: 16, ICMP: 2}[protocol]
    summed = checksum((pseudo if protocol != ICMP else b"") + body)
    body = body[:at] + summed + body[at + 2 :]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, 0x4000, 63, protocol, 0, source[0], destination[0])
    return head[:10] + checksum(head) + head[12:] + body


@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_what_comes_out_is_what_another_sender_would_have_sent(protocol: int) -> None:
    chance = random.Random(protocol)
    nat = Translator(PUBLIC, "symmetric", 120, seed=1)
    for size in [*range(40), 1400]:
        inside, peer = (INSIDE, chance.randint(1, 65535)), (SERVER, 0 if protocol == ICMP else chance.randint(1, 65535))
        data = chance.randbytes(size)
        sent = nat.outbound(packet(protocol, inside, peer, data), 0)
        public = PUBLIC, nat.fresh[-1].port
        assert sent == packet(protocol, public, peer, data)
        assert nat.inbound(packet(protocol, peer, public, data), 0) == packet(protocol, peer, inside, data)


@pytest.mark.parametrize(
    ("kind", "same_port", "stranger", "same_host"),
    [
        ("full cone", True, True, True),
        ("restricted cone", True, False, True),
        ("port restricted cone", True, False, False),
        ("symmetric", False, False, False),
    ],
)
def test_kinds_differ_in_whom_they_let_in(kind: str, same_port: bool, stranger: bool, same_host: bool) -> None:
    nat = Translator(PUBLIC, kind, 120, seed=1)
    nat.outbound(packet(UDP, (INSIDE, 5000), (SERVER, 53)), 0)
    (mapping,) = nat.fresh
    public = PUBLIC, mapping.port
    assert nat.inbound(packet(UDP, (SERVER, 53), public), 0) is not None
    assert (nat.inbound(packet(UDP, (OTHER, 53), public), 0) is not None) is stranger
    assert (nat.inbound(packet(UDP, (SERVER, 54), public), 0) is not None) is same_host
    nat.outbound(packet(UDP, (INSIDE, 5000), (OTHER, 53)), 0)
    assert (len(nat.fresh) == 1) is same_port
    assert nat.inbound(packet(UDP, (OTHER, 53), public), 0) is not None or not same_port


def test_two_inside_with_one_port_have_two_outside_and_an_unused_mapping_ends() -> None:
    nat = Translator(PUBLIC, "full cone", 30, seed=1)
    second = socket.inet_aton("192.0.2.7")
    for address in (INSIDE, second):
        nat.outbound(packet(UDP, (address, 5000), (SERVER, 53)), 0)
    first, other = (mapping.port for mapping in nat.fresh)
    assert first == 5000 != other
    answer = packet(UDP, (SERVER, 53), (PUBLIC, 5000))
    assert nat.inbound(answer, 30) is not None
    assert nat.inbound(answer, 60) is not None  # it was used at 30
    assert nat.inbound(answer, 91) is None
    assert nat.inbound(packet(UDP, (SERVER, 53), (PUBLIC, other)), 60) is None
    nat.outbound(packet(TCP, (INSIDE, 6000), (SERVER, 80)), 0)
    assert nat.inbound(packet(TCP, (SERVER, 80), (PUBLIC, 6000)), 3600) is not None  # TCP's last for two hours


def test_errors_of_others_find_their_way_in_with_what_they_quote() -> None:
    nat = Translator(PUBLIC, "port restricted cone", 120, seed=1)
    sent = nat.outbound(packet(UDP, (INSIDE, 5000), (SERVER, 53)), 0)
    assert sent is not None
    router = socket.inet_aton("198.51.100.77")

    def error(to: bytes, quoted: bytes) -> bytes:
        body = bytes([11, 0, 0, 0, 0, 0, 0, 0]) + quoted[:28]
        body = body[:2] + checksum(body) + body[4:]
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, ICMP, 0, router, to)
        return head[:10] + checksum(head) + head[12:] + body

    quoted = packet(UDP, (INSIDE, 5000), (SERVER, 53))
    assert nat.inbound(error(PUBLIC, sent), 0) == error(INSIDE, quoted)
    assert nat.inbound(error(PUBLIC, packet(UDP, (PUBLIC, 999), (SERVER, 53))), 0) is None


def test_hostile_packets_are_no_reason_to_end() -> None:
    chance = random.Random(7)
    for kind in KINDS:
        nat = Translator(PUBLIC, kind, 120, seed=1)
        whole = packet(TCP, (INSIDE, 5000), (PUBLIC, 80), bytes(40))
        for length in range(len(whole)):
            for data in (whole[:length], chance.randbytes(length), whole[:20] + chance.randbytes(length)):
                nat.outbound(data, 0)
                nat.inbound(data, 0)


# Hosts.


@pytest.fixture
def home() -> Iterator[Lab]:
    """A host behind a router, and two outside."""
    networks = {"home": ["client", "router"], "internet": ["router", "server", "other"]}
    with Lab(rtt_ms=2, networks=networks) as lab:
        yield lab


@contextlib.contextmanager
def bound(*places: tuple[object, int]) -> Iterator[list[socket.socket]]:
    """A UDP socket of each host, bound to a port."""
    with contextlib.ExitStack() as stack:
        made = []
        for host, port in places:
            made.append(stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_DGRAM)))  # type: ignore[attr-defined]
            made[-1].bind(("", port))
            made[-1].settimeout(10)
        yield made


def test_a_cone_shows_one_port_to_all_and_a_symmetric_one_another_to_each(home: Lab) -> None:
    with bound((home.client, 5000), (home.server, 53), (home.other, 53)) as (ours, server, other):
        for kind, same in (("port restricted cone", True), ("symmetric", False)):
            nat = home.router.nat(kind)
            seen = []
            for host, theirs in ((home.server, server), (home.other, other)):
                ours.sendto(b"who am I", (host.ip, 53))
                _, address = theirs.recvfrom(100)
                seen.append(address)
                theirs.sendto(b"you", address)
                assert ours.recvfrom(100) == (b"you", (host.ip, 53))
            assert {address for address, _ in seen} == {nat.public_ip} == {"198.51.100.1"}
            assert (seen[0] == seen[1]) is same
            expected = [Translation("udp", "192.0.2.1:5000", f"198.51.100.1:{port}") for _, port in seen]
            assert list(nat.mappings) == list(dict.fromkeys(expected))


def test_tcp_crosses_and_a_capture_has_one_connection(home: Lab) -> None:
    home.router.nat("symmetric")
    with home.server, socket.create_server(("", 80)) as listener, home.capture() as capture:
        with home.client, socket.create_connection(("server.lab", 80)) as client:
            accepted, peer = listener.accept()
            with accepted:
                client.sendall(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
                assert accepted.recv(1000)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert client.recv(1000)
    assert peer[0] == "198.51.100.1"
    assert len({packet.flow for packet in capture.messages}) == 1
    assert not any(packet.retransmission for packet in capture.messages)
    said = [(packet.messages[0].start_line, packet.headers.source) for packet in capture.messages if packet.payload]
    assert said == [
        ("GET / HTTP/1.1", "192.0.2.1"), ("GET / HTTP/1.1", "198.51.100.1"),
        ("HTTP/1.1 200 OK", "198.51.100.2"), ("HTTP/1.1 200 OK", "198.51.100.2"),
    ]  # fmt: skip


def test_echoes_fragments_and_errors_cross_and_nobody_gets_in(home: Lab, require_program: Require) -> None:
    ping = [require_program("ping"), "-n", "-c", "1", "-W", "10"]
    home.router.nat()
    assert home.client.run([*ping, home.server.ip]).returncode == 0
    assert home.client.run([*ping, "-s", "4000", home.server.ip]).returncode == 0
    assert "Time to live exceeded" in home.client.run([*ping, "-t", "1", home.server.ip]).stdout
    with bound((home.client, 5000)) as (ours,):
        ours.connect((home.server.ip, 9))
        ours.send(b"is anybody there")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(100)
    assert home.server.run([*ping, "-W", "0.3", home.client.ip]).returncode != 0
    assert home.server.run([*ping, "-W", "0.3", "198.51.100.1"]).returncode != 0
    assert all(ways["up"].unaddressed == 0 for ways in home.wire.counts.values())


def test_a_translation_that_ends_lets_nothing_pass_and_the_next_one_does(home: Lab) -> None:
    with bound((home.client, 5000), (home.server, 53)) as (ours, server):
        nat = home.router.nat()
        nat.close()
        assert nat.closed
        ours.sendto(b"into nothing", (home.server.ip, 53))
        with home.router.nat("full cone") as other:
            ours.sendto(b"hello", (home.server.ip, 53))
            assert server.recv(100) == b"hello"
        assert other.closed


def punched(kinds: tuple[str, str], patience_s: float) -> bool:
    """Whether two hosts behind routers of these kinds reach each other, after each has asked who it is (RFC 5128)."""
    networks = {"internet": ["r1", "r2", "server"], "one": ["r1", "client"], "two": ["r2", "peer"]}
    with Lab(rtt_ms=2, networks=networks) as lab:
        for router, kind in zip((lab.r1, lab.r2), kinds, strict=True):
            router.nat(kind, outside="internet")
        with bound((lab.client, 5000), (lab.peer, 6000), (lab.server, 3478)) as (one, two, server):
            addresses, heard = [], set()
            for sock in (one, two):
                sock.sendto(b"who am I", (lab.server.ip, 3478))
                addresses.append(server.recvfrom(100)[1])
                sock.settimeout(0.01)

            def both_heard() -> bool:
                # Again and again: what comes before the other side has opened its own is not let in.
                for sock, address in ((one, addresses[1]), (two, addresses[0])):
                    sock.sendto(b"hello", address)
                    with contextlib.suppress(TimeoutError):
                        heard.add((sock, sock.recv(100)))
                return heard == {(one, b"hello"), (two, b"hello")}

            return happens(both_heard, patience_s)


def test_hole_punching_works_behind_cones_and_fails_behind_symmetric_ones() -> None:
    assert punched(("port restricted cone", "port restricted cone"), patience_s=10)
    assert not punched(("symmetric", "port restricted cone"), patience_s=0.3)


def test_a_translation_that_cannot_be(home: Lab) -> None:
    for call in (
        lambda: home.router.nat("cone"),
        lambda: home.router.nat(outside="nowhere"),
        lambda: home.router.nat(timeout_s=0),
        lambda: home.client.nat(),
    ):
        with pytest.raises(InvalidValue):
            call()


ON_A_TIER = """
import socket
from labkit import Lab
with Lab(rtt_ms=2, networks={"home": ["client", "router"], "internet": ["router", "server"]}) as lab:
    lab.router.nat("symmetric")
    with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 53))
        with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"who am I", (lab.server.ip, 53))
            print(lab.tier, server.recvfrom(100)[1][0])
"""


@pytest.mark.parametrize(("prefix", "tier"), [(ORDINARY, "kernel"), ((*FIXED, *ORDINARY), "kernel, fixed sysctls")])
def test_an_ordinary_user_translates(prefix: tuple[str, ...], tier: str, python: Callable[..., object]) -> None:
    process = python(ON_A_TIER, prefix=prefix)
    out, err = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert (out, err) == (f"{tier} 198.51.100.1\n", "")
