"""Captures of other programs: each kind of file made by hand, damaged in each way, and fuzzed."""

from __future__ import annotations

import gzip
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import (
    NAMES,
    OBSOLETE,
    SECRETS,
    SIMPLE,
    STATISTICS,
    TIME_NS,
    block,
    ethernet,
    interface,
    option,
    packet,
    padded,
    pcap,
    section,
    udp,
)  # fmt: skip
from work import check_work

from labkit import Captured, InvalidValue
from labkit.capture import capture_file
from labkit.capture.frames import Frame
from labkit.capture.pcapng import read_pcapng, write_pcapng
from labkit.network.tiers import origin

ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
FRAME = ethernet(udp(b"hello"))
Open = Callable[..., Captured]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def write_and_open(content: bytes, **options: object) -> Captured:
        path = tmp_path / "x.pcapng"
        path.write_bytes(content)
        return Captured.open(path, **options)  # type: ignore[arg-type]

    return write_and_open


def times(capture: Captured) -> list[int]:
    return [frame.time_ns for frame in capture.frames]


# What a file may be.


@ORDERS
@pytest.mark.parametrize(
    ("resolution", "ticks", "time_ns"),
    [
        (None, TIME_NS // 1000, TIME_NS // 1000 * 1000),  # microseconds where the file does not say
        (9, TIME_NS, TIME_NS),
        (3, 1_700_000_000_123, 1_700_000_000_123_000_000),
        (0, 1_700_000_000, 1_700_000_000 * 10**9),
        (12, 10_000_000_123_456_789_999, 10_000_000_123_456_789),
        (0x80 | 10, 1_700_000_000 << 10 | 512, 1_700_000_000_500_000_000),
        (0x80, 1_700_000_000, 1_700_000_000 * 10**9),
    ],
)
def test_time_resolutions(opened: Open, order: str, resolution: int | None, ticks: int, time_ns: int) -> None:
    options = b"" if resolution is None else option(order, 9, bytes([resolution]))
    capture = opened(section(order) + interface(order, options=options) + packet(order, ticks, FRAME))
    assert times(capture) == [time_ns]


@ORDERS
def test_each_interface_has_a_resolution_and_an_offset_and_each_section_interfaces(opened: Open, order: str) -> None:
    other = "<>".replace(order, "")
    offset = option(order, 14, struct.pack(order + "q", 1_000_000_000))
    content = section(order) + interface(order) + interface(order, options=option(order, 9, b"\0") + offset)
    content += packet(order, 5_000_000, FRAME, 0) + packet(order, 700_000_000, FRAME, 1)
    content += section(other) + interface(other, options=option(other, 9, b"\3")) + packet(other, 8_000, FRAME)
    capture = opened(content)
    assert times(capture) == [5 * 10**9, 8 * 10**9, 1_700_000_000 * 10**9]


@ORDERS
def test_packets_of_older_writers(opened: Open, order: str) -> None:
    """Obsolete packet blocks; simple ones, which have no time and are cut by the interface's limit."""
    ticks = TIME_NS // 1000
    obsolete = struct.pack(order + "HHIIII", 0, 0xFFFF, ticks >> 32, ticks & 0xFFFFFFFF, len(FRAME), len(FRAME))
    simple = struct.pack(order + "I", len(FRAME)) + padded(FRAME[:45])
    capture = opened(
        section(order)
        + interface(order, snap_length=45)
        + block(order, OBSOLETE, obsolete + padded(FRAME))
        + block(order, SIMPLE, simple)
    )
    assert times(capture) == [ticks * 1000] * 2
    assert [(frame.data, frame.length) for frame in capture.frames] == [
        (FRAME, len(FRAME)),
        (FRAME[:45], len(FRAME)),
    ]
    assert [packet.payload for packet in capture.messages] == [5, 5]


@ORDERS
@pytest.mark.parametrize(("magic", "time_ns"), [(0xA1B2C3D4, 1_000_000_000_000_789_000), (0xA1B23C4D, 10**18 + 789)])
def test_classic_pcap(opened: Open, order: str, magic: int, time_ns: int) -> None:
    capture = opened(pcap(order, magic, [(10**9, 789, FRAME), (10**9, 790, FRAME[:20])]))
    assert times(capture)[0] == time_ns
    assert capture.messages[0].messages[0].data == b"hello"


def cooked(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!HHH8sH", 4, 1, 6, b"\2\0\0\0\0\1", protocol) + payload


def cooked_v2(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, 3, 1, 4, 6, b"\2\0\0\0\0\1") + payload


IPV6 = struct.pack("!IHBB", 6 << 28, 13, 17, 64) + socket.inet_pton(10, "2001:db8::1") + socket.inet_pton(10, "::1")
IPV6 += struct.pack("!HHHH", 1, 2, 13, 0) + b"hello"
VLAN = struct.pack("!HH", 7, 0x0800)


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (1, ethernet(udp(b"hello"))),
        (1, ethernet(VLAN + udp(b"hello"), 0x8100)),
        (113, cooked(0x0800, udp(b"hello"))),
        (113, cooked(0x86DD, IPV6)),
        (113, cooked(0x8100, VLAN + udp(b"hello"))),
        (276, cooked_v2(0x0800, udp(b"hello"))),
        (276, cooked_v2(0x86DD, IPV6)),
        (101, udp(b"hello")),
        (101, IPV6),
        (228, udp(b"hello")),
        (229, IPV6),
        (0, b"\2\0\0\0" + udp(b"hello")),
        (0, b"\0\0\0\2" + udp(b"hello")),
        (0, b"\x1e\0\0\0" + IPV6),  # macOS
        (108, b"\0\0\0\x18" + IPV6),  # OpenBSD
    ],
)
def test_link_types(opened: Open, link_type: int, data: bytes) -> None:
    content = section() + interface(link_type=link_type) + packet("<", 1, data, length=len(data) + 100)
    (seen,) = opened(content).messages
    assert (seen.messages[0].data, seen.payload) == (b"hello", 5)
    assert seen.transit.source == ("192.0.2.1" if data[-33] == 0x45 else "2001:db8::1")
    (frame,) = opened(content).frames
    assert frame.length == len(frame.data) + 100
    empty = opened(section() + interface(link_type=link_type) + packet("<", 1, b""))
    assert [packet.label for packet in empty.messages] == ["malformed Ethernet frame"]
    assert "?" in str(empty.ladder()) + empty.table()


