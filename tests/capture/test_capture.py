"""Captures: every frame, with the kernel's stamps, and an honest word where one is missing."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import Mock

import pytest

from labkit import Lab, LabClosed
from labkit.capture import capture as capture_module
from labkit.capture.capture import Capture
from labkit.capture.frames import Frame, Transit, pair_frames
from labkit.handshakes import TlsClient
from labkit.network import blocks, ring
from labkit.network.ring import BLOCK_BYTES, SLOTS_PER_BLOCK, RingFrame
from labkit.servers import HttpServer


def exchange(lab: Lab, request: bytes = b"question", answer: bytes = b"answer") -> None:
    """One TCP connection, client to server, with a request and an answer, closed in good order."""
    with lab.server:
        listener = socket.create_server(("", 80))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, lab.client, socket.create_connection(("server.lab", 80), timeout=20) as client:
        client.sendall(request)
        while client.recv(1000):
            pass
    thread.join(20)


def test_each_frame_is_seen_sent_and_received(lab: Lab) -> None:
    with lab.capture() as capture:
        exchange(lab)
    assert capture.closed
    assert capture.dropped == 0
    transits = capture.transits
    assert (
        len(capture.frames)
        == 2 * len(transits)
        == sum(counts.frames + counts.delivered for ways in lab.wire.counts.values() for counts in ways.values())
    )
    assert sum(b"question" in transit.data for transit in transits) == 1
    assert sum(b"answer" in transit.data for transit in transits) == 1
    for transit in transits:
        assert {transit.source, transit.destination} == {"client", "server"}
        assert transit.sent_ns is not None
        assert transit.received_ns is not None
        assert transit.received_ns - transit.sent_ns >= 5_000_000  # half the RTT of 10 ms, and never less
    stamps = [frame.time_ns for frame in capture.frames]
    assert stamps == sorted(stamps)
    assert [packet.sniffed_on for packet in capture.packets] == [transit.source for transit in transits]
    assert [packet["TCP"].flags for packet in capture.packets][:3] == ["S", "SA", "A"]


def test_what_was_sent_last_is_seen_to_arrive() -> None:
    """Even where the delay grew after the capture began."""
    with Lab(rtt_ms=10) as lab, lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with lab.capture() as capture:
            lab.set_link(rtt_ms=1500)
            sock.sendto(b"last", (lab.server.ip, 9))
        (transit,) = [transit for transit in capture.transits if transit.source == "client"]
        assert transit.received_ns is not None


def test_a_lost_frame_has_no_arrival(lab: Lab) -> None:
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, lab.capture() as capture:
        with lab.wire.drop(contains=b"lost"):
            for text in (b"lost", b"kept"):
                sock.sendto(text, (lab.server.ip, 9))
        lab.set_link(duplicate=1)
        sock.sendto(b"twice", (lab.server.ip, 9))
    found = {
        text: [t for t in capture.transits if text in t.data[42:] and t.data[23] == 17]
        for text in (b"lost", b"kept", b"twice")
    }
    assert [(t.source, t.destination, t.received_ns) for t in found[b"lost"]] == [("client", "server", None)]
    assert [t.received_ns is not None for t in found[b"kept"]] == [True]
    assert [t.received_ns is not None for t in found[b"twice"]] == [True, True]


def test_a_host_sees_its_own_loopback(lab: Lab) -> None:
    with lab.capture(at=lab.server) as on_server, lab.capture(at="client") as on_client, lab.capture() as on_wire:
        with lab.server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"to myself", ("127.0.0.1", 9))
            sock.sendto(b"to client", (lab.client.ip, 9))
    assert on_server.at == "server"
    assert any(b"to myself" in frame.data and frame.host == "server" for frame in on_server.frames)
    assert not any(b"to myself" in frame.data for frame in on_wire.frames + on_client.frames)
    (sent,) = [frame for frame in on_server.frames if b"to client" in frame.data and frame.data[23] == 17]
    (got,) = [frame for frame in on_client.frames if b"to client" in frame.data and frame.data[23] == 17]
    assert sent.sent
    assert not got.sent
    assert got.time_ns - sent.time_ns >= 5_000_000


def test_two_captures_at_once_see_the_same(lab: Lab) -> None:
    with lab.capture() as outer:
        exchange(lab)
        with lab.capture() as inner:
            exchange(lab, b"second")
    seen = [[(frame.data, frame.host, frame.sent) for frame in capture.frames] for capture in (inner, outer)]
    assert len(seen[1]) > len(seen[0]) > 10
    assert seen[0] == seen[1][-len(seen[0]) :]


def test_closing_twice_and_entering_again(lab: Lab) -> None:
    capture = lab.capture()
    exchange(lab)
    capture.close()
    seen = capture.frames
    assert seen
    capture.close()
    exchange(lab)
    assert capture.frames == seen
    with pytest.raises(LabClosed), capture:
        pass
    assert "stopped" in repr(capture)


def test_a_capture_outlives_its_lab() -> None:
    with Lab(rtt_ms=0) as lab:
        capture = lab.capture()
        lab.keylog_path.write_text("CLIENT_RANDOM 00 00\n")
        exchange(lab)
    assert capture.closed
    assert len(capture.transits) > 6
    assert capture.secrets == "CLIENT_RANDOM 00 00\n"
    assert {transit.source for transit in capture.transits} == {"client", "server"}


def test_a_block_whose_helper_was_killed_ends(lab: Lab) -> None:
    capture = lab.capture()
    with pytest.raises(LabClosed), capture:  # noqa: PT012  its end is what raises
        exchange(lab)
        os.kill(lab.engine.helper_pid, signal.SIGKILL)
    assert capture.closed
    assert len(capture.frames) > 10


def test_frames_without_room_are_counted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring of two blocks, and nobody who empties it: what fits is there, the rest is said to be missing."""
    monkeypatch.setattr(blocks, "BLOCKS", 2)
    monkeypatch.setattr(capture_module, "LOOK_EVERY_S", 1000)
    sent = 400
    assert sent * 1042 > 2 * blocks.BLOCK_BYTES
    with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:  # or ICMP answers each of them
        receiver.bind((lab.server.ip, 9))
        with lab.capture(at="client") as capture, lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(sent):
                sock.sendto(number.to_bytes(4, "big") + bytes(996), (lab.server.ip, 9))
    assert capture.dropped > 0
    assert len(capture.frames) + capture.dropped == sent
    assert f"{capture.dropped} DROPPED BY THE KERNEL" in repr(capture)
    assert "are missing" in capture.table()
    assert f"{capture.dropped} frames MISSING" in str(capture.ladder())


