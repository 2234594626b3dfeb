"""What the section "The race" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.judging import the_request
from labkit.errors import MeasurementFailed
from labkit.handshakes import VARIANTS, Measurement, Race, Variant, measure, measure_once
from labkit.handshakes.phases import Timeline
from labkit.lab import Lab
from labkit.recorded import recall

TEXT = Text(__file__)

RTT_MS = 10
NAMES = {each.name: each for each in VARIANTS}
IN_THEORY = sum(each.theory_rtts for each in VARIANTS)


def all_rtts(results: Race) -> int:
    """Whole round trips of all variants together. A machine that is held up can only add to them."""
    return sum(result.whole_rtts for result in results)


def proof_of(result: Measurement) -> tuple[str, str, str, str]:
    """What a variant's packets prove, in words.

    Args:
        result: its measurement.

    Returns:
        whether the SYN-ACK acknowledged data of the SYN, whether a certificate was sent, under which keys the request
        travelled, and whether the response left before the client's Finished had arrived.
    """
    proof = result.proof
    taken = 0 < proof["syn_payload_bytes"] == proof["syn_payload_acknowledged"]
    return (
        "acknowledged" if taken else "-",
        "sent" if proof["certificate_sent"] else "-",
        proof["request_level"] or "-",
        "yes" if proof["answered_before_finished"] else "-",
    )


# Exercise 1

Seen = list[tuple[str, float, float | None]]


def _judge_count(count: Callable[[Seen], Any]) -> str:
    counted = []
    for what, line in _requests():
        said, expected = count(_seen(line)), sum(line.whole_rtts().values())
        if said != expected:
            raise Wrong(f"{what}: you count {said!r:.40}, and by cause and effect it is {expected}")
        counted.append(f"{what} {expected}")
    return f"All by cause and effect: {', '.join(counted)}."


def _requests() -> Iterator[tuple[str, Timeline]]:
    """Requests, in words, with their packets."""
    with Lab(rtt_ms=RTT_MS) as lab:
        for name in ("tcp", "tls1.2", "tfo+tls1.3", "quic-0rtt"):
            yield name, measure(lab, name, runs=1).runs[-1].timeline
        if not lab.can("kernel"):
            _, lossy = recall("https.race/lost_syn_ack", tier=lab.tier)  # the notebook's
            yield "tls1.3 with a lost SYN-ACK", the_request(lossy, port=443)
            return
        # So far away that the SYN and the SYN-ACK, each sent again after a second, never leave at the same moment.
        lab.set_link(rtt_ms=10 * RTT_MS)
        # skip=1: the warm-up keeps its SYN-ACK.
        with lab.wire.drop(source="server", tcp_flags="SA", skip=1, count=1):
            yield "tcp with a lost SYN-ACK", measure(lab, "tcp", runs=1).runs[-1].timeline


def _seen(line: Timeline) -> Seen:
    """What the learner gets: sender, sent, arrived, up to the packet with the first byte of the response."""
    found: Seen = []
    for packet in line.packets:
        arrived_ns = packet.transit.received_ns
        arrived = None if arrived_ns is None else (arrived_ns - line.start_ns) / 1e6
        sender = "client" if packet.from_client else "server"
        found.append((sender, (packet.transit.time_ns - line.start_ns) / 1e6, arrived))
        if not packet.from_client and arrived_ns == line.response_ns:
            break
    return found


COUNT = TEXT.exercise("count", _judge_count, deadline_s=20.0)


# Exercise 2


def _judge_choose(choose: Callable[[bool, bool, bool], Any]) -> str:
    measured: dict[str, Measurement] = {}
    total = 0
    # A longer round trip: a client or server that the machine holds up for a whole one adds one.
    with Lab(rtt_ms=4 * RTT_MS) as lab:
        for returning, safe, udp in product((False, True), repeat=3):
            case = f"choose(returning={returning}, safe={safe}, udp={udp})"
            name = choose(returning, safe, udp)
            if name not in NAMES:
                raise Wrong(f"{case} is {name!r:.40}: return one of {', '.join(NAMES)}")
            _refuse_impossible(case, NAMES[name], returning, udp)
            if name not in measured:
                measured[name] = measure_once(lab, name)
            result = measured[name]
            if result.proof["request_level"] == "early" and not safe:
                raise Wrong(
                    f"{case} is {name!r}, and its packets show the request under early-data keys: anybody who "
                    "records them can send them again, and this request must not happen twice"
                )
            least = _least_rtts(returning, safe, udp)
            if NAMES[name].theory_rtts > least:
                raise Wrong(f"{case} is {name!r}, which took {result.whole_rtts} round trips: {least} are possible")
            if result.whole_rtts > least:
                raise MeasurementFailed(
                    f"{name!r} took {result.whole_rtts} round trips where {least} are enough, four times over"
                )
            total += result.whole_rtts
    return (
        f"Each of the eight cases with the fewest round trips, {total} together, measured on {len(measured)} variants."
    )


def _refuse_impossible(case: str, chosen: Variant, returning: bool, udp: bool) -> None:
    """Raises Wrong for a variant that this client cannot or must not use."""
    if chosen.tls is None:
        raise Wrong(f"{case} is {chosen.name!r}, which sends the request unencrypted")
    if chosen.transport == "quic" and not udp:
        raise Wrong(f"{case} is {chosen.name!r}: QUIC runs over UDP, and the network of this client drops it")
    if chosen.needs_warm_up and not returning:
        raise Wrong(
            f"{case} is {chosen.name!r}, which needs a cookie or a ticket from an earlier connection, and this client "
            "has never been here"
        )


def _least_rtts(returning: bool, safe: bool, udp: bool) -> int:
    return min(
        each.theory_rtts
        for each in VARIANTS
        if each.tls is not None
        and (udp or each.transport != "quic")
        and (returning or not each.needs_warm_up)
        and (safe or not each.early_data)
    )


CHOOSE = TEXT.exercise("choose", _judge_choose, deadline_s=25.0)

EXERCISES = (COUNT, CHOOSE)


QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request in early data over TCP on this lab, with four blanks."""
    run = measure_once(lab, "tls1.3-0rtt").runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank("GET /", "round trip", "which message does early data follow, and when does that leave?"),
            Blank("NewSessionTicket", "from", "who hands out the tickets for the next connection?"),
            Blank(
                "HTTP/1.1 200",
                "seq",
                "the SYN-ACK takes number 0; what the server sent since then is in the payload column",
            ),
            Blank("EndOfEarlyData", "what", "with which message does the client say that no more early data follows?"),
        ],
    )
