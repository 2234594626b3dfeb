"""Packets in, round trips and proof out: packets of one real capture, some of them taken away or changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from labkit import Lab, MeasurementFailed
from labkit.capture.capture import Capture
from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Dissected
from labkit.handshakes import client_for, server_for, variant
from labkit.handshakes.phases import Timeline, begins, connections, evidence, timeline
from labkit.waiting import fewest

RTT_MS = 20
RTT_NS = RTT_MS * 10**6
NAMES = ["tcp", "tls1.2", "tls1.3", "tls1.3-0rtt", "tfo", "quic", "quic-0rtt"]
EACH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[Sequence[Transit], KeyLog]]:
    """A warm-up and one request of each, on a lab that has other things to carry as well."""
    with Lab(rtt_ms=RTT_MS) as lab:

        def fetched(name: str) -> Capture:
            with server_for(variant(name), lab.server) as server, lab.capture() as capture:
                client = client_for(variant(name), lab.client, server)
                client.fetch()
                with lab.client.socket() as stranger:  # refused: SYN and RST
                    assert stranger.connect_ex((lab.server.ip, 9)) != 0
                client.fetch()
            return capture

        def round_trips(capture: Capture) -> int:
            return sum(timeline(connections(capture.messages)[2]).whole_rtts().values())

        # A machine that is held up for a whole round trip makes the request longer.
        captures = {name: fewest(partial(fetched, name), round_trips, variant(name).theory_rtts) for name in NAMES}
        return {name: (capture.transits, KeyLog.parse(capture.secrets)) for name, capture in captures.items()}


Packets = Callable[..., list[list[Dissected]]]


@pytest.fixture(scope="module")
def packets(recorded: dict[str, tuple[Sequence[Transit], KeyLog]]) -> Packets:
    """``packets("tls1.3")``: the connections, of what ``change`` makes of each transit (None takes it away)."""

    def get(
        name: str, change: Callable[[Transit], Transit | None] = lambda t: t, secrets: bool = True
    ) -> list[list[Dissected]]:
        transits, log = recorded[name]
        changed = [new for old in transits if (new := change(old)) is not None]
        return connections(dissect(changed, log if secrets else KeyLog()))

    return get


def without(packets: Sequence[Dissected], gone: Callable[[Dissected], bool]) -> list[Dissected]:
    kept = [packet for packet in packets if not gone(packet)]
    assert len(kept) < len(packets)
    return kept


def carries(word: str) -> Callable[[Dissected], bool]:
    return lambda packet: any(word in f"{m.name} {m.detail}" for m in packet.messages)


@EACH
def test_connections(packets: Packets, name: str) -> None:
    warm_up, refused, fetched = packets(name)
    assert [begins(group[0]) for group in (warm_up, refused, fetched)] == [True] * 3
    assert not any(begins(packet) for group in (warm_up, refused, fetched) for packet in group[1:])
    assert [packet.label for packet in refused] == ["SYN", "RST"]
    for group in (warm_up, fetched):
        assert len({packet.flow for packet in group}) == 1
        assert [p.index for p in group] == sorted(p.index for p in group)
    with pytest.raises(MeasurementFailed, match=r"2 packets of .* hold no request"):
        timeline(refused)


@EACH
def test_the_same_packets_at_another_time(packets: Packets, name: str) -> None:
    """Only differences count, and asking twice gives the same answer."""

    def later(transit: Transit) -> Transit:
        assert transit.sent_ns is not None
        assert transit.received_ns is not None
        return replace(transit, sent_ns=transit.sent_ns + 10**15, received_ns=transit.received_ns + 10**15)

    first, second = timeline(packets(name)[2]), timeline(packets(name, later)[2])
    assert first == timeline(packets(name)[2])
    assert second.start_ns - first.start_ns == 10**15
    assert second.phases_rtts(RTT_MS) == first.phases_rtts(RTT_MS)
    assert evidence(second) == evidence(first)
    assert first.rtts(RTT_MS) == 2 * first.rtts(2 * RTT_MS)
    assert first.start_ns <= first.payload_ns <= first.request_ns < first.response_ns


@EACH
def test_a_slower_way_back_is_in_the_request_phase(packets: Packets, name: str) -> None:
    """The whole response half a round trip later, and nothing else changes."""
    groups = packets(name)
    line = timeline(groups[2])
    is_response = carries("stream 0,") if line.quic else carries("HTTP/1.1 200")
    late = {p.transit for p in groups[2] if not p.from_client and is_response(p)}
    assert late

    def delay(transit: Transit) -> Transit:
        assert transit.received_ns is not None
        return replace(transit, received_ns=transit.received_ns + RTT_MS * 500_000) if transit in late else transit

    before, after = line.phases_rtts(RTT_MS), timeline(packets(name, delay)[2]).phases_rtts(RTT_MS)
    changes = {phase: round(after[phase] - before[phase], 6) for phase in before}
    assert changes == {phase: 0.5 if phase == "request" else 0 for phase in before}


@EACH
def test_a_slow_machine_adds_time_and_no_round_trip(packets: Packets, name: str) -> None:
    """Before each flight of the server 0.6 round trips of computing."""
    line = timeline(packets(name)[2])
    pauses = [
        first.transit.time_ns for before, first in pairwise(line.packets) if before.from_client > first.from_client
    ]

    def pause(transit: Transit) -> Transit:
        assert transit.sent_ns is not None
        assert transit.received_ns is not None
        late = [sum(moment <= at for moment in pauses) * 0.6 for at in (transit.sent_ns, transit.received_ns)]
        sent_ns, received_ns = transit.sent_ns + late[0] * RTT_NS, transit.received_ns + late[1] * RTT_NS
        return replace(transit, sent_ns=int(sent_ns), received_ns=int(received_ns))

    slow = timeline(packets(name, pause)[2])
    assert slow.rtts(RTT_MS) - line.rtts(RTT_MS) > 0.59
    assert slow.whole_rtts() == line.whole_rtts()
    assert sum(slow.whole_rtts().values()) == variant(name).theory_rtts


@EACH
def test_what_is_missing_is_named(packets: Packets, name: str) -> None:
    group = packets(name)[2]
    quic = name.startswith("quic")
    request = carries("stream 0,") if quic else carries("GET /")
    response = carries("stream 0,") if quic else carries("HTTP/1.1 200")
    flow = str(group[0].flow)
    for kept, missing in (
        (without(group, lambda p: not p.from_client and response(p)), "response"),
        (without(group, lambda p: p.from_client and request(p)), "request"),
        ([p for p in group if p.from_client], "response"),
        ([p for p in group if not p.from_client], "request"),
    ):
        with pytest.raises(MeasurementFailed) as caught:
            timeline(kept)
        assert f"{len(kept)} packets of {flow} hold no {missing}" in str(caught.value)
    with pytest.raises(MeasurementFailed, match="no packets"):
        timeline([])


@EACH
def test_a_response_that_did_not_arrive(packets: Packets, name: str) -> None:
    group = packets(name)[2]
    is_response = carries("stream 0,") if name.startswith("quic") else carries("HTTP/1.1 200")
    lost = {p.transit for p in group if not p.from_client and is_response(p)}
    lose = packets(name, lambda t: replace(t, received_ns=None, destination="") if t in lost else t)[2]
    with pytest.raises(MeasurementFailed, match=r"response of .* never reached the client"):
        timeline(lose)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("tcp", "tfo")])
def test_without_the_key_log(packets: Packets, name: str) -> None:
    with pytest.raises(MeasurementFailed, match=r"hold no request: .*key log"):
        timeline(packets(name, secrets=False)[2])


def test_early_data_without_proof(packets: Packets) -> None:
    """Had the response left after the client's Finished had come, nothing would be saved."""
    early = packets("tls1.3-0rtt")[2]
    assert evidence(timeline(early))["answered_before_finished"]
    finished = next(p.transit for p in early if p.from_client and carries("Finished")(p))
    assert finished.received_ns is not None
    answered = next(p.transit for p in early if carries("HTTP/1.1 200")(p))
    assert answered.sent_ns is not None

    def quick(transit: Transit) -> Transit:
        return replace(finished, received_ns=answered.sent_ns - 1) if transit is finished else transit

    line = timeline(packets("tls1.3-0rtt", quick)[2])
    assert not evidence(line)["answered_before_finished"]
    # No Finished at all: then nobody knows.
    assert not evidence(timeline(without(early, carries("Finished"))))["answered_before_finished"]


def test_fast_open_without_an_acknowledgment(packets: Packets) -> None:
    group = packets("tfo")[2]
    facts = evidence(timeline(group))
    assert facts["syn_payload_acknowledged"] == facts["syn_payload_bytes"] == group[0].payload > 40
    # No SYN-ACK was seen: no proof.
    line: Timeline = timeline(without(group, lambda p: p.label.startswith("SYN-ACK")))
    assert evidence(line)["syn_payload_acknowledged"] == 0
