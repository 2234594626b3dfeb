"""What the section "The race" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from labkit.errors import MeasurementFailed
from labkit.handshakes import VARIANTS, Measurement, Variant, measure, measure_once
from labkit.handshakes.phases import Timeline
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import the_request
from labkit.recorded import recall

RTT_MS = 10
NAMES = {each.name: each for each in VARIANTS}

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
            _, lossy = recall("https.race/lost SYN-ACK", tier=lab.tier)  # the notebook's
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


COUNT = Exercise(
    id="https.race.count",
    task=(
        "Write `count(packets)`: it returns how many round trips a request took. `packets` are those of one "
        "connection, in the order of sending, each a tuple `(sender, sent, arrived)`: `client` or `server`, and two "
        "times in milliseconds. `arrived` is `None` for a packet that was lost. The last packet brings the first byte "
        "of the response. Count by cause and effect: a packet that is sent again after a time-out, or a slow machine, "
        "adds time and no round trip."
    ),
    starter="def count(packets):\n    return ...\n",
    solution=(
        "def count(packets):\n"
        "    arrivals = []  # where, when, and the step of the packet\n"
        "    for sender, sent, arrived in packets:\n"
        "        heard = [step for host, at, step in arrivals if host == sender and at <= sent]\n"
        "        step = 1 + max(heard, default=0)\n"
        "        if arrived is not None:\n"
        '            receiver = "server" if sender == "client" else "client"\n'
        "            arrivals.append((receiver, arrived, step))\n"
        "    return step // 2\n"
    ),
    explanation=(
        "A packet can only be caused by what had reached its sender. So it stands one step behind the latest of "
        "those, and two steps are a round trip. A SYN that is sent again has heard nothing, so it is step 1 like the "
        "first. This is how labkit counts, too: labkit.handshakes.phases.steps."
    ),
    hints=(
        "For each packet, look at what had arrived at its sender when it was sent.",
        "Give each packet a step: 1 where nothing had arrived, else 1 more than the highest step that had. Two steps "
        "are a round trip.",
        "A lost packet has a step, but it never arrives, so nobody stands behind it.",
    ),
    mistakes=(
        Mistake(
            "def count(packets):\n"
            "    one_way = packets[0][2] - packets[0][1]\n"
            "    return round(packets[-1][2] / (2 * one_way))\n",
            "by cause and effect",
        ),
        Mistake(
            "def count(packets):\n"
            "    senders = [sender for sender, _, _ in packets]\n"
            '    return 1 + sum(a != b for a, b in zip(senders[1:], senders[2:]) if b == "server")\n',
            "by cause and effect",
        ),
        Mistake(
            'def count(packets):\n    return sum(sender == "server" for sender, _, _ in packets)\n',
            "by cause and effect",
        ),
    ),
    judge=_judge_count,
    deadline_s=20.0,
)


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


_CHOOSE = (
    "def choose(returning, safe, udp):\n"
    "    if returning and safe:\n"
    '        return "quic-0rtt" if udp else "tfo+tls1.3-0rtt"\n'
    "    if udp:\n"
    '        return "quic"\n'
    '    return "tfo+tls1.3" if returning else "tls1.3"\n'
)

CHOOSE = Exercise(
    id="https.race.choose",
    task=(
        "Write `choose(returning, safe, udp)`: it returns the name of the encrypted variant with the fewest round "
        "trips for one request. `returning`: the client holds a cookie and a ticket from an earlier connection. "
        "`safe`: the request may happen twice. `udp`: the client's network lets UDP pass. All three are true or "
        "false. What you choose is measured on a lab."
    ),
    starter="def choose(returning, safe, udp):\n    return ...\n",
    solution=_CHOOSE,
    explanation=(
        "0-RTT takes one round trip, but needs a ticket and a request that may happen twice. QUIC takes two without "
        "any of that. Where UDP is dropped, TFO brings a client with a cookie to two as well, and only the "
        "ClientHello rides in the SYN. A new client without UDP has nothing better than TLS 1.3. How far away the "
        "server is changes none of this."
    ),
    hints=(
        "Only five of the eleven variants are ever the best.",
        "Ask in this order: may the request be early data? If not, may it be QUIC? If not, does the client hold a "
        "cookie?",
        "One round trip: quic-0rtt or tfo+tls1.3-0rtt. Two: quic or tfo+tls1.3. Three: tls1.3.",
    ),
    mistakes=(
        Mistake(_CHOOSE.replace("if returning and safe", "if returning"), "under early-data keys"),
        Mistake(_CHOOSE.replace(' if udp else "tfo+tls1.3-0rtt"', ""), "the network of this client drops it"),
        Mistake(_CHOOSE.replace('"tfo+tls1.3" if returning else "tls1.3"', '"tfo+tls1.3"'), "has never been here"),
        Mistake(_CHOOSE.replace('return "quic"\n', 'return "tls1.3"\n'), "2 are possible"),
        Mistake('def choose(returning, safe, udp):\n    return "tcp"\n', "unencrypted"),
    ),
    judge=_judge_choose,
    deadline_s=25.0,
)

EXERCISES = (COUNT, CHOOSE)


QUIZ = Quiz(
    Question(
        "Your clients are 200 ms away, speak TLS 1.3, and open a new connection for each request. What saves most?",
        (
            Option("QUIC instead of TCP.", "It saves one of three round trips."),
            Option(
                "Keeping the connection open for the next request.",
                "Every request after the first takes one round trip, and anything may be in it.",
                right=True,
            ),
            Option(
                "0-RTT on each connection.",
                "Over TCP two round trips are left, and only requests that may happen twice can use it.",
            ),
        ),
    ),
    Question(
        "A client's library reports that early data was accepted. Which packet proves that a round trip was saved?",
        (
            Option("The ClientHello with the early_data extension.", "It only offers. The server may reject it."),
            Option(
                "A request under early-data keys.",
                "It was sent. A server that rejects it skips over it, and the client sends it again.",
            ),
            Option(
                "A response that left before the client's Finished had arrived.",
                "The server has answered the early copy: it had no other one yet.",
                right=True,
            ),
        ),
    ),
    Question(
        "A returning client sends POST /payments. Which variant has the fewest round trips without being open to "
        "replay?",
        (
            Option("tfo+tls1.3", "Two round trips: only the ClientHello is in the SYN, no request.", right=True),
            Option("quic-0rtt", "One round trip, but whoever recorded its first datagrams can send them again."),
            Option(
                "tls1.3-resumed", "Safe, with three round trips: resumption saves the certificate, not a round trip."
            ),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request in early data over TCP on this lab, with four blanks."""
    run = measure_once(lab, "tls1.3-0rtt").runs[-1]
    return HiddenTrace(
        "https.race.trace",
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
        hints=(
            "Over TCP the client still has to wait for the SYN-ACK. Only then does its first flight leave.",
            "The response comes right behind the server's first flight: add that flight's payload to its first "
            "number, 1.",
            "In TLS 1.3 the client closes its early data with a message of its own before Finished (RFC 8446 §4.5).",
        ),
        explanation=(
            "The first round trip is TCP's. In the second one ClientHello and request leave together, and the server "
            "answers both before it has the client's Finished, which comes with EndOfEarlyData in the third."
        ),
    )
