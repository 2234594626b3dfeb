"""What happens to frames, decided without a socket or a clock."""

from __future__ import annotations

import ast
import heapq
import inspect
import itertools
import random
from collections.abc import Iterable

import pytest

from labkit import Link
from labkit.loopback.frames import ACK, PSH, SYN, Endpoint, tcp_frame, udp_frame
from labkit.network import fate
from labkit.network.fate import ActiveRule, Fate, Settings, Tally, describe
from labkit.network.link import Counts, Rule
from labkit.network.ring import RingFrame

MS = 1_000_000
CLIENT, SERVER = Endpoint(1, 40000), Endpoint(2, 80)
WALL_NS = 1_700_000_000_000_000_000  # some day; frames are stamped with it, and paths count from a monotonic clock


def star(seed: int = 0, **client: float | None) -> Fate:
    """A client with a link and a server in the middle of the wire."""
    made = Fate(seed)
    made.attach(1, "client")
    made.attach(2, "server")
    made.set_link(1, Link(**client), None)  # type: ignore[arg-type]
    return made


def datagram(number: int, size: int = 100) -> bytes:
    return udp_frame(CLIENT, SERVER, number.to_bytes(4, "big").ljust(size, b"."))


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[42:46], "big")


def enter(made: Fate, frames: Iterable[bytes], now_ns: int = 0, every_ns: int = 0) -> None:
    """The client sends them, `every_ns` after each other."""
    for position, data in enumerate(frames):
        at = now_ns + position * every_ns
        made.take(1, [RingFrame(WALL_NS + at, len(data), 0, False, data)], WALL_NS + at, at)


def arrivals(made: Fate) -> list[tuple[int, int]]:
    """(due time, number) of all that is under way to the server, in the order in which it will arrive."""
    queue = made.paths[1, 2].queue
    late = [(due, data) for due, _, data, _ in heapq.nsmallest(len(made.overtaking), made.overtaking)]
    return [(due, number_of(data)) for due, data in heapq.merge(queue, late, key=lambda one: one[0])]


def numbers(made: Fate) -> list[int]:
    return [number for _, number in arrivals(made)]


def test_the_delay_is_half_the_round_trip_counted_from_the_kernels_stamp() -> None:
    made = star(rtt_ms=40)
    data = datagram(7)
    made.take(1, [RingFrame(WALL_NS - 3 * MS, len(data), 0, False, data)], WALL_NS, 100 * MS)
    assert arrivals(made) == [(117 * MS, 7)]
    assert (made.under_way(), made.next_due_ns()) == (1, 117 * MS)


def test_a_frame_that_came_after_the_clocks_were_read_enters_when_it_came() -> None:
    made = star(rtt_ms=40)
    data = datagram(7)
    made.take(1, [RingFrame(WALL_NS + 1000, len(data), 0, False, data)], WALL_NS, 100 * MS)
    assert arrivals(made) == [(120 * MS + 1000, 7)]


@pytest.mark.parametrize("age_s", [-3600, 3600])
def test_a_clock_that_was_set_is_not_an_age(age_s: int) -> None:
    made = star(rtt_ms=40)
    data = datagram(7)
    made.take(1, [RingFrame(WALL_NS - age_s * 1_000_000_000, len(data), 0, False, data)], WALL_NS, 100 * MS)
    assert arrivals(made) == [(120 * MS, 7)]


def test_both_links_of_a_path_add_their_delay() -> None:
    made = star(rtt_ms=40)
    made.set_link(2, Link(rtt_ms=10), None)
    enter(made, [datagram(0)])
    assert arrivals(made) == [(25 * MS, 0)]


def test_a_link_that_becomes_shorter_keeps_the_order() -> None:
    made = star(rtt_ms=40)
    enter(made, [datagram(0)])
    made.set_link(1, Link(rtt_ms=2), None)
    enter(made, [datagram(1)], now_ns=MS)
    assert arrivals(made) == [(20 * MS, 0), (20 * MS, 1)]


def test_what_is_for_no_host_goes_nowhere() -> None:
    made = star(rtt_ms=40)
    broadcast = b"\xff" * 6 + datagram(0)[6:]
    nobody = udp_frame(CLIENT, Endpoint(9, 80), b"x")
    enter(made, [broadcast, nobody])
    counts = made.links[1][0].counts
    assert (made.under_way(), counts.unaddressed, counts.frames) == (0, 2, 2)


def test_the_same_seed_loses_the_same_frames() -> None:
    def survivors(seed: int) -> list[int]:
        made = star(seed, rtt_ms=40, loss=0.2)
        enter(made, map(datagram, range(500)))
        assert made.links[1][0].counts.lost == 500 - made.under_way()
        return numbers(made)

    assert survivors(3) == survivors(3) != survivors(4)
    assert 350 < len(survivors(3)) < 450


def test_what_one_direction_carries_does_not_change_what_the_other_loses() -> None:
    quiet, busy = star(loss=0.2), star(loss=0.2)
    back = [udp_frame(SERVER, CLIENT, b"answer")] * 100
    for data in back:
        busy.decide(busy.paths[2, 1], data, 0)
    for made in (quiet, busy):
        enter(made, map(datagram, range(200)))
    assert numbers(quiet) == numbers(busy)


def test_a_seed_that_is_set_starts_the_random_numbers_again() -> None:
    made, again = star(0, loss=0.5), star(5, loss=0.5)
    enter(made, map(datagram, range(50)))
    made.paths[1, 2].queue.clear()
    made.set_link(1, Link(loss=0.5), 5)
    for one in (made, again):
        enter(one, map(datagram, range(200)))
    assert numbers(made) == numbers(again)


