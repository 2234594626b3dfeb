"""A packet that routers take on is one packet, on each link of its way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.capture.captured import Captured
from labkit.capture.dissect import dissect
from labkit.capture.forwarding import find_forwarded
from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog
from labkit.handshakes import TlsClient
from labkit.handshakes.phases import connections, timeline
from labkit.servers import HttpServer


def frame(ttl: int, source: bytes, data: bytes, port: int = 4000, identification: int = 7) -> bytes:
    """A UDP datagram to 203.0.113.2 port 9, without checksums."""
    udp = port.to_bytes(2, "big") + b"\0\x09" + (8 + len(data)).to_bytes(2, "big") + b"\0\0" + data
    head = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + identification.to_bytes(2, "big") + b"\0\0"
    ip = head + bytes([ttl, 17, 0, 0]) + source + bytes([203, 0, 113, 2]) + udp
    return bytes([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]) + ip


def test_a_datagram_with_another_source_is_the_same_where_all_else_is() -> None:
    inside, outside = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 9])
    transits = [
        Transit(10, 20, "client", "router", frame(64, inside, b"hello")),
        Transit(30, 40, "router", "server", frame(63, outside, b"hello", port=5000)),
        Transit(31, 41, "router", "server", frame(63, outside, b"other", port=5000)),
        Transit(32, 42, "router", "server", frame(63, outside, b"hello", identification=8)),
        Transit(33, 43, "elsewhere", "server", frame(63, outside, b"hello")),
        Transit(34, 44, "router", "server", frame(64, outside, b"hello")),
    ]
    assert find_forwarded(transits) == {1: 0}
    assert find_forwarded([transits[1], transits[0]]) == {}
    first, second, *_ = dissect(transits, KeyLog())
    assert (first.before, second.before, second.forwarded_by) == (None, 0, ("router",))
    assert second.flow == first.flow
    assert second.headers.source == "198.51.100.9"


@pytest.fixture(scope="module")
def crossed() -> Iterator[Lab]:
    with Lab(
        rtt_ms=4, networks={"inside": ["client", "r1"], "middle": ["r1", "r2"], "outside": ["r2", "server"]}
    ) as lab:
        yield lab


def test_datagrams_are_named_once_and_their_loss_on_a_later_link_counts(crossed: Lab) -> None:
    with crossed.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("", 9))
        with crossed.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            with crossed.capture() as capture, crossed.wire.drop(source="r2/outside", count=1):
                for data in (b"lost", b"found"):
                    ours.sendto(data, (crossed.server.ip, 9))
                theirs.settimeout(10)
                assert theirs.recv(100) == b"found"
    said = [(packet.messages[0].data, packet.forwarded_by, packet.lost) for packet in capture.messages]
    assert sorted(said) == [
        (b"found", (), False), (b"found", ("r1",), False), (b"found", ("r1", "r2"), False),
        (b"lost", (), False), (b"lost", ("r1",), False), (b"lost", ("r1", "r2"), True),
    ]  # fmt: skip
    assert all(packet.messages[0].first in (0, 1) for packet in capture.messages)


def test_hostile_frames_are_no_routers() -> None:
    for data in (
        b"",
        b"\x08\x00",
        bytes(13),
        bytes(12) + b"\x08\x00",
        bytes(12) + b"\x08\x00" + bytes([0x4F, *[255] * 19]),
    ):
        for ttl in (0, 1, 255):
            longer = data + bytes([ttl]) * 40
            assert find_forwarded([Transit(1, 2, "a", "b", data), Transit(3, 4, "b", "c", longer)]) == {}


def test_a_request_over_two_routers_is_one_request(crossed: Lab, tmp_path: Path) -> None:
    lab = crossed
    with lab.server:
        listener = socket.create_server(("", 80))
    with lab.capture() as capture, lab.wire.drop(source="r2/outside", payload=True, count=1):
        with lab.client:
            client = socket.create_connection(("server.lab", 80))
        client.sendall(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        server, _ = listener.accept()
        assert server.recv(1000)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert client.recv(1000)
    for each in (client, server, listener):
        each.close()
    syn = [(packet.transit.source, packet.forwarded_by) for packet in capture.messages if packet.flags == {"SYN"}]
    assert syn == [("client", ()), ("r1", ("r1",)), ("r2", ("r1", "r2"))]
    requests = [packet for packet in capture.messages if packet.payload and packet.from_client]
    assert [(packet.transit.source, packet.retransmission, packet.lost) for packet in requests] == [
        ("client", False, False), ("r1", False, False), ("r2", False, True),
        ("client", True, False), ("r1", True, False), ("r2", True, False),
    ]  # fmt: skip
    # It was read from the packet that came through.
    assert {packet.messages[0].first for packet in requests} == {requests[3].index} != {requests[0].index}
    assert capture.ladder().hosts == ("client", "r1", "r2", "server")
    third = [(row.source, row.destination) for row in capture.ladder().rows if row.label == ("ACK",)]
    assert third == [("client", "r1"), ("r1", "r2"), ("r2", "server")]
    assert "SYN (forwarded by r1, r2)" in capture.table()
    opened = Captured.open(capture.save(tmp_path / "crossed.pcapng"))
    assert [(p.transit.source, p.transit.destination, p.forwarded_by) for p in opened.messages] == [
        (p.transit.source, p.transit.destination, p.forwarded_by) for p in capture.messages
    ]
    assert not any(packet.retransmission for packet in opened.messages if packet.before and not packet.payload)
    at_router = [packet for packet in capture.messages if packet.flags == {"SYN", "ACK"}]
    assert [packet.before for packet in at_router] == [None, at_router[0].index, at_router[1].index]


def test_a_fetch_over_routers_takes_the_same_round_trips(crossed: Lab) -> None:
    with HttpServer(crossed.server, tls="1.3") as server, crossed.capture() as capture:
        TlsClient(crossed.client, server, version="1.3").fetch()
    (group,) = connections(capture.messages)
    assert {(packet.transit.source, packet.transit.destination) for packet in group} == {
        ("client", "server"), ("server", "client"),
    }  # fmt: skip
    assert timeline(group).whole_rtts() == {"tcp": 1, "tls": 1, "request": 1}


def test_in_a_file_of_others_a_router_has_the_name_that_the_frame_gives_it() -> None:
    first, second = frame(64, bytes([192, 0, 2, 1]), b"hello"), frame(63, bytes([192, 0, 2, 1]), b"hello")
    transits = [
        Transit(None, 10, "192.0.2.1", "203.0.113.2", first),
        Transit(None, 20, "192.0.2.1", "203.0.113.2", second),
    ]
    assert [packet.forwarded_by for packet in dissect(transits, KeyLog())] == [(), ("02:00:00:00:00:01",)]
