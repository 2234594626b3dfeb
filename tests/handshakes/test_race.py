"""The race: eleven variants against theory, their proofs, and what happens where a claim does not hold."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from labkit import InvalidValue, Lab, LabClosed, MeasurementFailed, NotReady
from labkit.handshakes import VARIANTS, Measurement, Race, fewest, measure, measure_once, race, variant
from labkit.handshakes.clients import Fetched, TcpClient
from labkit.handshakes.race import claims_hold

EACH = pytest.mark.parametrize("name", [v.name for v in VARIANTS])
RTT_MS = 40

# Whole round trips of each phase.
PHASES = {
    "tcp": {"tcp": 1, "tls": 0, "request": 1},
    "tfo": {"tcp": 0, "tls": 0, "request": 1},
    "tls1.2": {"tcp": 1, "tls": 2, "request": 1},
    "tls1.2-resumed": {"tcp": 1, "tls": 1, "request": 1},
    "tls1.3": {"tcp": 1, "tls": 1, "request": 1},
    "tls1.3-resumed": {"tcp": 1, "tls": 1, "request": 1},
    "tfo+tls1.3": {"tcp": 0, "tls": 1, "request": 1},
    "tls1.3-0rtt": {"tcp": 1, "tls": 0, "request": 1},
    "tfo+tls1.3-0rtt": {"tcp": 0, "tls": 0, "request": 1},
    "quic": {"quic": 1, "request": 1},
    "quic-0rtt": {"quic": 0, "request": 1},
}
FACTS = {
    "holds",
    "syn_payload_bytes",
    "syn_payload_acknowledged",
    "certificate_sent",
    "request_level",
    "zero_rtt_packets",
    "answered_before_finished",
    "counters",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=RTT_MS) as lab:
        yield lab


@pytest.fixture(scope="module")
def finished(lab: Lab) -> Race:
    """One race of all eleven."""

    def once() -> Race:
        told: list[Measurement] = []
        result = race(lab, runs=3, progress=told.append)
        assert told == list(result)
        return result

    # A server that is held up answers behind the client's Finished, and a proof is that of every run.
    return fewest(once, lambda result: sum(not measured.proof["holds"] for measured in result), enough=0)


@EACH
def test_measured_is_theory(finished: Race, name: str) -> None:
    measured = finished[name]
    assert measured.whole_rtts == variant(name).theory_rtts == measured.theory_rtts
    fewest = min((run.timeline.whole_rtts() for run in measured.runs), key=lambda counts: sum(counts.values()))
    assert fewest == PHASES[name]
    assert len(measured.runs) == 3
    for run in measured.runs:
        assert math.isclose(sum(run.phases_rtts.values()), run.rtts)
        assert run.rtts >= variant(name).theory_rtts  # nothing is faster than the wire
        assert run.proof["holds"]
    assert math.isclose(measured.measured_ms, measured.measured_rtts * RTT_MS)


@EACH
def test_the_proof_says_what_the_rfc_says(finished: Race, name: str) -> None:
    chosen, proof = variant(name), finished[name].proof
    assert proof["holds"]
    assert (proof["syn_payload_bytes"] > 0) == chosen.fast_open
    assert proof["syn_payload_acknowledged"] == proof["syn_payload_bytes"]
    assert proof["certificate_sent"] == (chosen.tls is not None and not chosen.resumed)
    assert proof["request_level"] == ("early" if chosen.early_data else "application" if chosen.tls else "")
    assert proof["answered_before_finished"] == chosen.early_data
    assert proof["zero_rtt_packets"] == (name == "quic-0rtt")
    # One for each run, whether the warm-up fetched the cookie or held it from an earlier variant.
    active = {"TcpExtTCPFastOpenActive": 3} if chosen.fast_open else {}
    passive = {"TcpExtTCPFastOpenPassive": 3} if chosen.fast_open else {}
    assert proof["counters"] == {"client": active, "server": passive}


@pytest.mark.parametrize("claimed", VARIANTS, ids=lambda v: v.name)
def test_a_claim_does_not_hold_with_the_packets_of_another(finished: Race, claimed: Any) -> None:
    for other in VARIANTS:
        same = all(
            getattr(claimed, flag) == getattr(other, flag) for flag in ("fast_open", "early_data", "resumed")
        ) and bool(claimed.tls) == bool(other.tls)
        quic_early = claimed.transport == "quic" and claimed.early_data
        expected = same and not (quic_early and other.transport == "tcp")
        assert claims_hold(claimed, finished[other.name].proof) == expected, other.name


def test_as_plain_data(finished: Race) -> None:
    plain = finished.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"tier", "rtt_ms", "variants"}
    assert (plain["tier"], plain["rtt_ms"]) == ("kernel", RTT_MS)
    assert [each["name"] for each in plain["variants"]] == [v.name for v in VARIANTS]
    for each in plain["variants"]:
        assert set(each) == {"name", "tier", "theory_rtts", "measured_rtts", "runs", "phases_rtts", "proof"}
        assert len(each["runs"]) == 3
        assert len(each["phases_rtts"]) == len(PHASES[each["name"]])
        assert each["measured_rtts"] == sorted(each["runs"])[1] >= max(each["phases_rtts"].values())
        assert set(each["proof"]) == FACTS
        assert set(each["proof"]["counters"]) == {"client", "server"}


def test_a_race_is_a_table_and_a_collection(finished: Race) -> None:
    lines = str(finished).splitlines()
    assert len(lines) == 1 + len(finished) == 12
    for line, measured in zip(lines[1:], finished, strict=True):
        assert line.split()[:3] == [measured.name, str(measured.theory_rtts), f"{measured.measured_rtts:.2f}"]
    assert "NOT PROVEN" not in str(finished)
    with pytest.raises(InvalidValue, match=r"'tls1\.4' was not in this race: tcp, tfo"):
        finished["tls1.4"]


def test_ladders_of_the_runs(finished: Race) -> None:
    measured = finished["tfo"]
    for run in (0, 2, -1):
        ladder = measured.ladder(run, acks=True)
        assert ladder.hosts == ("client", "server")
        assert ladder.tier == "kernel"
        assert "GET / HTTP/1.1" in ladder.rows[0].label
        assert ladder.rows[0].sent_ms == 0
    for run in (3, -4):
        with pytest.raises(InvalidValue, match=f"run={run}: give a whole number from -3 to 2"):
            measured.ladder(run)


# Claims that do not hold.


def test_fast_open_that_the_server_refuses() -> None:
    with Lab(rtt_ms=RTT_MS) as lab:
        lab.server.sysctl["net.ipv4.tcp_fastopen"] = 0
        result = race(lab, ["tfo"], runs=1)
        assert not result["tfo"].proof["holds"]
        assert result["tfo"].whole_rtts == 2
        assert "NOT PROVEN by its packets" in str(result)
        assert json.loads(json.dumps(result.as_dict()))["variants"][0]["proof"]["holds"] is False


def test_fast_open_whose_syn_is_lost() -> None:
    """As behind a middlebox that drops data in a SYN: the kernel sends it again without."""
    with Lab(rtt_ms=RTT_MS) as lab, lab.wire.drop(tcp_flags="S", payload=True) as rule:
        measured = measure(lab, "tfo", runs=1)
        assert rule.acted == 1
    assert not measured.proof["holds"]
    assert measured.proof["syn_payload_bytes"] > measured.proof["syn_payload_acknowledged"] == 0
    assert measured.measured_ms > 1000  # the initial retransmission time-out (RFC 6298, section 2.1)


# Lost packets.


def test_a_lost_request_is_paid_in_the_request_phase(lab: Lab) -> None:
    with lab.wire.drop(source="client", contains=b"GET /", skip=1, count=1) as rule:
        measured = measure(lab, "tcp", runs=1)
        assert rule.acted == 1
    assert measured.runs[0].timeline.whole_rtts() == {"tcp": 1, "tls": 0, "request": 1}  # it waited for no packet
    assert measured.phases_rtts["request"] > 2  # but for the clock
    assert [row.lost for row in measured.ladder().rows if "GET / HTTP/1.1" in "".join(row.label)] == [True, False]


def test_a_duplicated_syn_is_no_second_connection(lab: Lab) -> None:
    with lab.wire.duplicate(tcp_flags="S") as rule:
        measured = measure(lab, "tls1.3", runs=1)
        assert rule.acted == 2
    assert measured.whole_rtts == 3
    assert measured.proof["holds"]


def test_a_response_that_never_comes() -> None:
    """The client gives up at its deadline (10 s, three labs side by side), and the lab goes on."""

    def lose(name: str) -> str:
        with Lab(rtt_ms=RTT_MS) as lab:
            drop = lab.wire.drop(source="server", payload=True)
            with drop, pytest.raises(NotReady) as caught:
                measure(lab, name, runs=1)
            assert drop.acted > 0
            again = measure(lab, name, runs=1)
            assert again.proof["holds"]
            assert again.whole_rtts == variant(name).theory_rtts
            return str(caught.value)

    with ThreadPoolExecutor() as pool:
        for said in pool.map(lose, ["tcp", "tls1.3-0rtt", "quic"]):
            assert "no complete answer within 10 s" in said


def test_another_connection_to_the_same_server_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are not the race's own would bend it, so it says so instead of counting them."""
    fetch = TcpClient.fetch

    def disturbed(self: TcpClient, *args: Any, **options: Any) -> Fetched:
        with lab.client, socket.create_connection((lab.server.ip, 80), timeout=10) as sock:
            sock.sendall(b"GET /other HTTP/1.1\r\nHost: server.lab\r\n\r\n")
            assert sock.recv(1000)
        return fetch(self, *args, **options)

    monkeypatch.setattr(TcpClient, "fetch", disturbed)
    with pytest.raises(MeasurementFailed, match=r"3 requests of 'tcp' made 6 connections: look at"):
        measure(lab, "tcp", runs=2)


