"""Names of TCP packets and of HTTP without encryption, from real connections."""

from __future__ import annotations

import struct

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit, pair_frames
from labkit.capture.keylog import KeyLog


def test_http(record):
    recording = record("http")
    # The server's FIN follows its response at once, or comes after the client's.
    assert recording.lines[:4] == ["> SYN", "< SYN-ACK", "> GET /hello HTTP/1.1", "< HTTP/1.1 200 OK"]
    assert sorted(recording.lines[4:]) == ["< FIN", "> FIN"]
    syn, syn_ack, ack, request = recording.packets[:4]
    assert ack.label == "ACK"
    assert [packet.flags for packet in (syn, syn_ack, ack)] == [{"SYN"}, {"SYN", "ACK"}, {"ACK"}]
    assert [packet.bare_ack for packet in recording.packets[:4]] == [False, False, True, False]
    assert ack.messages == ()
    assert str(syn.flow) == str(syn_ack.flow)
    assert syn.flow.server_port == 4433
    assert (syn.flow.protocol, syn.flow.server) == ("TCP", "127.0.0.1")
    assert (syn.from_client, syn_ack.from_client) == (True, False)
    (message,) = request.messages
    assert (message.protocol, message.name, message.detail, message.level) == (
        "HTTP", "GET /hello HTTP/1.1", "39 bytes", "",
    )  # fmt: skip
    assert message.first == message.last == request.index == 3
    assert message.data.startswith(b"GET /hello HTTP/1.1\r\nHost: lab.test")
    assert request.summary == "4  client → server  GET /hello HTTP/1.1"
    assert request.payload == message.length == 39


def test_a_head_in_two_segments_is_one_message(record):
    recording = record("http_head_in_two_writes")
    (request,) = recording.messages("GET /hello HTTP/1.1")
    assert request.data.endswith(b"lab.test\r\n\r\n")
    assert request.detail == "39 bytes"
    assert recording.lines[2:4] == ["> GET /hello HTTP/1.1", "> GET /hello HTTP/1.1 …"]
    assert request.first == 3
    assert recording.packets[request.last].payload == 18


def test_pipelined_requests_are_two_messages(record):
    recording = record("http_pipelined")
    (packet,) = (packet for packet in recording.packets if len(packet.messages) == 2)
    assert packet.what == "GET /hello HTTP/1.1, GET /again HTTP/1.1"
    assert [message.length for message in packet.messages] == [39, 39]
    assert len(recording.messages("HTTP/1.1 200 OK")) == 2


def test_data_after_the_first_segment(record):
    recording = record("http_large")
    assert recording.lines[3] == "< HTTP/1.1 200 OK"
    data = recording.messages("data")
    assert {message.protocol for message in data} == {"DATA"}
    head = recording.messages("HTTP/1.1 200 OK")[0]
    received = head.data + b"".join(message.data for message in data)
    assert received.endswith(bytes(range(256)) * 200)


def test_refused(record):
    assert record("refused").lines == ["> SYN", "< RST"]


def test_udp_and_icmp(record):
    recording = record("udp")
    assert recording.lines == ["> datagram", "< datagram", "> datagram", "> ICMP port unreachable"]
    ping, pong, _, icmp = recording.packets
    assert [(m.protocol, m.name, m.detail, m.data) for m in ping.messages + pong.messages] == [
        ("UDP", "datagram", "4 bytes", b"ping"),
        ("UDP", "datagram", "5 bytes", b"pong!"),
    ]
    assert (icmp.flow.protocol, icmp.messages[0].name) == ("ICMP", "port unreachable")
    assert icmp.quoted == recording.packets[2].flow
    assert icmp.messages[0].detail == f"about 127.0.0.1:{icmp.quoted.client_port} → 127.0.0.1:9 UDP"


# What is lost, repeated, or not accepted ---------------------------------------------------------------