@ORDERS
def test_names_secrets_and_what_the_program_lost(opened: Open, order: str) -> None:
    names = struct.pack(order + "HH", 1, 11) + padded(socket.inet_aton("192.0.2.1") + b"laptop\0")
    names += struct.pack(order + "HH", 2, 20) + socket.inet_pton(10, "2001:db8::1") + b"six\0" + bytes(4)
    lines = [f"CLIENT_RANDOM {n:064x} {n:096x}\n" for n in range(2)]
    secrets = [struct.pack(order + "II", 0x544C534B, len(line)) + padded(line.encode()) for line in lines]
    lost = struct.pack(order + "III", 0, 0, 0) + option(order, 5, struct.pack(order + "Q", 3))
    content = section(order) + interface(order) + b"".join(block(order, SECRETS, each) for each in secrets)
    content += block(order, SECRETS, struct.pack(order + "II", 0x57474B4C, 4) + b"WG=x") + block(order, 0xBAD, b"1234")
    content += packet(order, 1, FRAME) + block(order, NAMES, names)
    content += packet(order, 2, ethernet(IPV6, 0x86DD)) + block(order, STATISTICS, lost)
    capture = opened(content)
    assert [(t.source, t.destination) for t in capture.transits] == [("laptop", "198.51.100.2"), ("six", "::1")]
    assert [f"{line}\n" for line in capture.secrets.splitlines() if line] == lines
    assert "3 frames are missing" in capture.table()
    assert capture.ladder().missing == 3
    assert "laptop" in str(capture.ladder())


def test_nothing_is_known_of_losses(opened: Open) -> None:
    """Each packet is there once: none is lost, none has arrived, two of the same bytes are two."""
    capture = opened(section() + interface() + packet("<", 1_000, FRAME) * 2)
    assert [(packet.lost, packet.transit.sent_ns) for packet in capture.messages] == [(False, None)] * 2
    assert "X lost" not in str(capture.ladder())


def test_gzip_whatever_the_name(opened: Open) -> None:
    assert len(opened(gzip.compress(section() + interface() + packet("<", 1, FRAME))).frames) == 1