@pytest.mark.parametrize("name", ["tcp", "tls1.3", "quic"])
def test_ports_that_are_used_again(name: str) -> None:
    """A thousand runs use some port twice; here the client has only a few, and the kernel gives them back at once."""
    with Lab(rtt_ms=10) as lab:
        lab.client.sysctl["net.ipv4.ip_local_port_range"] = "40000 40003"
        lab.client.sysctl["net.ipv4.tcp_max_tw_buckets"] = 0  # no TIME_WAIT
        measured = measure(lab, name, runs=7)
        assert len(measured.runs) == 7
        assert measured.proof["holds"]
        ports = [run.timeline.packets[0].flow.client_port for run in measured.runs]
        assert len(set(ports)) < 7


def test_the_unit_is_the_round_trip_of_both_links() -> None:
    with Lab(rtt_ms=20) as lab:
        lab.server.set_link(rtt_ms=20)
        result = race(lab, ["tcp"], runs=1)
        assert result.rtt_ms == result["tcp"].rtt_ms == 40
        assert result["tcp"].whole_rtts == 2


# What cannot be.


@pytest.mark.parametrize("runs", [0, -1, True, "3", 1.0, None, 1001])
def test_numbers_of_runs_that_cannot_be(lab: Lab, runs: Any) -> None:
    for use in (lambda: race(lab, runs=runs), lambda: measure(lab, "tcp", runs=runs)):
        with pytest.raises(InvalidValue) as caught:
            use()
        assert f"runs={runs!r}" in str(caught.value)


