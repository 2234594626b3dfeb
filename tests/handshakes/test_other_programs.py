"""Witnesses that share no code with labkit: tshark looks at our captures, curl and openssl make the requests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.handshakes import measure
from labkit.handshakes.phases import begins, connections, evidence, timeline
from labkit.servers import EarlyDataServer, HttpServer
from labkit.waiting import fewest

RTT_MS = 100


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=RTT_MS) as lab:
        yield lab


# tshark.

FIELDS = [
    "frame.time_epoch",
    "ip.proto",
    "ip.src",
    "tcp.stream",
    "udp.stream",
    "tcp.analysis.initial_rtt",
    "http.request.uri",
    "http.response.code",
    "quic.stream.stream_id",
    "_ws.col.Protocol",
]


@pytest.fixture
def tshark(require_program: Callable[[str], str]) -> Callable[[Path], list[dict[str, str]]]:
    """``tshark(file)``: its fields, a dictionary for each frame."""
    program = require_program("tshark")

    def read(file: Path) -> list[dict[str, str]]:
        fields = [word for field in FIELDS for word in ("-e", field)]
        # Two passes, so that what is learnt late holds for early frames as well.
        done = subprocess.run([program, "-2", "-r", str(file), "-T", "fields", *fields], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]

    return read


def time_ns(frame: dict[str, str]) -> int:
    return int(frame["frame.time_epoch"].replace(".", ""))


@pytest.mark.parametrize("name", ["tls1.2", "tls1.3", "tls1.3-0rtt", "quic", "quic-0rtt"])
def test_tshark_sees_the_same_round_trips(
    lab: Lab, tshark: Callable[[Path], list[dict[str, str]]], tmp_path: Path, name: str
) -> None:
    measured = measure(lab, name, runs=2)
    frames = tshark(measured.capture.save(tmp_path / "race.pcapng"))
    assert len(frames) == len(measured.capture.transits)
    quic = name.startswith("quic")
    stream, protocol = ("udp.stream", "17") if quic else ("tcp.stream", "6")
    assert {frame[stream] for frame in frames} == {"0", "1", "2"}
    for number, run in enumerate(measured.runs, start=1):
        # Without ICMP: a datagram that finds its socket closed is quoted in one, and tshark names the quoted stream.
        seen = [frame for frame in frames if frame[stream] == str(number) and frame["ip.proto"] == protocol]
        # The same packets, by the kernel's own time stamps. The file has each at its sending.
        packets = run.timeline.packets
        assert [time_ns(frame) for frame in seen] == [packet.transit.time_ns for packet in packets]
        responses = [frame for frame in seen if frame["ip.src"] == lab.server.ip]
        requests = [frame for frame in seen if frame["ip.src"] == lab.client.ip]
        if quic:
            # Stream 0 is the first that a client opens for a request: only who has the secrets can see it.
            responses = [frame for frame in responses if "0" in frame["quic.stream.stream_id"].split(",")]
            requests = [frame for frame in requests if "0" in frame["quic.stream.stream_id"].split(",")]
            assert "HTTP3" in responses[0]["_ws.col.Protocol"]
        else:
            responses = [frame for frame in responses if frame["http.response.code"] == "200"]
            requests = [frame for frame in requests if frame["http.request.uri"] == "/"]
            (initial_rtt_s,) = {frame["tcp.analysis.initial_rtt"] for frame in seen} - {""}
            syn, _, ack = packets[:3]
            assert float(initial_rtt_s) * 1e9 == pytest.approx(ack.transit.time_ns - syn.transit.time_ns, abs=1000)
            assert float(initial_rtt_s) * 1000 >= RTT_MS
        # The first of each: on a machine that is busy a packet may be sent twice.
        assert time_ns(requests[0]) == run.timeline.request_ns
        (answer,) = [packet for packet in packets if packet.transit.received_ns == run.timeline.response_ns]
        assert time_ns(responses[0]) == answer.transit.time_ns
        assert not answer.from_client


# Other people's clients.


def requests_of(lab: Lab, programs: list[list[str]]) -> list[list[str]]:
    """Run programs on the client: for each, its round trips by phase and what its packets carried."""
    found = []
    with lab.capture() as capture:
        for words in programs:
            lab.client.run(words).check()
    # A program that has ended may leave its last packets to the next capture.
    for group in filter(lambda group: begins(group[0]), connections(capture.messages)):
        line = timeline(group)
        whole = line.whole_rtts()  # by cause and effect: a stall of the machine does not change it
        assert line.rtts(lab.rtt_ms) > sum(whole.values()) - 0.05  # and no clock is quicker than that
        found.append([whole, sum(whole.values()), [m.name for p in group for m in p.messages], line])
    return found


@pytest.mark.parametrize(("tls", "tls_rtts"), [("1.2", 2), ("1.3", 1)])
def test_curl_needs_as_many_round_trips(
    lab: Lab, require_program: Callable[[str], str], tls: str, tls_rtts: int
) -> None:
    curl = [require_program("curl"), "-sS", "--cacert", str(lab.authority.ca_path), "-o", "/dev/null"]
    only = ["--tlsv1.2", "--tls-max", "1.2"] if tls == "1.2" else ["--tlsv1.3"]
    with HttpServer(lab.server, tls=("1.2", "1.3")) as server:
        seen = requests_of(lab, [[*curl, *only, f"{server.url}from/curl"]] * 2)
    assert len(seen) == 2
    for phases, rtts, names, line in seen:
        assert phases == {"tcp": 1, "tls": tls_rtts, "request": 1}
        assert rtts == 2 + tls_rtts
        # Its secrets came through SSLKEYLOGFILE, which the lab sets for every program.
        assert "GET /from/curl HTTP/1.1" in names
        assert any(name.startswith("HTTP/1.1 200") for name in names)
        assert ("EncryptedExtensions" in names) == (tls == "1.3")
        assert ("ServerKeyExchange" in names) == (tls == "1.2")
        assert evidence(line)["certificate_sent"]


def test_curl_with_fast_open_saves_a_round_trip(lab: Lab, require_program: Callable[[str], str]) -> None:
    curl = [require_program("curl"), "-sS", "--tcp-fastopen", "-o", "/dev/null"]
    with HttpServer(lab.server, fast_open=True, port=8080) as server:
        ((_, warm_up, *_),) = requests_of(lab, [[*curl, server.url]])
        # A SYN that the kernel has to send again goes without data: a pause of the machine can only add.
        phases, rtts, _, line = fewest(lambda: requests_of(lab, [[*curl, server.url]])[0], lambda run: run[1], 1)
    assert (warm_up, rtts) == (2, 1)
    assert phases == {"tcp": 0, "tls": 0, "request": 1}
    facts = evidence(line)
    assert facts["syn_payload_acknowledged"] == facts["syn_payload_bytes"] > 0


def test_openssl_with_early_data_saves_a_round_trip(lab: Lab, require_program: Callable[[str], str]) -> None:
    session, early = lab.directory / "session.pem", lab.directory / "request.txt"
    early.write_bytes(b"GET /early HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n")
    with EarlyDataServer(lab.server) as server:
        client = [require_program("openssl"), "s_client", "-connect", f"{lab.server.ip}:443", "-ign_eof"]
        client += ["-CAfile", str(lab.authority.ca_path), "-verify_return_error", "-verify_hostname", "server.lab"]
        lab.client.run([*client, "-sess_out", str(session)], stdin=early.read_bytes()).check()
        again = [*client, "-sess_in", str(session), "-early_data", str(early)]
        ((phases, rtts, names, line),) = requests_of(lab, [again])
        assert server.early_requests == 1
    assert (phases, rtts) == ({"tcp": 1, "tls": 0, "request": 1}, 2)
    assert names.count("GET /early HTTP/1.1") == 1
    facts = evidence(line)
    assert (facts["request_level"], facts["certificate_sent"]) == ("early", False)
    assert facts["answered_before_finished"]