def test_a_ladder_has_the_hosts_in_the_order_asked_for(lab: Lab) -> None:
    with lab.capture() as capture:
        exchange(lab)
    assert capture.ladder().hosts == ("client", "server")
    assert capture.ladder(["server", "client"]).hosts == ("server", "client")


PACED = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
start = time.perf_counter()
for number in range(int(sys.argv[2])):
    while time.perf_counter() < start + number / 20_000:
        pass
    sock.sendto(number.to_bytes(4, "big") + bytes(96), (sys.argv[1], 9))
"""


def send_paced(lab: Lab, number: int) -> Capture:
    """Capture datagrams, sent by a program at 20,000 a second, until the last of them has arrived."""
    with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:  # or ICMP answers each of them
        receiver.bind((lab.server.ip, 9))
        with lab.capture() as capture:
            lab.client.run([sys.executable, "-c", PACED, lab.server.ip, str(number)]).check()
            assert lab.wire.settle(timeout_s=60)
    return capture


def numbers(frames: Iterable[Frame | Transit]) -> list[int]:
    return [int.from_bytes(frame.data[42:46], "big") for frame in frames]


def test_what_fits_into_the_ring_is_complete(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody finds the time to empty it. The wire's own ring is the smaller one, and holds them, too."""
    monkeypatch.setattr(capture_module, "LOOK_EVERY_S", 1000)
    sent = 5000
    assert sent < ring.WIRE_BYTES // BLOCK_BYTES * SLOTS_PER_BLOCK
    assert 2 * sent * (142 + 128) < blocks.BLOCKS * blocks.BLOCK_BYTES
    capture = send_paced(lab, sent)
    assert (capture.dropped, lab.wire.counts["client"]["up"].missed) == (0, 0)
    transits = capture.transits
    assert numbers(transits) == list(range(sent))
    assert all(transit.received_ns and transit.sent_ns for transit in transits)


def test_a_stream_of_packets_is_captured_or_counted_as_missing(lab: Lab) -> None:
    """More than fit into the ring at once. How many a second are all captured is for ``labkit bench`` to say."""
    sent = 20_000
    capture = send_paced(lab, sent)
    carried = lab.wire.counts["server"]["down"]
    assert carried.delivered + carried.missed + lab.wire.counts["client"]["up"].missed == sent
    assert len(capture.frames) + capture.dropped == sent + carried.delivered
    assert ("DROPPED BY THE KERNEL" in repr(capture)) == (capture.dropped > 0)
    for side in (True, False):
        seen = numbers(frame for frame in capture.frames if frame.sent == side)
        assert seen == sorted(set(seen))  # in order, and each once


