"""Whose a QUIC packet is: connection IDs, versions, resets, and what only looks like QUIC."""

from __future__ import annotations

import random

import pytest
from quic_in_memory import CLIENT, SERVER, V1, V2, Peers, transit
from test_dissect_hostile import check, mutate

from labkit.capture.dissect import dissect
from labkit.capture.keylog import KeyLog
from labkit.capture.quic_frames import parse_frames

ELSEWHERE = ("198.51.100.7", 1234)


def names(peers: Peers) -> list[str]:
    return [packet.what for packet in dissect(peers.transits, peers.secrets)]


def test_a_connection_survives_a_new_address_and_a_new_connection_id(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    before = len(peers.transits)
    peers.client.change_connection_id()
    peers.client_at = ELSEWHERE
    peers.get("/moved")
    peers.talk()
    packets = dissect(peers.transits, peers.secrets)
    moved = packets[before:]
    assert {packet.headers.source for packet in moved} == {ELSEWHERE[0], SERVER[0]}
    assert {packet.flow for packet in packets} == {packets[0].flow}
    assert (packets[0].flow.client, packets[0].flow.client_port) == CLIENT
    assert all(packet.from_client == (packet.headers.destination == SERVER[0]) for packet in packets)
    assert "STREAM 0[GET /moved]" in moved[0].what
    assert any("PATH_CHALLENGE" in packet.what for packet in moved)
    assert any("STREAM 0[200, DATA]" in packet.what for packet in moved)
    assert "encrypted" not in " ".join(packet.what for packet in packets)


def test_a_new_address_alone(tmp_path):
    peers = Peers(tmp_path, connection_id_length=4)  # short IDs are looked for beside the server's address
    peers.talk()
    peers.client_at = ELSEWHERE
    peers.get("/nat")
    peers.talk()
    assert any("STREAM 0[GET /nat]" in name for name in names(peers))
    assert any("STREAM 0[200, DATA]" in name for name in names(peers))


def test_an_id_of_no_bytes_leaves_the_addresses(tmp_path):
    peers = Peers(tmp_path, connection_id_length=0)
    peers.talk()
    assert names(peers)[-1] == "1-RTT: CONNECTION_CLOSE"  # aioquic's client offers more IDs of no bytes


def test_two_connections_of_one_server_are_told_apart(tmp_path):
    one, other = Peers(tmp_path), Peers(tmp_path)
    other.client_at = CLIENT  # even between the same addresses
    for peers in (one, other):
        peers.talk()
        peers.get("/")
        peers.talk()
    mixed = [each for pair in zip(one.transits, other.transits, strict=True) for each in pair]
    packets = dissect(mixed, KeyLog({**one.secrets._secrets, **other.secrets._secrets}))
    assert [packet.what for packet in packets[::2]] == names(one)
    assert [packet.what for packet in packets[1::2]] == names(other)


def test_version_1_goes_on_as_version_2(tmp_path):
    peers = Peers(tmp_path, versions=(V2, V1), original_version=V1, supported_versions=[V2, V1])
    peers.talk()
    peers.get("/")
    peers.talk()
    answer = peers.transits[1].data[42:]
    assert int.from_bytes(answer[1:5], "big") == V2
    packets = dissect(peers.transits, peers.secrets)
    assert packets[1].what.startswith("Initial: ACK, CRYPTO[ServerHello] + Handshake: CRYPTO[EncryptedExtensions, ")
    assert any("STREAM 0[200, DATA]" in packet.what for packet in packets)


@pytest.mark.parametrize("fixed", [0xFF, 0xBF])
def test_the_fixed_bit_may_be_0(tmp_path, fixed):
    """RFC 9287. The header is authenticated as it was sent, so packets are protected with the bit as it is."""
    peers = Peers(tmp_path)
    peers.talk()
    assert names(peers)[0].startswith("Initial: CRYPTO[ClientHello]")
    from aioquic.quic.crypto import CryptoPair

    pair = CryptoPair()
    pair.setup_initial(b"\x11" * 8, is_client=True, version=V1)
    header = bytes([0xC1 & fixed]) + b"\0\0\0\1" + b"\x08" + b"\x11" * 8 + b"\x08" + b"\x22" * 8 + b"\0\x40\x45\0\0"
    packet = pair.encrypt_packet(header, b"\1" + bytes(50), 0)
    assert packet[0] >> 6 == (3 if fixed == 0xFF else 2)
    (named,) = dissect([transit(1, packet, CLIENT, SERVER)], KeyLog())
    assert named.what == "Initial: PING, PADDING"


def test_version_negotiation_and_what_asked_for_it(tmp_path):
    peers = Peers(tmp_path)
    unknown, ids = bytes.fromhex("1a2a3a4a"), b"\x08" + b"\x11" * 8 + b"\x04" + b"\x22" * 4
    swapped = b"\x04" + b"\x22" * 4 + b"\x08" + b"\x11" * 8
    peers.carry(b"\xc0" + unknown + ids + bytes(1190), CLIENT, SERVER)
    peers.carry(b"\x80" + bytes(4) + swapped + bytes.fromhex("00000001 6b3343cf"), SERVER, CLIENT)
    packets = dissect(peers.transits, KeyLog())
    assert [packet.what for packet in packets] == ["packet of version 0x1a2a3a4a", "Version Negotiation"]
    assert packets[1].messages[0].detail == "0x00000001, 0x6b3343cf"
    assert [packet.from_client for packet in packets] == [True, False]


def test_what_only_looks_like_version_negotiation(tmp_path):
    query = bytes.fromhex("ab00 0000 0001 0000 0000 0000 066d79686f7374 036c6162 00 0001 0001")
    (packet,) = dissect([transit(1, query, CLIENT, ("192.0.2.2", 5300))], KeyLog())
    assert "Version Negotiation" not in packet.what
    answers_nothing = b"\x80" + bytes(4) + b"\x04" + b"\x22" * 4 + b"\x08" + b"\x11" * 8 + b"\0\0\0\1"
    (packet,) = dissect([transit(1, answers_nothing, SERVER, CLIENT)], KeyLog())
    assert packet.what == "datagram"


def test_an_incompatible_version_begins_anew(tmp_path):
    peers = Peers(tmp_path, versions=(V1,), original_version=V2, supported_versions=[V2, V1])
    peers.client.connect(SERVER, now=0)
    ((first, _),) = peers.client.datagrams_to_send(now=0)
    peers.carry(first, CLIENT, SERVER)
    destination, source = first[6 : 6 + first[5]], peers.client.host_cid
    refusal = b"\x80" + bytes(4) + bytes([len(source)]) + source + bytes([len(destination)]) + destination
    refusal += bytes.fromhex("00000001")
    peers.carry(refusal, SERVER, CLIENT)
    peers.client.receive_datagram(refusal, SERVER, now=0)
    peers.talk()
    packets = dissect(peers.transits, peers.secrets)
    assert [packet.what.split(":")[0] for packet in packets[:3]] == ["Initial", "Version Negotiation", "Initial"]
    assert any("HANDSHAKE_DONE" in packet.what for packet in packets)


def test_a_stateless_reset_is_known_by_its_token(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    assert peers.server is not None
    of_handshake, of_frame = (peers.server._host_cids[number].stateless_reset_token for number in (0, 1))
    for token in (of_handshake, of_frame):
        peers.carry(b"\x55" * 30 + token, SERVER, CLIENT)
    peers.carry(b"\x55" * 46, SERVER, CLIENT)
    assert names(peers)[-3:] == ["Stateless Reset", "Stateless Reset", "1-RTT: 1-RTT packet (encrypted)"]


def test_a_capture_from_the_middle(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    packets = dissect(peers.transits[1:], peers.secrets)
    assert packets[0].what.startswith("Initial: Initial packet (encrypted) + Handshake: Handshake packet (encrypted)")
    assert {packet.flow.server for packet in packets} == {SERVER[0]}
    assert {packet.what.split(": ")[-1] for packet in packets[2:]} == {"1-RTT packet (encrypted)"}


def test_packets_that_overtake_each_other(tmp_path):
    """1-RTT packets before the handshake that names their keys, and new IDs before the frames that bring them."""
    peers = Peers(tmp_path)
    peers.talk()
    peers.client.change_connection_id()
    peers.client_at = ELSEWHERE
    peers.get("/")
    peers.talk()
    expected = {id(t.data): name for t, name in zip(peers.transits, names(peers), strict=True)}
    packets = dissect(peers.transits[::-1], peers.secrets)
    assert "encrypted" not in " ".join(packet.what for packet in packets)
    assert len(packets) == len(expected)


def test_an_update_of_keys_that_is_overtaken(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    peers.get("/before")
    peers.talk()
    peers.client.request_key_update()
    peers.get("/after")
    peers.talk()
    late = peers.transits[:]
    old = next(i for i, p in enumerate(dissect(late, peers.secrets)) if "GET /before" in p.what)
    late.append(late.pop(old))  # it comes last, behind the update
    packets = dissect(late, peers.secrets)
    assert "GET /after" in " ".join(packet.what for packet in packets)
    assert "STREAM 0" in packets[-1].what


def test_a_frame_type_that_is_not_known_is_named():
    frames = parse_frames(b"\1" + bytes.fromhex("40af") + b"what follows")
    assert [(frame.name, frame.detail) for frame in frames] == [
        ("PING", ""),
        ("frame type 0xaf", "14 bytes from here on, not read"),
    ]
    assert [frame.name for frame in parse_frames(b"\x1c\1")] == ["malformed frame"]


def test_header_fields_from_the_dynamic_table(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    for path in ("/first", "/second", "/third"):
        peers.get(path, **{"x-long": "a value that a table remembers"})
        peers.talk()
    packets = dissect(peers.transits, peers.secrets)
    requests = [m for p in packets for m in p.messages if m.role == "request"]
    assert [m.start_line for m in requests] == ["GET /first", "GET /second", "GET /third"]
    assert {dict(m.headers)["x-long"] for m in requests} == {"a value that a table remembers"}
    assert len(requests[2].data) < len(requests[0].data)  # the table was used
    instructions = [m for p in packets if p.from_client for m in p.messages if m.name == "QPACK encoder"]
    assert sum(m.length for m in instructions) > 20
    responses = [m for p in packets for m in p.messages if m.role == "response"]
    assert [(m.status, dict(m.headers)["server"]) for m in responses] == [(200, "in memory")] * 3


def test_a_stream_with_a_gap(tmp_path):
    """The first bytes of a request are missing: what follows them is said to be unread."""
    peers = Peers(tmp_path)
    peers.talk()
    peers.get("/" + "a" * 3000)
    peers.talk()
    packets = dissect(peers.transits, peers.secrets)
    begin = next(number for number, packet in enumerate(packets) if "GET /aaa" in packet.what)
    without = dissect(peers.transits[:begin] + peers.transits[begin + 1 :], peers.secrets)
    assert without[begin].messages[0].name == "STREAM"
    assert without[begin].messages[0].detail.endswith(" bytes, fin, after a gap")


def test_damaged_connections_never_raise(tmp_path):
    peers = Peers(tmp_path)
    peers.talk()
    peers.get("/")
    peers.talk()
    peers.client.change_connection_id()
    peers.client_at = ELSEWHERE
    peers.get("/moved", **{"x-long": "value"})
    peers.talk()
    random_ = random.Random(6)
    for _ in range(60):
        transits = mutate(random_, peers.transits)
        check(dissect(transits, peers.secrets), transits)


def test_many_connections_take_no_more_work_for_a_packet(tmp_path):
    """Whose a packet is, is looked up: it is not tried with the keys of every connection."""
    from labkit.capture import quic_connection

    peers = Peers(tmp_path)
    peers.talk()
    tries = 0
    opened = quic_connection._Keys.open

    def counting(self, *arguments):
        nonlocal tries
        tries += 1
        return opened(self, *arguments)

    several = []
    for number in range(20):
        client = Peers(tmp_path)
        client.client_at = ("192.0.2.1", 41000 + number)
        client.talk()
        several += client.transits
    quic_connection._Keys.open = counting
    try:
        dissect(several, peers.secrets)
    finally:
        quic_connection._Keys.open = opened
    assert tries < 8 * len(several)