def test_a_lost_request_and_its_retransmission(record):
    recording = record("lost_request")
    (request,) = recording.messages("GET /hello HTTP/1.1")
    # A machine that stalls may lose a retransmission as well.
    lost, *others, again = (packet for packet in recording.packets if request in packet.messages)
    assert (lost.lost, lost.retransmission) == (True, False)
    assert all(packet.lost and packet.retransmission for packet in others)
    assert (again.lost, again.retransmission) == (False, True)
    assert request.first == request.last == again.index  # the lost packet brought nothing
    assert lost.what == again.what == "GET /hello HTTP/1.1"
    assert lost.summary == "4  client → ?  GET /hello HTTP/1.1 (lost)"
    assert again.summary.endswith("(retransmission)")


def test_what_was_lost_for_good_is_named_from_itself(record):
    recording = record("lost_and_never_repeated")
    packet, *again = (packet for packet in recording.packets if packet.payload)
    assert packet.lost
    assert packet.what == "GET /hello HTTP/1.1"
    assert packet.messages[0].first == packet.index
    assert all(each.lost and each.retransmission for each in again)  # none, unless the machine stalls


def test_a_lost_client_hello(record):
    recording = record("lost_client_hello")
    (hello,) = recording.messages("ClientHello")
    carrying = [packet for packet in recording.packets if hello in packet.messages]
    arrived = [packet for packet in carrying if not packet.lost]
    # One segment, or two with the post-quantum key share that OpenSSL 3.5 sends.
    segments = len(arrived)
    assert segments == 1 + (hello.length > 1448 - 5)
    assert all(packet.lost for packet in carrying[:segments])
    assert [packet.retransmission for packet in carrying] == [False] * segments + [True] * (len(carrying) - segments)
    assert (hello.first, hello.last) == (arrived[0].index, arrived[-1].index)
    assert "< HTTP/1.1 200 OK" in recording.lines


def test_fast_open(record):
    fetching, using, refused = record("fast_open").connections()
    assert fetching.lines[:3] == ["> SYN + cookie request", "< SYN-ACK + cookie", "> GET /hello HTTP/1.1"]
    assert using.lines[:3] == [
        "> SYN + 39 bytes, GET /hello HTTP/1.1", "< SYN-ACK", "< HTTP/1.1 200 OK",
    ]  # fmt: skip
    syn = using.packets[0]
    assert (syn.label, syn.payload) == ("SYN + 39 bytes", 39)
    assert [(m.protocol, m.name, m.detail) for m in syn.messages] == [
        ("TCP", "SYN", "cookie"),
        ("HTTP", "GET /hello HTTP/1.1", "39 bytes"),
    ]
    assert syn.messages[1].first == syn.index
    # The server forgot its cookies: it acknowledges the SYN alone, and the client sends the data again.
    assert refused.lines[:4] == [
        "> SYN + 39 bytes, GET /hello HTTP/1.1", "< SYN-ACK + cookie", "> GET /hello HTTP/1.1",
        "< HTTP/1.1 200 OK",
    ]  # fmt: skip
    (request,) = refused.messages("GET /hello HTTP/1.1")
    assert request.first == request.last > 1
    assert refused.packets[request.first].retransmission


# The same packets in other circumstances ---------------------------------------------------------------


def what(transits):
    return [packet.what for packet in dissect(transits, KeyLog())]


def renumber(transit: Transit, delta: int) -> Transit:
    """Move the sequence numbers of an IPv4 TCP packet without IP options."""
    data = bytearray(transit.data)
    seq, ack = struct.unpack_from("!II", data, 38)
    has_ack = data[47] & 0x10
    struct.pack_into("!II", data, 38, (seq + delta) % 2**32, (ack + delta) % 2**32 if has_ack else ack)
    return Transit(transit.sent_ns, transit.received_ns, transit.source, transit.destination, bytes(data))