def test_a_capture_ends_where_the_wire_was_quiet(until: Callable[..., None]) -> None:
    """Datagrams go on while captures end: none of them is seen leaving and not arriving."""
    stop, sent = threading.Event(), 0
    datagram = socket.AF_INET, socket.SOCK_DGRAM
    with Lab(rtt_ms=2) as lab, lab.server.socket(*datagram) as sink, lab.client.socket(*datagram) as sock:
        sink.bind((lab.server.ip, 9))
        sock.connect((lab.server.ip, 9))

        def chatter() -> None:
            nonlocal sent
            while not stop.wait(0.02):  # the wire is quiet in between, also where something else keeps it waiting
                sock.send(b"x" * 10)
                sent += 1

        thread = threading.Thread(target=chatter)
        thread.start()
        try:
            for _ in range(20):
                with lab.capture() as capture:
                    before = sent
                    until(lambda before=before: sent >= before + 5)
                assert len(capture.transits) >= 4  # the first of the five may have left before the capture began
                assert all(transit.received_ns for transit in capture.transits)
        finally:
            stop.set()
            thread.join()


def test_a_closed_capture_is_read_once(lab: Lab) -> None:
    """Again only when the session's key log has got a secret that was missing: not for those of other captures."""
    with lab.capture() as running:
        exchange(lab)
        seen = len(running.messages)
        exchange(lab)
        assert len(running.messages) > seen  # it is looked at again as long as it runs
    assert running.messages is running.messages
    assert running.transits is running.transits
    with HttpServer(lab.server, tls="1.3") as server:
        client = TlsClient(lab.client, server, version="1.3")
        with lab.capture() as capture:
            client.fetch()
        whole = lab.keylog_path.read_text()
        lab.keylog_path.write_text("")
        closed = capture.messages
        assert "Application data (encrypted)" in capture.table()
        assert capture.messages is closed
        client.fetch()  # writes secrets that are not this capture's
        others = lab.keylog_path.read_text()
        assert "TRAFFIC_SECRET" in others
        assert capture.messages is closed
    lab.keylog_path.write_text(others + whole)
    assert capture.messages is not closed
    assert "GET / HTTP/1.1" in capture.table()
    assert capture.messages is capture.messages


class Busy:
    """A source that somebody looks into for as long as the test wants."""

    def __init__(self) -> None:
        self.looked_into, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()

        self.frames: list[RingFrame] = []

    def collect(self) -> int:
        self.looked_into.set()
        self.go_on.wait(20)
        self.frames.append(RingFrame(0, 14, 1, False, bytes(14)))
        return 1

    def flush(self) -> None:
        self.collect()

    def read(self) -> None:
        pass

    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("looks", [True, False])
def test_a_capture_is_collected_while_its_thread_looks(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread knows neither the capture nor the lab behind it. Who looks last closes the source."""
    monkeypatch.setattr(capture_module, "LOOK_EVERY_S", 0.01 if looks else 1000)
    source, behind = Busy(), Mock()
    facts: dict[str, Any] = {"links": {}, "at": "wire", "hosts": {}, "secrets": str, "tier": ""}
    capture = Capture(source, settle=behind, **facts)
    thread, stop, lab = capture._thread, capture._collector.stop, weakref.ref(behind)
    assert not looks or source.looked_into.wait(20)
    capture.itself = capture  # type: ignore[attr-defined]  # only a collection finds it
    del capture, behind
    gc.collect()
    assert lab() is None
    assert source.closed.is_set() != looks
    source.go_on.set()
    assert source.closed.wait(20)
    if not looks:
        stop.set()
    thread.join(20)
    assert not thread.is_alive()


# Pairing, which needs no kernel.


def frame(time_ns: int, data: bytes, host: str, sent: bool) -> Frame:
    return Frame(time_ns, data, host, sent, len(data))


def test_equal_frames_pair_first_in_first_out() -> None:
    transits = pair_frames(
        [
            frame(1, b"x", "a", True),
            frame(2, b"x", "a", True),
            frame(3, b"x", "b", False),
            frame(4, b"x", "b", False),
            frame(5, b"x", "b", False),
            frame(6, b"y", "b", False),
        ]
    )
    assert [(t.sent_ns, t.received_ns) for t in transits] == [(1, 3), (2, 4), (2, 5), (None, 6)]
    assert [t.time_ns for t in transits] == [1, 2, 2, 6]
