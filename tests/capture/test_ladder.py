from __future__ import annotations

import re

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.ladder import build_ladder, table
from labkit.capture.narrowing import Choice
from labkit.errors import InvalidValue


def ladder_of(recording, **options):
    return build_ladder(recording.packets, ["client", "server"], **options)


def test_rows(record):
    ladder = ladder_of(record("tls13").connections()[0])
    assert ladder.hosts == ("client", "server")
    first, second, third, hello = ladder.rows[:4]
    assert [row.label for row in (first, second, third)] == [("SYN",), ("SYN-ACK",), ("ACK",)]
    assert (first.sent_ms, first.number, first.kind, first.level) == (0.0, 1, "tcp", "")
    assert (first.source, first.destination) == ("client", "server")
    assert first.received_ms is not None
    assert 0 < first.received_ms < second.sent_ms + 1
    assert (hello.kind, hello.level, hello.label) == ("tls", "", ("ClientHello",))
    flight = next(row for row in ladder.rows if "Certificate" in row.label)
    assert (flight.kind, flight.level) == ("tls", "handshake")
    request = next(row for row in ladder.rows if row.kind == "http")
    assert (request.label, request.level) == (("GET /hello HTTP/1.1",), "application")


def test_pure_acknowledgments_are_left_out_and_counted(record):
    recording = record("http_large")
    short, full = ladder_of(recording), ladder_of(recording, acks=True)
    assert [row.label for row in short.rows].count(("ACK",)) == 1
    assert full.hidden == 0
    assert len(full.rows) == len(recording.packets) == len(short.rows) + short.hidden
    assert f"{short.hidden} acknowledgments not shown" in str(short)
    assert "not shown" not in str(full)


def test_without_a_third_packet_no_acknowledgment_is_shown(record):
    """With Fast Open the client may answer the SYN-ACK with nothing but data."""
    for connection in record("fast_open").connections():
        labels = [row.label for row in ladder_of(connection).rows]
        assert labels.count(("ACK",)) <= 1
        if ("ACK",) in labels:
            assert labels[2] == ("ACK",)


def test_quic_rows(record):
    ladder = ladder_of(record("quic"))
    assert {row.kind for row in ladder.rows} == {"quic"}
    assert ladder.rows[0].label[0] == "Initial: CRYPTO[ClientHello]"
    assert (ladder.rows[0].level, ladder.rows[1].level) == ("initial", "application")
    assert ladder.rows[1].label[1].startswith("Handshake: CRYPTO[EncryptedExtensions")


def test_udp_and_icmp_are_data(record):
    assert {row.kind for row in ladder_of(record("udp")).rows} == {"data"}


@pytest.mark.parametrize(
    "scenario", ["http", "tls13", "tls12_aes128", "quic", "quic_early", "lost_request", "fast_open", "udp"]
)
def test_text_fits_and_is_aligned(record, scenario):
    lines = str(ladder_of(record(scenario))).splitlines()
    assert max(map(len, lines)) <= 110
    assert "client" in lines[0]
    assert "server" in lines[0]
    left, right = lines[1].index("|"), lines[1].rindex("|")
    for line in lines[1:-1]:
        assert line[left] == line[right] and line[left] in "|:"  # a break in a long wait


def test_text(record):
    lines = str(ladder_of(record("http"))).splitlines()
    assert lines[0].split() == ["sent", "ms", "client", "server", "arrival"]
    assert "- SYN -" in lines[1]
    assert lines[1].split()[0] == "0.00"
    assert "->|" in lines[1]
    assert "|<-" in lines[2]
    assert lines[-1].strip().startswith("--- in the clear")


def test_encrypted_packets_have_another_line(record):
    lines = str(ladder_of(record("tls13").connections()[0])).splitlines()
    (request,) = (line for line in lines if "GET /hello" in line)
    hello, *rest = (line for line in lines if "ClientHello" in line)
    assert "= GET /hello HTTP/1.1 =" in request
    assert "- ClientHello -" in hello
    assert all("- ClientHello … -" in line for line in rest)  # of OpenSSL 3.5, a second segment
    assert "=== encrypted" in lines[-1]


def test_a_lost_packet_ends_in_a_cross(record):
    recording = record("lost_request")
    ladder = ladder_of(recording)
    (lost,) = (row for row in ladder.rows if row.lost)
    assert (lost.received_ms, lost.destination) == (None, "server")
    (again,) = (row for row in ladder.rows if row.retransmission)
    assert again.label == ("again: GET /hello HTTP/1.1",)
    (line,) = (line for line in str(ladder).splitlines() if "X" in line and "lost" not in line)
    assert "- GET /hello HTTP/1.1 --X" in line
    assert ">" not in line
    assert "X lost on the wire" in str(ladder)