def test_packets_out_of_order(opened: Open) -> None:
    """As two interfaces give them to one program."""
    later, earlier = (packet("<", ticks, ethernet(udp(data))) for ticks, data in ((2, b"later"), (1, b"sooner")))
    capture = opened(section() + interface() + later + earlier)
    assert [packet.messages[0].data for packet in capture.messages] == [b"sooner", b"later"]


def test_arp_stands_between_the_hosts_it_names(opened: Open) -> None:
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(6) + socket.inet_aton("192.0.2.1")
    arp += bytes(6) + socket.inet_aton("192.0.2.9") + bytes(18)
    capture = opened(
        section() + interface() + packet("<", 1, ethernet(arp, 0x0806)) + packet("<", 2, ethernet(b"", 0x88CC))
    )
    assert [(t.source, t.destination) for t in capture.transits] == [
        ("192.0.2.1", "192.0.2.9"),
        ("02:00:00:00:00:01", "02:00:00:00:00:02"),
    ]


# What labkit has saved.

CLIENT = bytes.fromhex("024c4b000002 024c4b000001 0800") + udp(b"ask", "192.0.2.1", "192.0.2.2")
SERVER = bytes.fromhex("024c4b000001 024c4b000002 0800") + udp(b"answer", "192.0.2.2", "192.0.2.1")
OWN = [
    Frame(TIME_NS, CLIENT, "client", True, len(CLIENT)),
    Frame(TIME_NS + 10, CLIENT, "server", False, len(CLIENT)),
    Frame(TIME_NS + 20, SERVER, "server", True, len(SERVER)),
]


def test_a_file_of_labkit_knows_the_hosts(tmp_path: Path) -> None:
    lab = Captured(OWN, hosts={1: "client", 2: "server"}, at="wire", tier="kernel")
    capture = Captured.open(lab.save(tmp_path / "own.pcapng"))
    assert [(t.source, t.destination) for t in capture.transits] == [("client", "server"), ("server", "client")]
    assert capture.ladder().hosts == ("client", "server")
    assert [packet.lost for packet in capture.messages] == [False, False]  # the file does not know
    again = Captured.open(capture.save(tmp_path / "again.pcapng"))
    assert (again.frames, again.table()) == (capture.frames, capture.table())


def test_a_file_with_arrivals_knows_what_was_lost(tmp_path: Path) -> None:
    write_pcapng(tmp_path / "both.pcapng.gz", OWN, arrivals=True)
    capture = Captured.open(tmp_path / "both.pcapng.gz")
    lab = Captured(OWN, hosts={1: "client", 2: "server"}, at="wire", tier="kernel")
    assert capture.hosts == lab.hosts
    assert (capture.transits, capture.table()) == (lab.transits, lab.table())
    assert [packet.lost for packet in capture.messages] == [False, True]


def test_the_file_of_a_capture_is_named_where_its_tier_would_stand(opened: Open) -> None:
    capture = opened(section() + interface() + packet("<", 1, FRAME))
    assert repr(capture) == "<Captured at x.pcapng, 1 frames, tier: file x.pcapng>"
    assert origin(capture.ladder().tier) == "Read from the file x.pcapng."


# Several looks at one packet.


def test_both_ends_in_one_file(opened: Open) -> None:
    """Merged from client and server: the arrival is padded, has lost a hop, and is no repetition."""
    sent = ethernet(udp(b"hi"))
    arrived = bytearray(sent + bytes(10))
    arrived[22] -= 3  # hops
    arrived[24:26] = b"\x12\x34"
    again = bytearray(sent)
    again[18:20] = b"\0\x08"  # another packet of the same content
    content = (
        section() + interface(options=option("<", 2, b"a")) + interface(link_type=101, options=option("<", 2, b"b"))
    )
    content += packet("<", 1000, sent) + packet("<", 4000, bytes(arrived[14:]), 1) + packet("<", 9000, bytes(again))
    capture = opened(content)
    assert [(t.sent_ns, t.received_ns) for t in capture.transits] == [(10**6, 4 * 10**6), (None, 9 * 10**6)]
    assert len(capture.frames) == 3
    assert [p.lost for p in capture.messages] == [False, False]