def test_a_rate_spaces_frames_and_its_queue_overflows() -> None:
    made = star(rate_mbps=1, queue_ms=10)
    size = len(datagram(0))
    enter(made, map(datagram, range(100)))
    per_frame = size * 8_000  # ns at 1 Mbit/s
    fit = 10 * MS // per_frame + 1  # the one on the link, and those that wait for 10 ms at most
    assert arrivals(made) == [((number + 1) * per_frame, number) for number in range(fit)]
    assert made.links[1][0].counts.overflowed == 100 - fit


def test_jitter_delays_and_keeps_the_order() -> None:
    made = star(rtt_ms=20, jitter_ms=5)
    enter(made, map(datagram, range(200)), every_ns=MS)
    assert numbers(made) == list(range(200))
    late = [due - (number * MS + 10 * MS) for due, number in arrivals(made)]
    assert min(late) >= 0
    assert 4 * MS < max(late) <= 5 * MS


def test_a_frame_that_overtakes_crosses_without_the_delay() -> None:
    made = star(rtt_ms=20, reorder=0.1)
    enter(made, map(datagram, range(200)), every_ns=MS)
    overtook = {number for due, number in arrivals(made) if due == number * MS}
    assert made.links[1][0].counts.reordered == len(overtook) == len(made.overtaking) > 5
    assert sorted(numbers(made)) == list(range(200))
    assert numbers(made) != list(range(200))


def test_duplicates_are_counted_and_arrive() -> None:
    made = star(duplicate=1)
    enter(made, map(datagram, range(3)))
    assert numbers(made) == [0, 0, 1, 1, 2, 2]
    assert made.links[1][0].counts.duplicated == 3


def test_lossless_traffic_is_delayed_and_nothing_else() -> None:
    made = star(rtt_ms=20, loss=1, reorder=1, duplicate=1)
    made.add_rule(Rule("duplicate").as_message())
    made.add_rule(Rule("delay", delay_ms=5).as_message())
    made.decide(made.paths[1, 2], datagram(0), 0, lossless=True)
    assert arrivals(made) == [(15 * MS, 0)]
    assert made.overtaking == []


def test_rules_skip_and_count_and_are_asked_in_order() -> None:
    made = star(rtt_ms=20)
    first = made.add_rule(Rule("drop", source="client", skip=1, count=2).as_message())
    second = made.add_rule(Rule("delay", delay_ms=7, contains=(4).to_bytes(4, "big")).as_message())
    enter(made, map(datagram, range(6)))
    assert arrivals(made) == [(10 * MS, 0), (10 * MS, 3), (10 * MS, 5), (17 * MS, 4)]
    rules = made.rules
    assert [(rules[one].matched, rules[one].acted) for one in (first, second)] == [(6, 2), (1, 1)]
    assert made.links[1][0].counts.ruled_out == 2


def test_what_rules_can_ask_of_a_frame() -> None:
    segment = describe(tcp_frame(CLIENT, SERVER, PSH | ACK, 1, 1, 100, b"GET"), "client", "server")
    assert segment == {
        "source": "client",
        "destination": "server",
        "protocol": "tcp",
        "ports": (40000, 80),
        "seq": 1,
        "tcp_flags": ACK,  # PSH is not compared
        "data": b"GET",
        "payload": True,
    }
    assert describe(tcp_frame(CLIENT, SERVER, SYN, 1, 0, 100), "", "")["payload"] is False
    assert describe(b"", "a", "b") == {"source": "a", "destination": "b"}


@pytest.mark.parametrize("length", range(60))
def test_a_frame_that_is_cut_off_is_described_as_far_as_it_goes(length: int) -> None:
    assert describe(tcp_frame(CLIENT, SERVER, SYN, 1, 0, 100, b"x" * 8)[:length], "a", "b")["source"] == "a"


def test_fate_has_neither_socket_nor_clock() -> None:
    tree = ast.parse(inspect.getsource(fate))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"heapq", "random"}


def test_the_wire_names_settings_and_counts_as_the_notebook_does() -> None:
    defaults = {name: getattr(Settings, name) for name in vars(Link())}
    assert defaults == vars(Link())
    assert vars(Tally()) == vars(Counts())


def segment(sequence: int, data: bytes) -> bytes:
    return tcp_frame(CLIENT, SERVER, ACK, sequence % 2**32, 1, 100, data)


def test_a_pattern_may_begin_in_a_segment_before_the_one_that_matches() -> None:
    chance = random.Random(1)
    for _ in range(200):
        stream = bytes(chance.choice(b"ab") for _ in range(60))
        rule = ActiveRule(Rule("delay", contains=b"abba").as_message())
        cuts = sorted({0, 60, *(chance.randrange(60) for _ in range(12))})
        start = 2**32 - 30  # the numbers of the bytes wrap
        for begin, end in itertools.pairwise(cuts):
            matched = rule.matched
            packet = describe(segment(start + begin, stream[begin:end]), ("client",), ("server",))
            rule.acts_on(packet)
            there = any(begin < at + 4 <= end for at in range(57) if stream[at : at + 4] == b"abba")
            assert rule.matched - matched == there
            rule.acts_on(describe(segment(start + end, b""), ("client",), ("server",)))  # an ACK says nothing
            rule.acts_on(describe(segment(start + begin, b"ab"), ("other",), ("server",)))  # nor does another stream


def test_what_a_rule_drops_is_found_again_when_it_is_sent_again() -> None:
    rule = ActiveRule(Rule("drop", contains=b"secret", count=2).as_message())
    sent = [segment(1, b"a sec"), segment(6, b"ret"), segment(6, b"ret"), segment(6, b"ret"), segment(9, b"ret")]
    acted = [rule.acts_on(describe(each, ("client",), ("server",))) for each in sent]
    assert acted == [False, True, True, False, False]