@pytest.mark.parametrize("before_wrap", [1, 2, 1000, 20_000])
def test_sequence_numbers_wrap(record, before_wrap):
    recording = record("http_large")
    server_seq = struct.unpack_from("!I", recording.transits[1].data, 38)[0]
    moved = [renumber(transit, -server_seq - before_wrap) for transit in recording.transits]
    packets = dissect(moved, KeyLog())
    assert [packet.what for packet in packets] == [packet.what for packet in recording.packets]
    assert not any(packet.retransmission for packet in packets)
    received = b"".join(m.data for p in packets for m in p.messages if m.protocol == "DATA")
    assert received.endswith(bytes(range(256)) * 100)


def test_segments_out_of_order(record):
    recording = record("http_large")
    response = [p.index for p in recording.packets if not p.from_client and p.payload]
    order = list(range(len(recording.transits)))
    a, b = response[0], response[1]
    order[a], order[b] = order[b], order[a]
    shuffled = dissect([recording.transits[index] for index in order], KeyLog())
    assert shuffled[b].what == "HTTP/1.1 200 OK"
    assert shuffled[a].what == "data"
    assert not any(packet.retransmission for packet in shuffled)


def test_a_capture_that_begins_in_the_middle(record):
    recording = record("http_large")
    for skipped in (1, 2, 3, 5, 7):
        packets = dissect(recording.transits[skipped:], KeyLog())
        assert [p.what for p in packets] == [p.what for p in recording.packets[skipped:]]
        assert [p.from_client for p in packets] == [p.from_client for p in recording.packets[skipped:]]


def test_a_capture_on_one_host_loses_nothing(record):
    """On a host, arrivals are seen of what comes in only: what it sends is not lost for that."""
    recording = record("http")
    seen = pair_frames(frame for frame in recording.frames if frame.host == "client")
    packets = dissect(seen, KeyLog())
    assert not any(packet.lost for packet in packets)
    assert [packet.what for packet in packets] == [packet.what for packet in recording.packets]


def test_what_a_host_says_to_itself_does_not_make_the_rest_lost(record):
    recording = record("http")
    seen = pair_frames(frame for frame in recording.frames if frame.host == "client")
    to_itself = [Transit(t.sent_ns, t.received_ns, "client", "client", t.data) for t in record("udp").transits]
    assert not any(packet.lost for packet in dissect([*to_itself, *seen], KeyLog()))


def test_a_capture_of_sendings_only_on_a_wire_that_loses_all(record):
    recording = record("refused")
    syn = next(frame for frame in recording.frames if frame.sent)
    assert dissect(pair_frames([syn]), KeyLog())[0].lost


def test_ports_that_are_used_again_make_a_new_connection(record):
    """Two connections with the same ports: the second must not be taken for a repetition of the first."""
    recording = record("http")
    again = [renumber(transit, 12345) for transit in recording.transits]
    packets = dissect([*recording.transits, *again], KeyLog())
    half = len(recording.transits)
    assert [p.what for p in packets[half:]] == [p.what for p in packets[:half]]
    assert not any(packet.retransmission for packet in packets)


def test_what_the_wire_doubles_is_no_retransmission(record):
    recording = record("http")
    packets = dissect([transit for transit in recording.transits for _ in range(2)], KeyLog())
    assert not any(packet.retransmission for packet in packets)
    assert [packet.what for packet in packets[1::2]] == what(recording.transits)


def test_everything_sent_twice_is_a_retransmission(record):
    recording = record("http")
    doubled = []
    for transit in recording.transits:
        later_ns = transit.sent_ns + 1, transit.received_ns + 1
        doubled += [transit, Transit(*later_ns, transit.source, transit.destination, transit.data)]
    packets = dissect(doubled, KeyLog())
    for first, second in zip(packets[::2], packets[1::2], strict=True):
        assert not first.retransmission
        assert second.retransmission == (first.label != "ACK")
        assert second.messages[-1:] == first.messages[-1:] or first.label in ("SYN", "SYN-ACK", "FIN")
    assert what(recording.transits) == [packet.what for packet in packets[::2]]
