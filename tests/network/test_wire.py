"""The wire: delay, loss, rate, order, rules and counts, with real packets."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import InvalidValue, Lab, Link
from labkit.capture.headers import decode
from labkit.waiting import wait_until

Until = Callable[..., None]


@contextlib.contextmanager
def udp(lab: Lab, port: int = 9) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket of the client and one of the server, connected."""
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            theirs.bind((lab.server.ip, port))
            ours.connect((lab.server.ip, port))
            theirs.connect(ours.getsockname())
            yield ours, theirs


def numbers(lab: Lab, sender: socket.socket, receiver: socket.socket, count: int, size: int = 100) -> list[int]:
    """Send numbered datagrams, wait until the wire is quiet, return the numbers that arrived, in order."""
    before = entered(lab)
    for number in range(count):
        sender.send(number.to_bytes(4, "big").ljust(size, b"."))
    # On a busy machine the kernel hands them to the wire a while after it has taken them from the sender.
    wait_until(lambda: entered(lab) >= before + count)
    return received(lab, receiver)


def entered(lab: Lab) -> int:
    return sum(ways["up"].frames + ways["up"].missed for ways in lab.wire.counts.values())


def quiet(lab: Lab) -> None:
    """Wait until no frame is on the wire."""
    deadline = time.monotonic() + 20
    while lab.wire.in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def received(lab: Lab, receiver: socket.socket) -> list[int]:
    quiet(lab)
    receiver.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(int.from_bytes(receiver.recv(2000)[:4], "big"))
    return found


def balance(lab: Lab) -> dict[str, int]:
    """What came in and what became of it, over all links."""
    quiet(lab)
    total: Counter[str] = Counter()
    for ways in lab.wire.counts.values():
        for way, counts in ways.items():
            for name, value in vars(counts).items():
                total[f"missed {way}" if name == "missed" else name] += value
    came = total["frames"] + total["duplicated"]
    went = sum(
        total[name]
        for name in ("delivered", "lost", "overflowed", "ruled_out", "cut", "too_long", "unaddressed", "missed down")
    )
    assert came == went, dict(total)
    assert total["missed up"] == 0
    return dict(total)


def echo_ms(ours: socket.socket, theirs: socket.socket) -> float:
    """The least round trip of a datagram and its echo: a busy machine only adds to it."""
    times = []
    for socket_ in (ours, theirs):
        socket_.settimeout(20)
    for _ in range(7):
        start = time.perf_counter()
        ours.send(b"x")
        theirs.send(theirs.recv(100))
        ours.recv(100)
        times.append((time.perf_counter() - start) * 1000)
    return min(times)


# Delay.


def test_connecting_takes_a_round_trip(lab: Lab) -> None:
    with lab.server, socket.create_server(("", 80)), lab.client, lab.capture() as capture:
        start = time.perf_counter()
        client = socket.create_connection(("server.lab", 80))
        took_ms = (time.perf_counter() - start) * 1000
        connected_ns = time.time_ns()
        client.close()
    assert took_ms >= 10
    before = [transit for transit in capture.transits if (transit.received_ns or 0) < connected_ns]
    assert {transit.data[47] & 0x3F for transit in before} <= {0x02, 0x12, 0x10}  # SYN, SYN-ACK, ACK: nothing else


@pytest.mark.alone
def test_the_rtt_of_two_hosts_is_the_sum_of_their_links() -> None:
    with Lab(rtt_ms=60, hosts={"far": Link(rtt_ms=90)}) as lab:
        with lab.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind((lab.far.ip, 9))
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.connect((lab.far.ip, 9))
                ours.send(b"here I am")
                far.connect(far.recvfrom(100)[1])
                assert 1.0 <= echo_ms(ours, far) / 150 < 1.3
        with udp(lab) as (ours, theirs):
            assert 1.0 <= echo_ms(ours, theirs) / 60 < 1.3


