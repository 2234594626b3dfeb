"""DNS, ICMP, STUN, TURN and RTP by name: the RFCs' own bytes, and what programs that are not ours say in a lab."""

from __future__ import annotations

import binascii
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from quic_in_memory import CLIENT, SERVER, transit
from test_headers import ipv4, ipv6
from work import check_work

from labkit import Lab
from labkit.capture.captured import Captured
from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog
from labkit.services import Unbound

TURN = ("192.0.2.2", 3478)
# RFC 5769 sections 2.2 and 2.3: responses with addresses of both families, for a request from them.
STUN_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
STUN_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a147"
    "0113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)


DNS_RESPONSE = bytes.fromhex(
    "000181800001000100000000" + b"\6server\3lab\0\0\1\0\1".hex() + "c00c00010001000000050004c0000202"
)
EXAMPLES = [
    STUN_IPV4, STUN_IPV6, DNS_RESPONSE, b"\x40\1\0\4ping", b"\x80\x60\0\1" + bytes(20), b"\x80\xc8\0\6" + bytes(24),
    bytes.fromhex("16fefd0000000000000000") + b"\0\x10" + b"\x63\0\0\4\0\0\0\0\0\0\0\4abcd",
    bytes.fromhex("17fefd0001000000000000") + b"\0\x20" + bytes(32), b"\x2f\0\1" + bytes(40),
]  # fmt: skip


def said(*datagrams: tuple[bytes, tuple[str, int], tuple[str, int]]) -> list[str]:
    transits = [transit(number, *datagram) for number, datagram in enumerate(datagrams, 1)]
    return [packet.what for packet in dissect(transits, KeyLog())]


def stun(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("!HH", *pair) + value for *pair, value in ((a, len(v), v) for a, v in attributes))
    return struct.pack("!HHI", kind, len(body), 0x2112A442) + bytes(12) + body