@pytest.mark.parametrize("names", [["tcp", "tls1.4"], [""], [None], [], "tls1.3", 3])
def test_variants_that_cannot_be(lab: Lab, names: Any) -> None:
    before = lab.client.counters
    with pytest.raises(InvalidValue) as caught:
        race(lab, names)
    bad = names[-1] if names and isinstance(names, list) else names
    assert not names or repr(bad) in str(caught.value)
    assert (lab.client.counters - before)["TcpActiveOpens"] == 0  # also not of those before the bad one


def test_a_lab_without_delay() -> None:
    with Lab(rtt_ms=0) as lab, pytest.raises(InvalidValue, match="rtt_ms=0"):
        measure(lab, "tcp")


def test_a_closed_lab() -> None:
    lab = Lab(rtt_ms=5)
    lab.close()
    with pytest.raises(LabClosed):
        race(lab, ["tcp"])


# Interrupts.

INTERRUPTED = """
import faulthandler, gc, os, signal, threading, time
faulthandler.dump_traceback_later(80, exit=True)
from labkit import Lab
from labkit.handshakes import measure, variant

def census():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def stop_now(number, frame):
    os.kill(os.getpid(), signal.SIGINT)  # what Jupyter's "interrupt" sends

signal.signal(signal.SIGALRM, stop_now)
interrupted = 0
with Lab(rtt_ms=10) as lab:
    for name in ("tls1.3", "tls1.3-0rtt", "tfo", "quic"):
        measure(lab, name, runs=1)
    before = census()
    for name in ("tls1.3", "tls1.3-0rtt", "quic"):
        for after_ms in (0.5, 2, 5, 9, 14, 20, 33, 47, 60):
            try:
                # Again a second later: Python ignores an interrupt in a finalizer.
                signal.setitimer(signal.ITIMER_REAL, after_ms / 1000, 1)
                while True:
                    measure(lab, name, runs=2)
            except (KeyboardInterrupt, RuntimeError) as stopped:
                signal.setitimer(signal.ITIMER_REAL, 0)
                # Python's Condition.wait, in Thread.start for instance, can turn it into "release unlocked lock".
                if KeyboardInterrupt not in (type(stopped), type(stopped.__context__)):
                    raise
                interrupted += 1
            again = measure(lab, name, runs=1)
            assert again.proof["holds"] and again.theory_rtts == variant(name).theory_rtts
            assert gc.isenabled()
            # By what the kernel says: Python goes on listing a thread whose start was interrupted before there was one.
            end = time.monotonic() + 5
            while (now := census())[1] > before[1] and time.monotonic() < end:
                time.sleep(0.005)
            assert now[1] == before[1], (name, after_ms, now, before, threading.enumerate())
# An interrupt between recvmsg's end and the next line can lose the one descriptor it brought; no more than that.
assert now[0] - before[0] <= 3, (before, now)
print("interrupted", interrupted, [t.name for t in threading.enumerate() if t.is_alive()], flush=True)
"""