def test_a_lost_answer_ends_in_a_cross_on_the_other_side(record):
    recording = record("http")
    transits = list(recording.transits)
    answer = next(p for p in recording.packets if p.what == "HTTP/1.1 200 OK").transit
    transits[transits.index(answer)] = type(answer)(answer.sent_ns, None, "server", "", answer.data)
    ladder = build_ladder(dissect(transits, recording.secrets), ["client", "server"])
    (line,) = (line for line in str(ladder).splitlines() if "200 OK" in line)
    assert "X-- HTTP/1.1 200 OK --" in line
    assert line.endswith("-|")


def test_more_hosts_than_two(record):
    """Columns come in the order that was asked for; hosts without packets have none."""
    recording = record("http")
    ladder = build_ladder(recording.packets, ["server", "nobody", "client"])
    assert ladder.hosts == ("server", "client")
    assert "|<-" in str(ladder).splitlines()[1]
    third = [
        type(t)(t.sent_ns, t.received_ns, t.source.replace("client", "proxy"), t.destination, t.data)
        for t in recording.transits
    ]
    ladder = build_ladder(dissect(third, recording.secrets), ["client", "server"])
    assert ladder.hosts == ("client", "server", "proxy")
    assert max(map(len, str(ladder).splitlines())) <= 110


def test_nothing():
    assert str(build_ladder([], ["client"])) == "no packets"
    assert table([]).split() == ["no.", "ms", "from", "→", "to", "protocol", "payload", "what"]


def test_table(record):
    recording = record("lost_client_hello")
    heading, *lines = table(recording.packets).splitlines()
    assert len(lines) == len(recording.packets)
    assert heading.split() == ["no.", "ms", "from", "→", "to", "protocol", "payload", "what"]
    hellos = [line for line in lines if "ClientHello" in line]
    assert hellos[0] == lines[3]
    assert lines[3].endswith("  ClientHello (lost)")
    assert next(line for line in hellos if not line.endswith("(lost)")).endswith("  again: ClientHello")
    assert all(" TLS " in line for line in hellos)
    column = heading.index("what")
    assert lines[0][column:] == "SYN"


def test_a_capture_is_narrowed(record):
    """To a connection, a stream, a span of time, some hosts: the numbers and times stay those of the whole."""
    packets = record("quic").packets
    whole = build_ladder(packets, ["client", "server"])
    flow = packets[0].flow
    for connection in (flow, flow.server_port, flow.client_port):
        assert build_ladder(packets, [], choice=Choice(connection=connection)).left_out == 0
    first, last = whole.rows[1].sent_ms, whole.rows[3].sent_ms
    some = build_ladder(packets, ["client", "server"], acks=True, choice=Choice(between=(first, last)))
    assert some.left_out > 0
    assert {row.number for row in some.rows} >= {row.number for row in whole.rows[1:4]}
    assert all(row.sent_ms == {r.number: r for r in whole.rows}.get(row.number, row).sent_ms for row in some.rows)
    assert f"{some.left_out} packets not chosen" in str(some)
    streams = {message.stream for packet in packets for message in packet.messages} - {None}
    of_one = build_ladder(packets, [], choice=Choice(stream=0))
    assert streams and 0 < len(of_one.rows) < len(whole.rows)
    assert table(packets, Choice(stream=0)).count("\n") == len(of_one.rows) + of_one.hidden
    assert len(build_ladder(packets, [], choice=Choice(hosts=["client", "server"])).rows) == len(whole.rows)
    assert build_ladder(packets, [], choice=Choice(hosts=["client"])).rows == ()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(connection=1), "connection=1: give a port or a flow; there is "),
        (Choice(stream=77), "stream=77: there is 0"),
        (Choice(stream=True), "stream=True: there is 0"),
        (Choice(stream=[0]), "stream=[0]: there is 0"),
        (Choice(connection="https"), "connection='https': give a port or a flow"),
        (Choice(between=(float("nan"), 1)), "between=(nan, 1): no packet then"),
        (Choice(between=(1e6, 2e6)), "between=(1000000.0, 2000000.0): no packet then; the last was sent after"),
        (Choice(between=5), "between=5: give two moments in milliseconds"),
        (Choice(hosts=["nobody"]), "hosts=['nobody']: no 'nobody' here, there is client, server"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(record, choice, said):
    with pytest.raises(InvalidValue, match=re.escape(said)):
        build_ladder(record("quic").packets, [], choice=choice)