def test_the_delay_changes_while_the_lab_runs(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        before = echo_ms(ours, theirs)
        assert lab.set_link(rtt_ms=400).rtt_ms == lab.rtt_ms == 400
        assert before < 400 <= echo_ms(ours, theirs)
        lab.set_link(rtt_ms=10)
        assert echo_ms(ours, theirs) < 400


def test_a_frame_under_way_keeps_its_place_when_the_delay_shrinks(lab: Lab) -> None:
    lab.set_link(rtt_ms=300)
    with udp(lab) as (ours, theirs):
        ours.send((0).to_bytes(4, "big"))
        lab.set_link(rtt_ms=0)
        ours.send((1).to_bytes(4, "big"))
        assert received(lab, theirs) == [0, 1]


# Loss.


def lost_numbers(seed: int, loss: float = 0.2) -> list[int]:
    with Lab(rtt_ms=2, loss=loss, seed=seed) as lab, udp(lab) as (ours, theirs):
        arrived = numbers(lab, ours, theirs, 500)
        total = balance(lab)
    assert arrived == sorted(set(arrived))
    lost = sorted(set(range(500)) - set(arrived))
    assert total["lost"] == len(lost)
    return lost


def test_loss_is_seeded() -> None:
    first = lost_numbers(seed=1)
    assert lost_numbers(seed=1) == first
    assert lost_numbers(seed=2) != first
    assert 60 <= len(first) <= 140  # 100 expected, 9 standard deviation


def test_a_new_seed_repeats_the_loss_in_a_running_lab(lab: Lab) -> None:
    rounds = []
    with udp(lab) as (ours, theirs):
        for _ in range(2):
            lab.set_link(loss=0.3, seed=5)
            rounds.append(numbers(lab, ours, theirs, 200))
        rounds.append(numbers(lab, ours, theirs, 200))
    assert rounds[0] == rounds[1] != rounds[2]


def test_what_one_direction_carries_never_changes_the_others_losses(lab: Lab) -> None:
    rounds = []
    with udp(lab) as (ours, theirs):
        for answers in (0, 50):
            lab.set_link(loss=0.3, seed=5)
            for _ in range(answers):
                theirs.send(b"back")
            rounds.append(numbers(lab, ours, theirs, 200))
    assert rounds[0] == rounds[1]


def test_all_or_nothing(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.set_link(loss=1)
        assert numbers(lab, ours, theirs, 50) == []
        lab.set_link(loss=0)
        assert numbers(lab, ours, theirs, 50) == list(range(50))


# Rate.


def transfer(lab: Lab, megabytes: int) -> float:
    """Send so much by TCP. Returns the rate of its frames on the wire, by the kernel's stamps: Mbit/s."""
    with lab.server, socket.create_server(("", 80)) as listener, lab.capture() as capture:
        with lab.client:
            sender = socket.create_connection(("server.lab", 80))
        receiver, _ = listener.accept()
        with sender, receiver:
            sender.setblocking(False)
            data, got = memoryview(bytes(megabytes << 20)), 0
            while got < megabytes << 20:
                readable, writable, _ = select.select([receiver], [sender] if len(data) else [], [], 20)
                assert readable or writable
                if writable:
                    data = data[sender.send(data[:65536]) :]
                if readable:
                    got += len(receiver.recv(1 << 20))
    assert capture.dropped == 0
    # Of any size: a sender that is held up does not fill each segment.
    filled = [t for t in capture.transits if t.source == "client" and decode(t.data).payload and t.received_ns]
    assert sum(len(decode(transit.data).payload) for transit in filled) >= megabytes << 20
    # From the first one's departure: no frame can be with the receiver before all of those before it have been sent.
    taken_ns = (filled[-1].received_ns or 0) - (filled[0].sent_ns or 0)
    return sum(len(transit.data) for transit in filled) * 8 / taken_ns * 1000


@pytest.mark.alone
def test_throughput_is_the_rate_that_was_set() -> None:
    with Lab(rtt_ms=4, rate_mbps=20) as lab:
        rates: list[float] = []
        while len(rates) < 5 and max(rates, default=0) < 18:  # a busy machine takes from the rate, and adds nothing
            rates.append(transfer(lab, megabytes=1))
            assert rates[-1] <= 20
            balance(lab)
    assert max(rates) >= 18, rates


def test_a_full_queue_drops_and_counts() -> None:
    with Lab(rtt_ms=2, rate_mbps=1) as lab, udp(lab) as (ours, theirs):
        lab.set_link(queue_ms=50)
        least, overflowed = list(range(100)), 0
        for _ in range(5):
            arrived = numbers(lab, ours, theirs, 100, size=1000)
            overflowed += 100 - len(arrived)
            assert lab.wire.counts["client"]["up"].overflowed == overflowed
            balance(lab)
            # Where the machine stops while they are sent, the queue has room again for those that come later.
            least = min(least, arrived, key=len)
            if len(least) <= 9:
                break
    # A queue of 50 ms holds 50 000 bit: six frames of 1042 bytes, and one that is being sent.
    assert 6 <= len(least) <= 9
    assert least == list(range(len(least)))


# Order.


def test_jitter_keeps_the_order(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.set_link(jitter_ms=20)
        assert numbers(lab, ours, theirs, 300) == list(range(300))
        balance(lab)


def test_jitter_spreads_the_arrivals(lab: Lab) -> None:
    with udp(lab) as (ours, _), lab.capture() as capture:
        lab.set_link(rtt_ms=2, jitter_ms=20)
        for _ in range(20):
            ours.send(b"x")
            select.select([], [], [], 0.002)
    ways_ms = [(t.received_ns - t.sent_ns) / 1e6 for t in capture.transits if t.received_ns and t.sent_ns]
    assert len(ways_ms) == 20
    assert max(ways_ms) - min(ways_ms) > 5


def test_nothing_is_faster_than_the_wire() -> None:
    """Nor a frame that comes while the wire reads others, after it has looked at the clock."""
    with Lab(rtt_ms=2) as lab, lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, lab.capture() as capture:
        for _ in range(20_000):
            sock.sendto(b"x", (lab.server.ip, 9))
    ways_ns = [t.received_ns - t.sent_ns for t in capture.transits if t.received_ns and t.sent_ns]
    assert len(ways_ns) > 1000
    assert min(ways_ns) >= 1_000_000


def test_reordered_frames_overtake(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.set_link(rtt_ms=3000, reorder=0.2, seed=1)  # all are sent before the first that is held arrives
        arrived = numbers(lab, ours, theirs, 100)
        counts = lab.wire.counts["client"]["up"]
        balance(lab)
    assert sorted(arrived) == list(range(100))
    overtakers = arrived[: counts.reordered]
    assert 5 <= counts.reordered <= 40
    assert overtakers == sorted(overtakers) != list(range(len(overtakers)))
    assert arrived[counts.reordered :] == sorted(set(range(100)) - set(overtakers))


def test_duplicates_arrive_twice(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.set_link(duplicate=0.5, seed=1)
        arrived = numbers(lab, ours, theirs, 100)
        duplicated = lab.wire.counts["client"]["up"].duplicated
        balance(lab)
    assert arrived == sorted(arrived)
    assert set(arrived) == set(range(100))
    assert max(Counter(arrived).values()) == 2
    assert len(arrived) == 100 + duplicated
    assert 20 <= duplicated <= 80


def test_the_counts_add_up_with_every_fault_at_once() -> None:
    with Lab(rtt_ms=4, loss=0.1, rate_mbps=5, jitter_ms=2, hosts={"far": Link(loss=0.1)}, seed=3) as lab:
        lab.set_link(duplicate=0.2, reorder=0.1, queue_ms=10)
        lab.server.set_link(loss=0.1, duplicate=0.2)
        lab.wire.duplicate(source="client", skip=10, count=50)
        lab.wire.drop(protocol="udp", skip=100, count=10)
        with udp(lab) as (ours, theirs):
            numbers(lab, ours, theirs, 400, size=300)
            numbers(lab, theirs, ours, 400, size=300)
            total = balance(lab)
    assert total["frames"] == 800
    for fault in ("lost", "overflowed", "ruled_out", "duplicated", "reordered"):
        assert total[fault] > 0, fault


def test_broadcasts_go_nowhere_and_are_counted(lab: Lab) -> None:
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"all", ("192.0.2.255", 9))
    assert balance(lab)["unaddressed"] == 1


# Rules.


def syn_acks(capture: object, delivered: bool = False) -> int:
    return sum(
        1
        for transit in capture.transits  # type: ignore[attr-defined]
        if transit.data[23] == 6 and transit.data[47] & 0x3F == 0x12 and (transit.received_ns or not delivered)
    )


def test_the_first_syn_ack_is_dropped_and_sent_again(lab: Lab) -> None:
    with lab.server:
        listener = socket.create_server(("", 80))
    before = lab.client.counters, lab.server.counters
    with listener, lab.capture() as capture, lab.wire.drop(source="server", tcp_flags="SA", count=1) as rule:
        with lab.client, socket.create_connection(("server.lab", 80), timeout=20):
            pass
        # After a second both ends time out: a SYN-ACK for each, or one for both.
        assert rule.acted == 1
    # It stays readable. The capture outlives the rule, and the other end's SYN-ACK may come in between.
    assert 2 <= rule.matched <= syn_acks(capture) <= 3
    assert syn_acks(capture, delivered=True) == rule.matched - 1
    client, server = (host.counters - then for host, then in zip((lab.client, lab.server), before, strict=True))
    assert client["TcpActiveOpens"] == server["TcpPassiveOpens"] == 1
    assert client["TcpRetransSegs"] + server["TcpRetransSegs"] >= 1
    total = balance(lab)
    assert total["ruled_out"] == 1


def test_only_the_response_is_lost(lab: Lab) -> None:
    with lab.server:
        listener = socket.create_server(("", 80))
    with listener, lab.client, socket.create_connection(("server.lab", 80)) as client:
        server, _ = listener.accept()
        with server, lab.wire.drop(source="server", contains=b"HTTP/1.1 200", count=1) as rule:
            for sock in (client, server):
                sock.settimeout(20)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert server.recv(1000).startswith(b"GET")
            server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")  # the retransmission
            assert rule.acted == 1
            assert rule.matched >= 2  # more, where the machine stalls for longer than TCP waits


def test_payload_tells_data_from_acknowledgements(lab: Lab) -> None:
    with lab.server:
        listener = socket.create_server(("", 80))
    with lab.wire.delay(1, source="client", payload=True) as data:
        with lab.wire.delay(1, source="client", payload=False) as bare, lab.capture() as capture:
            with listener, lab.client, socket.create_connection(("server.lab", 80)) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"hello")
                    server.settimeout(20)
                    assert server.recv(10) == b"hello"
        sent = [b"hello" in transit.data for transit in capture.transits if transit.source == "client"]
        assert data.acted == sent.count(True) >= 1
        assert bare.acted == sent.count(False) >= 2  # SYN, the ACK of the SYN-ACK, …


def test_skip_count_and_removal(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        rule = lab.wire.drop(source="client", protocol="udp", skip=3, count=2)
        assert numbers(lab, ours, theirs, 8) == [0, 1, 2, 5, 6, 7]
        assert (rule.matched, rule.acted) == (8, 2)
        rule.remove()
        rule.remove()
        assert (rule.matched, rule.acted) == (8, 2)
        lab.wire.drop()
        assert numbers(lab, ours, theirs, 5) == []


def test_a_delayed_packet_is_overtaken(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.wire.delay(1500, contains=(1).to_bytes(4, "big"))
        assert numbers(lab, ours, theirs, 4) == [0, 2, 3, 1]
        balance(lab)


def test_a_rule_duplicates(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        lab.wire.duplicate(contains=(2).to_bytes(4, "big"))
        assert numbers(lab, ours, theirs, 4) == [0, 1, 2, 2, 3]
        assert balance(lab)["duplicated"] == 1


def test_rules_by_port_protocol_and_host(lab: Lab) -> None:
    with udp(lab, 9) as (to_9, at_9), udp(lab, 10) as (to_10, at_10):
        with lab.wire.drop(port=9, protocol="udp") as rule:
            assert numbers(lab, to_9, at_9, 3) == []
            assert numbers(lab, to_10, at_10, 3) == [0, 1, 2]
            assert rule.acted == 3
        with lab.wire.drop(protocol="tcp"), lab.wire.drop(source="server"), lab.wire.drop(destination="client"):
            assert numbers(lab, to_9, at_9, 3) == [0, 1, 2]
        with lab.wire.drop(destination="server") as rule:
            assert numbers(lab, to_9, at_9, 3) == []
            assert rule.acted == 3


def test_rules_read_ipv6_too(lab: Lab) -> None:
    with lab.server.socket(socket.AF_INET6, socket.SOCK_DGRAM) as theirs:
        theirs.bind((lab.server.ip6, 9))
        with lab.client.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ours:
            ours.connect((lab.server.ip6, 9))
            with lab.wire.drop(port=9, contains=b"bad"):
                for text in (b"0000bad", b"0001good"):
                    ours.send(text)
                theirs.settimeout(20)
                assert theirs.recv(100) == b"0001good"


def test_later_fragments_have_no_ports(lab: Lab) -> None:
    with udp(lab) as (ours, theirs), lab.wire.duplicate(protocol="udp") as rule:
        ours.send(b"\0\0\0\1" + bytes(3000))
        assert received(lab, theirs) != []
        assert rule.matched == 1
        assert lab.wire.counts["client"]["up"].frames == 3


@pytest.mark.parametrize(
    "conditions",
    [
        {"source": "nobody"},
        {"destination": "nobody"},
        {"protocol": "sctp"},
        {"tcp_flags": "X"},
        {"tcp_flags": ""},
        {"contains": "text"},
        {"skip": -1},
        {"count": 0},
        {"port": 65536},
        {"port": True},
    ],
)
def test_conditions_that_cannot_be(lab: Lab, conditions: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        lab.wire.drop(**conditions)
    with udp(lab) as (ours, theirs):
        assert numbers(lab, ours, theirs, 2) == [0, 1]


def test_an_idle_wire_is_silent() -> None:
    """No ARP, neighbour discovery, MLD or router solicitation: not at the start, and not later."""
    with Lab(rtt_ms=0, hosts=["third"]) as lab:
        ring = lab.engine.tap(None)
        try:
            quiet = not ring.wait(3)
            ring.flush()
            ring.read()
            assert quiet, [frame.data.hex() for frame in ring.frames]
        finally:
            ring.close()
        assert all(counts.frames == 0 for ways in lab.wire.counts.values() for counts in ways.values())


PAIRS = """
import os, socket
from labkit.network.netlink import IFF_NOARP, IFF_UP, RouteSocket
here = os.open("/proc/self/ns/net", os.O_RDONLY)
# Opened before: binding one waits long enough for the kernel to be done.
receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
receiver.settimeout(0.2)
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
arrived = 0
with RouteSocket() as route:
    for number in range(10):
        names = f"one{number}", f"two{number}"
        route.add_veth(names[0], bytes([2, 0, 0, 1, 0, number]), names[1], bytes([2, 0, 0, 1, 1, number]), here)
        one, two = map(socket.if_nametoindex, names)
        for index in (one, two):
            route.set_flags(index, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP)
        route.wait_until_up(one)
        sender.sendto(bytes([255] * 6 + [2, 0, 0, 1, 0, number]) + b"\\x88\\xb5" + bytes(46), (names[0], 0))
        try:
            while receiver.recvfrom(100)[1][2] == socket.PACKET_OUTGOING:
                pass
            arrived += 1
        except TimeoutError:
            pass
print(arrived)
"""


def test_an_interface_that_is_waited_for_drops_no_frame(lab: Lab) -> None:
    """One end of a veth pair comes up before the other, and until a worker of the kernel's has seen that it drops."""
    done = lab.client.run([sys.executable, "-c", PAIRS], env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.check().stdout == "10\n"