def test_an_interrupted_measurement_leaves_the_lab_usable(python: Callable[..., Any], tmp_path: Any) -> None:
    """At many moments of the measurement: while the server starts, in the handshake, while all of it ends."""
    process = python("import tempfile, sys; tempfile.tempdir = sys.argv[1]\n" + INTERRUPTED, str(tmp_path))
    out, err = process.communicate(timeout=90)
    assert out == "interrupted 27 ['MainThread']\n", out + err
    assert os.listdir(tmp_path) == []


def test_fewest_runs_again_where_that_may_bring_less() -> None:
    def runs(*counts: Any) -> tuple[Any, int]:
        """Which run comes out of these, and how many were made."""
        left = list(enumerate(counts))
        (place, _), made = fewest(lambda: left.pop(0), lambda run: run[1], enough), len(counts) - len(left)
        return place, made

    enough: Any = 3
    assert runs(3, 9) == (0, 1)
    assert runs(5, 3, 9) == (1, 2)
    assert runs(2, 9) == (0, 1), "less than expected is told, not run away from"
    assert runs(5, 4, 6, 4, 3) == (1, 4), "four at most, the first of the least"
    enough = (2, 1)
    assert runs((2, 2), (3, 1), (2, 1)) == (2, 3)
    enough = None
    assert runs(4, 4, 3) == (0, 2)
    assert runs(5, 4, 4, 3) == (1, 3)
    assert runs(5, 6, 7, 8) == (0, 4)


def test_measure_once_leaves_out_what_a_pause_has_added(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first attempt with four round trips (of another variant, so that it has them for sure) is repeated."""
    attempts: list[int] = []

    def measured(lab: Lab, name: str, *, runs: int) -> Measurement:
        made = measure(lab, "tls1.2" if not attempts else name, runs=runs)
        attempts.append(made.whole_rtts)
        return made

    # The package's `race` is the function.
    monkeypatch.setattr(sys.modules["labkit.handshakes.race"], "measure", measured)
    once = measure_once(lab, "tls1.3")
    assert attempts[0] == 4
    assert (once.name, once.whole_rtts, len(once.runs)) == ("tls1.3", 3, 1)