@pytest.mark.parametrize(
    ("response", "address"),
    [(STUN_IPV4, "192.0.2.1:32853"), (STUN_IPV6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")],
)  # fmt: skip
def test_stun_vectors(response, address):
    fingerprint = binascii.crc32(response[:-8]) ^ 0x5354554E  # RFC 8489 section 14.7: these are the RFC's bytes
    assert fingerprint == int.from_bytes(response[-4:], "big")
    (packet,) = dissect([transit(1, response, SERVER, CLIENT)], KeyLog())
    assert packet.what == f"STUN Binding success response {address}"
    assert packet.messages[0].detail == f"SOFTWARE test vector, XOR-MAPPED-ADDRESS {address}"
    assert packet.messages[0].role == "response"


def test_a_turn_relay():
    error = (0x0009, b"\0\0\4\1Unauthorized")
    relayed = (
        0x0016,
        b"\0\1" + struct.pack("!H", 50000 ^ 0x2112) + bytes([198 ^ 0x21, 51 ^ 0x12, 100 ^ 0xA4, 9 ^ 0x42]),
    )
    channel = (0x000C, b"\x40\x01\0\0")
    assert said(
        (stun(0x0003, (0x0019, b"\x11\0\0\0")), CLIENT, TURN),
        (stun(0x0113, error), TURN, CLIENT),
        (stun(0x0103, relayed, (0x000D, struct.pack("!I", 600))), TURN, CLIENT),
        (stun(0x0009, channel), CLIENT, TURN),
        (b"\x40\x01\0\4ping", CLIENT, TURN),
        (stun(0x0016, (0x0013, b"data")), CLIENT, TURN),
    ) == [
        "TURN Allocate request",
        "TURN Allocate error response 401 Unauthorized",
        "TURN Allocate success response 198.51.100.9:50000",
        "TURN ChannelBind request",
        "TURN ChannelData 0x4001",
        "TURN Send indication",
    ]
    assert said((b"\x40\x01\0\4ping", CLIENT, SERVER)) == ["datagram"]


def test_an_answer_whose_question_was_not_captured():
    (answer,) = dissect([transit(1, DNS_RESPONSE, (SERVER[0], 53), CLIENT)], KeyLog())
    assert (answer.from_client, answer.flow.server_port, answer.flow.client) == (False, 53, CLIENT[0])
    assert answer.what == "DNS response 192.0.2.2"


def test_rtp_is_proven_by_a_second_packet():
    def rtp(sequence: int, marker: int = 0) -> tuple[bytes, tuple[str, int], tuple[str, int]]:
        header = struct.pack("!BBHII", 0x80, marker << 7 | 111, sequence & 0xFFFF, sequence * 160, 0x12345678)
        return header + bytes(160), CLIENT, SERVER

    report = struct.pack("!BBHI", 0x80, 200, 6, 0x12345678) + bytes(20), CLIENT, SERVER
    assert said(rtp(65535, 1), rtp(65536), report) == [
        "RTP 111 seq 65535 marker",
        "RTP 111 seq 0",
        "RTCP sender report",
    ]
    assert said(rtp(7)) == ["datagram"]


def test_dtls_13_is_named_and_not_opened():
    hello = bytes.fromhex("16fefd0000000000000000") + b"\0\x10" + b"\x63\0\0\4\0\0\0\0\0\0\0\4abcd"
    assert said((hello, CLIENT, SERVER), (b"\x2f\0\1" + bytes(40), CLIENT, SERVER)) == [
        "handshake message 99",
        "record of DTLS 1.3 (encrypted)",
    ]
    assert said((b"\x2f\0\1" + bytes(40), CLIENT, SERVER)) == ["datagram"]


def test_icmp_says_which_packet_it_is_about():
    udp = struct.pack("!HHHH", 40000, 53, 60, 0)
    for error, name in (
        (ipv4(1, b"\x03\x04\0\0\0\0\5\x14" + ipv4(17, udp)[14:]), "ICMP fragmentation needed (MTU 1300)"),
        (ipv4(1, b"\x03\x01\0\0" + bytes(4) + ipv4(17, udp)[14:]), "ICMP host unreachable"),
        (ipv4(1, b"\x0b\x00\0\0" + bytes(4) + ipv4(17, udp)[14:]), "ICMP time exceeded"),
        (ipv6(58, b"\x02\0\0\0\0\0\5\x00" + ipv6(17, udp)[14:]), "ICMPv6 packet too big (MTU 1280)"),
        (ipv6(58, b"\x01\3\0\0" + bytes(4) + ipv6(17, udp)[14:]), "ICMPv6 address unreachable"),
    ):
        asked = ipv6(17, udp) if "ICMPv6" in name else ipv4(17, udp)
        packets = dissect([Transit(1, 2, "a", "b", asked), Transit(3, 4, "r", "a", error)], KeyLog())
        assert packets[1].what == name
        assert packets[1].quoted == packets[0].flow
        assert packets[0].quoted is None
        assert "40000" in packets[1].messages[0].detail
    (cut,) = dissect([Transit(1, 2, "a", "b", ipv4(1, b"\x03\x01\0\0\0\0\0\0\x45"))], KeyLog())
    assert (cut.what, cut.quoted) == ("ICMP host unreachable", None)


# Programs that are not ours, in a lab ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=2) as lab:
        if not lab.can("kernel"):
            pytest.skip("these programs run on hosts of a kernel's network")
        yield lab


@pytest.fixture
def tshark(require_program, tmp_path) -> Callable[..., list[list[str]]]:
    program = require_program("tshark")

    def read(capture: Captured, *fields: str) -> list[list[str]]:
        file = capture.save(tmp_path / "capture.pcapng")
        names = [word for field in fields for word in ("-e", field)]
        finished = subprocess.run(
            [program, "-r", str(file), "-T", "fields", *names], capture_output=True, text=True, timeout=60
        )
        assert finished.returncode == 0, finished.stderr
        return [line.split("\t") for line in finished.stdout.splitlines()]

    return read


QUESTIONS = [
    ("server.lab", "A"), ("www.lab", "A"), ("words.lab", "TXT"), ("lab", "MX"), ("six.lab", "AAAA"),
    ("nobody.lab", "A"), ("_web._tcp.lab", "SRV"), ("server.lab", "MX"), ("lab", "SOA"),
]  # fmt: skip
RECORDS = [
    "www IN CNAME server", 'words IN TXT "hello"', "lab. IN MX 10 server", "six IN AAAA 2001:db8::7",
    "_web._tcp IN SRV 1 2 80 server",
]  # fmt: skip


def test_dns_as_unbound_answers_it(lab, require_program, tshark):
    """Questions made by scapy, answered by unbound, over UDP and over TCP."""
    from scapy.layers.dns import DNS, DNSQR

    require_program("unbound")
    with Unbound(lab.server, RECORDS), lab.capture() as capture, lab.client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            for number, (name, kind) in enumerate(QUESTIONS):
                sock.sendto(bytes(DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=kind))), ("server.lab", 53))
                sock.recv(4096)
        with socket.create_connection(("server.lab", 53), timeout=10) as stream:
            for number, (name, kind) in enumerate(QUESTIONS, 100):
                query = bytes(DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=kind)))
                stream.sendall(struct.pack("!H", len(query)) + query)
                length = int.from_bytes(stream.recv(2, socket.MSG_WAITALL), "big")
                stream.recv(length, socket.MSG_WAITALL)
    found = [(packet, m) for packet in capture.messages for m in packet.messages if m.protocol == "DNS"]
    assert [m.label for packet, m in found if packet.from_client and packet.flow.protocol == "UDP"] == [
        f"DNS query {kind} {name}" for name, kind in QUESTIONS
    ]
    address, answers = lab.server.ip, [m.label for packet, m in found if not packet.from_client]
    assert answers[:9] == answers[9:]  # the same over TCP
    assert answers[:8] == [
        f"DNS response {address}", f"DNS response server.lab, {address}", 'DNS response "hello"',
        "DNS response 10 server.lab", "DNS response 2001:db8::7", "DNS response NXDOMAIN",
        "DNS response 1 2 80 server.lab", "DNS response NOERROR",
    ]  # fmt: skip
    assert {m.role for packet, m in found if packet.from_client} == {"request"}
    theirs = [
        line for line in tshark(capture, "dns.id", "dns.flags.rcode", "dns.qry.name", "dns.count.answers") if line[0]
    ]
    assert len(theirs) == len(found) == 4 * len(QUESTIONS)
    for (_, message), (number, rcode, name, count) in zip(found, theirs, strict=True):
        assert f"id {number}; " in message.detail
        assert f" {name}" in message.detail
        assert message.detail.count("; ") >= 2 + int(count or 0)
        assert ("NXDOMAIN" in message.detail) == (rcode == "3")