def test_on_any_a_forwarded_packet_is_one(opened: Open) -> None:
    def at(link: int, outgoing: bool, hops: int) -> bytes:
        inside = bytearray(udp(b"hi"))
        inside[8] = hops
        return struct.pack("!HHIHBB8s", 0x0800, 0, link, 1, 4 if outgoing else 0, 6, bytes(8)) + bytes(inside)

    looks = [at(3, False, 64), at(4, True, 63), at(4, True, 63), at(5, True, 63)]
    content = section() + interface(link_type=276)
    content += b"".join(packet("<", 1000 * number, look) for number, look in enumerate(looks))
    transits = opened(content).transits
    # The same bytes twice at one place are two packets; the third place has seen the first of them.
    assert [(t.sent_ns, t.received_ns) for t in transits] == [(0, 3 * 10**6), (None, 2 * 10**6)]


def test_looks_far_apart_are_two_packets(opened: Open) -> None:
    content = section() + interface() + interface()
    content += packet("<", 0, FRAME) + packet("<", 4_000_000, FRAME, 1)
    assert len(opened(content).transits) == 2


def test_a_copy_keeps_the_places(opened: Open, tmp_path: Path) -> None:
    content = section() + interface() + interface() + packet("<", 0, FRAME) + packet("<", 7, FRAME, 1)
    capture = opened(content)
    again = Captured.open(capture.save(tmp_path / "copy.pcapng"))
    assert (again.transits, again.frames) == (capture.transits, capture.frames)
    assert again.transits[0].source == "192.0.2.1"


# What is damaged, or something else.

SOUND = section() + interface() + packet("<", 1, FRAME)
AT = len(section() + interface())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "byte 0: the file is empty"),
        (b"GET / HTTP/1.1", "byte 0: 47 45 54 20 begins no pcapng and no pcap"),
        (b"\x28\xb5\x2f\xfd....", "compressed by zstd: decompress it first"),
        (SOUND[:-20], f"byte {AT}: a block of .* bytes, .* are left: .*cut"),
        (SOUND[: AT + 5], f"byte {AT}: a block has 12 bytes at least, 5 are left"),
        (SOUND[:-1] + b"\1", f"byte {AT}: a block of .* does not repeat its length"),
        (SOUND[: AT + 4] + b"\x0d" + SOUND[AT + 5 :], f"byte {AT + 4}: a block of 13 bytes"),
        (section()[:8] + b"abcd" + section()[12:], "byte 8: a section begins with 61 62 63 64"),
        (block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)), "byte 0: pcapng of version 2.0"),
        (section() + interface() + packet("<", 1, FRAME, number=7), f"byte {AT}: interface 7, but .* has .* 1"),
        (section() + block("<", SIMPLE, bytes(8)), "interface 0, but the section has described 0"),
        (section() + interface(link_type=105) + packet("<", 1, FRAME), f"byte {AT}: .*link type IEEE 802.11"),
        (section() + interface(link_type=4711) + packet("<", 1, FRAME), "link type 4711"),
        (section() + interface() + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 99, 99)), "packet of 99 bytes"),
        (section() + interface() + block("<", SIMPLE, struct.pack("<I", 99)), "packet of 99 bytes"),
        (section() + interface() + block("<", 6, b"1234"), f"byte {AT}: a block's fields have 20 bytes, 4 are here"),
        (section() + interface(options=struct.pack("<HH", 2, 9) + b"name"), "option 2 .* has 9 bytes, 4 are left"),
        (section() + interface(options=option("<", 9, b"\0")) + packet("<", 2**60, FRAME), "which no clock shows"),
        (section() + interface(options=option("<", 14, b"\xff" * 8)) + packet("<", 1, FRAME), "no clock shows"),
        (section() + block("<", SECRETS, struct.pack("<II", 0x544C534B, 999)), "secrets of 999 bytes"),
        (section() + block("<", NAMES, struct.pack("<HH", 1, 99)), "a name record of 99 bytes"),
        (pcap("<", 0xA1B2C3D4, [])[:20], "a pcap file's header has 24 bytes, 20 are here"),
        (pcap("<", 0xA1B2C3D4, [(1, 1, FRAME)])[:-3], "byte 24: a packet of 47 bytes, 44 are left: .*cut"),
        (pcap("<", 0xA1B2C3D4, []) + b"123", "byte 24: a packet's header has 16 bytes, 3 are left"),
        (gzip.compress(SOUND)[:-9], "gzip data in it is damaged or was cut"),
        (gzip.compress(SOUND)[:12] + b"\xff\xff" + gzip.compress(SOUND)[14:], "gzip data in it is damaged"),
        (gzip.compress(SOUND[:-1]), f"decompressed byte {AT}: "),
    ],
)  # fmt: skip
def test_damage_is_told_by_file_and_offset(opened: Open, content: bytes, words: str) -> None:
    with pytest.raises(InvalidValue, match=f"x.pcapng.*{words}"):
        opened(content)