def test_ping_and_traceroute(lab, require_program, tshark):
    ping, traceroute = require_program("ping"), require_program("traceroute")
    with lab.capture() as capture:
        lab.client.run([ping, "-c", "3", "-i", "0.01", "server.lab"])
        lab.client.run([traceroute, "-n", "-q", "1", "-m", "1", "-w", "2", "server.lab"])
    packets = capture.messages
    assert [packet.what for packet in packets[:6]] == [
        f"ICMP echo {kind} seq {number}" for number in (1, 2, 3) for kind in ("request", "reply")
    ]
    (unreachable,) = [packet for packet in packets if packet.what == "ICMP port unreachable"]
    probe = next(packet for packet in packets if packet.flow.protocol == "UDP")
    assert unreachable.quoted == probe.flow
    fields = ["icmp.type", "icmp.code", "icmp.seq", "icmp.ident", "udp.dstport"]
    for packet, (kind, code, sequence, ident, port) in zip(packets, tshark(capture, *fields), strict=True):
        icmp = packet.headers.icmp
        if icmp is None:
            assert kind == ""
            continue
        assert (str(icmp.type), str(icmp.code)) == (kind, code)
        assert str(icmp.sequence) == sequence if sequence else icmp.sequence is None
        assert str(icmp.id) == ident.split(",")[0] if ident else icmp.id is None
        assert icmp.quoted is None or str(icmp.quoted.destination_port) == port


def test_what_routers_say_of_packets(lab, require_program, tshark):
    """Which packets are too big, with the MTU, and which had too far to go."""
    ping, traceroute = require_program("ping"), require_program("traceroute")
    networks = {"inside": ["client", "r1"], "middle": ["r1", "r2"], "outside": ["r2", "server"]}
    with Lab(rtt_ms=2, networks=networks) as chain:
        for router in (chain.r1, chain.r2):
            router.interfaces["middle"].set_link(mtu=1300)
        with chain.capture() as capture:
            for address in (chain.server.ip, chain.server.ip6):
                chain.client.run([ping, "-n", "-c", "1", "-W", "0.1", "-M", "do", "-s", "1400", address])
            chain.client.run([traceroute, "-n", "-q", "1", "-N", "1", chain.server.ip])
        packets = capture.messages
        told = {packet.what: packet for packet in packets if packet.quoted is not None and packet.before is None}
        assert list(told) == [
            "ICMP fragmentation needed (MTU 1300)",
            "ICMPv6 packet too big (MTU 1300)",
            "ICMP time exceeded",
            "ICMP port unreachable",
        ]
        flows = {packet.flow for packet in packets if packet.from_client and packet.quoted is None}
        assert {packet.quoted for packet in told.values()} <= flows
        assert [packet.quoted.protocol for packet in told.values()] == ["ICMP", "ICMPv6", "UDP", "UDP"]
        theirs = [
            (kind.split(",")[0] or kind6.split(",")[0], mtu or mtu6)
            for kind, kind6, mtu, mtu6 in tshark(capture, "icmp.type", "icmpv6.type", "icmp.mtu", "icmpv6.mtu")
            if kind or kind6
        ]
        ours = [packet.headers.icmp for packet in packets if packet.headers.icmp is not None]
        assert [(str(icmp.type), str(icmp.mtu or "")) for icmp in ours] == theirs


def test_a_capture_of_datagrams_is_a_ladder(lab):
    with lab.server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("", 3478))
        with lab.capture() as capture, lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(stun(0x0001), ("server.lab", 3478))
            silent.recv(100)
    assert "STUN Binding request" in str(capture.ladder())
    assert "STUN Binding request" in capture.table()


def test_names_of_hostile_length_are_refused_quickly():
    """Pointers to pointers, and more answers than there are bytes."""
    loops = b"\0\1\x81\x80\0\1\xff\xff\0\0\0\0" + b"\xc0\x0c" + b"\0\1\0\1" + b"\xc0\x0c\0\1\0\1" * 5000
    chain = (
        b"\0\1\x81\x80\0\1\0\1\0\0\0\0"
        + b"\0\0\1\0\1"
        + b"\xc0\x0c"
        + b"".join(b"\xc0" + bytes([12 + number % 200]) for number in range(3000))
    )
    for message in (loops, chain):
        (packet,) = dissect([transit(1, message[:60000], (SERVER[0], 53), CLIENT)], KeyLog())
        assert packet.what == "malformed DNS message"


def test_damaged_datagrams_never_raise():
    random_ = random.Random(5)
    for _ in range(1500):
        flow = random_.choice([(CLIENT, TURN), (CLIENT, (SERVER[0], 53)), (CLIENT, SERVER)])
        datagrams = []
        for number in range(random_.randrange(1, 5)):
            data = bytearray(random_.choice(EXAMPLES))
            for _ in range(random_.randrange(4)):
                at = random_.randrange(len(data) + 1)
                change = random_.randrange(4)
                if change == 0:
                    del data[at:]
                elif change == 1:
                    data[at : at + 2] = random_.choice([b"\xff\xff", b"\0\0", b"\xc0\x0c"])
                elif change == 2:
                    data[at:at] = random_.randbytes(random_.randrange(30))
                elif at < len(data):
                    data[at] ^= 1 << random_.randrange(8)
            datagrams.append(transit(number, bytes(data), *random_.choice([flow, flow[::-1]])))
        for packet in dissect(datagrams, KeyLog()):
            assert packet.what and packet.what.isprintable()
            for message in packet.messages:
                assert message.detail.isprintable()
                assert 0 <= message.first <= message.last < len(datagrams)


def dns_flood(number: int) -> list[bytes]:
    return [DNS_RESPONSE[:6] + b"\0\xff" + DNS_RESPONSE[8:] + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0" * 20] * number


ENDLESS = {
    "answers that point to each other": dns_flood,
    "fragments of a handshake without an end": lambda number: [
        bytes.fromhex("16fefd0000000000000000") + b"\0\x0d\1\xff\xff\xff\0\0" + at.to_bytes(3, "big") + b"\0\0\1x"
        for at in range(0, 2 * number, 2)
    ],
    "records of a byte": lambda number: [bytes.fromhex("17fefd0001000000000000") + b"\0\1x"] * number,
    "sources of RTP": lambda number: [b"\x80\x60\0\1\0\0\0\0" + at.to_bytes(4, "big") for at in range(number)],
    "attributes": lambda number: [stun(1, *[(0x8022, b"x" * 4)] * 20)] * number,
    "QUIC of many connections": lambda number: [
        b"\xc0\0\0\0\1\x08" + at.to_bytes(8, "big") + b"\x08" + at.to_bytes(8, "big") + b"\0\x20" + bytes(32)
        for at in range(number)
    ],
    "QUIC of many IDs": lambda number: [b"\x40" + at.to_bytes(8, "big") + bytes(32) for at in range(number)],
}


@pytest.mark.alone
@pytest.mark.parametrize("kind", ENDLESS)
def test_the_work_for_a_datagram_stays_the_same(kind):
    few, many = (
        [transit(number, data, CLIENT, SERVER) for number, data in enumerate(ENDLESS[kind](count))]
        for count in (100, 800)
    )

    def read(transits: list[Transit]) -> None:
        assert len(dissect(transits, KeyLog())) == len(transits)

    read(few)  # modules are imported now
    check_work(lambda: read(few), lambda: read(many))