def test_a_file_that_grows_without_end_is_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_file, "MOST_DECOMPRESSED", len(SOUND))
    assert len(opened(gzip.compress(SOUND)).frames) == 1
    with pytest.raises(InvalidValue, match="too many at once"):
        opened(gzip.compress(SOUND + packet("<", 2, FRAME)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Captured.open(tmp_path / "nowhere.pcap")
    with pytest.raises(IsADirectoryError):
        Captured.open(tmp_path)
    with pytest.raises(InvalidValue, match="path=7"):
        Captured.open(7)  # type: ignore[arg-type]


def test_a_key_log_without_secrets_is_told(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# nothing yet\n")
    with pytest.raises(InvalidValue, match=r"keys' has no line of a secret.*SSLKEYLOGFILE"):
        opened(SOUND, keylog=tmp_path / "keys")
    with pytest.raises(InvalidValue, match="keylog=7"):
        opened(SOUND, keylog=7)


@pytest.mark.parametrize("damage", ["foreign", "cut", "interface", "name"])
def test_the_reader_of_recordings_takes_labkits_files_only(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "own.pcapng"
    write_pcapng(path, OWN, "CLIENT_RANDOM 00 00\n", arrivals=True)
    assert read_pcapng(path)[0] == OWN
    own = path.read_bytes()
    at = own.index(struct.pack("<I", 6), 32)
    path.write_bytes(
        {
            "foreign": SOUND,
            "cut": own[:100],
            "interface": own[: at + 8] + b"\7" + own[at + 9 :],
            "name": own.replace(b"client", b"\xffclien", 1),
        }[damage]
    )
    with pytest.raises(InvalidValue, match=r"own\.pcapng"):
        read_pcapng(path)


def test_hostile_files_raise_nothing_else(tmp_path: Path) -> None:
    random_ = random.Random(12)
    path = tmp_path / "x"
    pool = [SOUND + block("<", NAMES, struct.pack("<HH", 1, 9) + b"\1\2\3\4name\0\0\0\0" + bytes(4))]
    pool.append(section(">") + interface(">", 113, option(">", 9, b"\x89")) + packet(">", 5, cooked(0x0800, udp(b"x"))))
    pool.append(pcap(">", 0xA1B23C4D, [(1, 2, FRAME), (3, 4, FRAME)], 101))
    refused = 0
    for _ in range(3000):
        data = bytearray(random_.choice(pool))
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(data))
            kind = random_.randrange(4)
            if kind == 0:
                data[place] ^= 1 << random_.randrange(8)
            elif kind == 1:
                data[place : place + 4] = random_.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\x0c"]
                )
            elif kind == 2:
                del data[place : place + random_.randrange(1, 9)]
            else:
                data[place:place] = random_.randbytes(random_.randrange(1, 9))
            if not data:
                data += b"\0"
        path.write_bytes(data)
        try:
            capture = Captured.open(path)
        except InvalidValue:
            refused += 1
        else:
            assert len(capture.table().splitlines()) == len(capture.messages) + 1
            capture.save(tmp_path / "again.pcapng")
    assert 300 < refused < 2900


@pytest.mark.alone
def test_a_long_file_takes_no_more_work_for_a_packet(tmp_path: Path) -> None:
    """50,000 packets, secrets and names between them."""
    secrets = block("<", SECRETS, struct.pack("<II", 0x544C534B, 8) + b"nothing\n")
    names = block("<", NAMES, struct.pack("<HH", 1, 8) + b"\1\2\3\4abc\0" + bytes(4))
    some = b"".join(packet("<", n, FRAME) + secrets + names for n in range(1_000))
    few, many = tmp_path / "few", tmp_path / "many"
    few.write_bytes(section() + interface() + some * 6)
    many.write_bytes(section() + interface() + some * 50)

    def read(path: Path) -> None:
        assert len(Captured.open(path).transits) == path.stat().st_size // len(some) * 1_000

    check_work(lambda: read(few), lambda: read(many), most=20)
