"""Damaged, cut and shuffled packets: every one gets a name, and nothing is raised."""

from __future__ import annotations

import random

import pytest
from work import check_work

from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.http3 import Http3Streams
from labkit.capture.keylog import KeyLog
from labkit.capture.ladder import build_ladder, table
from labkit.capture.quic_frames import QuicFrame, parse_frames
from labkit.capture.tls_handshake import describe_handshake
from labkit.capture.tls_session import Hello, Session

SCENARIOS = [
    "http_pipelined",
    "tls12_aes128",
    "tls13",
    "openssl_early_data",
    "quic_early",
    "quic_retry",
    "fast_open",
    "webrtc",
]


def mutate(random_: random.Random, transits: list[Transit]) -> list[Transit]:
    """Damage a capture in one of the ways that captures are damaged, or attackers would like them to be."""
    mutated = list(transits)
    for _ in range(random_.randint(1, 6)):
        index = random_.randrange(len(mutated))
        transit = mutated[index]
        data = bytearray(transit.data)
        kind = random_.randrange(7)
        if kind == 0 and data:  # some bits
            for _ in range(random_.randint(1, 8)):
                data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        elif kind == 1:  # cut
            del data[random_.randrange(len(data) + 1) :]
        elif kind == 2:  # longer
            data += random_.randbytes(random_.randrange(100))
        elif kind == 3 and len(data) > 42:  # other content, same headers
            start = random_.randrange(34, len(data))
            data[start:] = random_.randbytes(len(data) - start)
        elif kind == 4 and data:  # extreme numbers
            start = random_.randrange(len(data))
            data[start : start + 4] = random_.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"])
        elif kind == 5:
            random_.shuffle(mutated)
            continue
        else:
            del mutated[index]
            if not mutated:
                return transits[:1]
            continue
        received = transit.received_ns if random_.random() < 0.8 else None
        mutated[index] = Transit(transit.sent_ns, received, transit.source, transit.destination, bytes(data))
    return mutated


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_damaged_captures_never_raise(record, scenario):
    recording = record(scenario)
    random_ = random.Random(scenario)
    for _ in range(150):
        transits = mutate(random_, recording.transits)
        secrets = recording.secrets if random_.random() < 0.8 else KeyLog()
        packets = dissect(transits, secrets)
        check(packets, transits)


def check(packets, transits):
    assert [packet.transit for packet in packets] == transits
    for packet in packets:
        assert packet.label
        assert packet.what
        assert packet.summary.isprintable()
        assert packet.payload >= 0
        for message in packet.messages:
            assert 0 <= message.first <= message.last < len(packets)
            assert message.name
            assert message.detail.isprintable()
    assert max(map(len, str(build_ladder(packets, ["client", "server"], acks=True)).splitlines())) <= 110
    assert table(packets).isprintable() or "\n" in table(packets)


def test_every_prefix_of_a_frame(record):
    for scenario in ("tls13", "quic", "fast_open"):
        recording = record(scenario)
        for transit in recording.transits[:6]:
            for length in range(0, len(transit.data), 3):
                cut = Transit(1, 2, "client", "server", transit.data[:length])
                (packet,) = dissect([cut], recording.secrets)
                assert packet.label


def test_random_frames():
    random_ = random.Random(1)
    for _ in range(300):
        transits = [Transit(n, n, "a", "b", random_.randbytes(random_.randrange(120))) for n in range(10)]
        check(dissect(transits, KeyLog()), transits)


@pytest.mark.alone
def test_a_large_capture_takes_no_more_work_for_a_packet(record):
    """2,000 packets of one connection, encrypted."""
    recording = record("tls13_large")
    transits, secrets = recording.transits, recording.secrets
    assert len(transits) >= 2000
    packets = dissect(transits, secrets)
    few = transits[: len(transits) // 8]
    check_work(lambda: dissect(few, secrets), lambda: dissect(transits, secrets), most=20)
    received = sum(m.length for p in packets for m in p.messages if m.first == p.index and m.level == "application")
    assert received > 2_000_000


def test_random_contents_of_opened_packets():
    """What is inside the encryption can be hostile, too."""
    random_ = random.Random(2)
    sessions = [Session(), Session(server=Hello(bytes(32), b"", 0x1301, {43: b"\x03\x04"}))]
    for _ in range(5000):
        content = random_.randbytes(random_.randrange(60))
        frames = parse_frames(bytes([random_.randrange(0x32)]) + content)
        assert frames
        assert all(frame.name and frame.detail.isprintable() for frame in frames)
        for session in sessions:
            name, detail = describe_handshake(random_.randrange(30), content, session)
            assert name
            assert detail.isprintable()
            session.learn(random_.randrange(30), content)


def test_random_streams_of_http3():
    """What a peer of HTTP/3 may send, in any pieces and order."""
    random_ = random.Random(3)
    for _ in range(300):
        streams, sent = Http3Streams(), []
        for number in random_.sample([0, 2, 3, 4, 6, 7, 10, 11], 4):
            content = bytes([random_.choice([0, 1, 2, 3, 4, 5, 7, 13, 0x21])]) + random_.randbytes(
                random_.randrange(200)
            )
            offset = 0
            while offset < len(content):
                size = random_.randint(1, 40)
                sent.append(QuicFrame("STREAM", "", size, content[offset : offset + size], number, offset))
                offset += size
        if random_.random() < 0.5:
            random_.shuffle(sent)
        how = [(random_.random() < 0.7, random_.random() < 0.1) for _ in sent]
        for index, (frame, (from_client, early)) in enumerate(zip(sent, how, strict=True)):
            streams.add(frame, from_client, early, index, random_.random() < 0.9)
        messages = streams.messages(rejected=random_.random() < 0.5)
        for frame, (from_client, early) in zip(sent, how, strict=True):
            for found in messages.inside(frame, from_client, "early" if early else "application"):
                assert found.name.isprintable()
                assert found.detail.isprintable()
                assert 0 <= found.start <= found.end < len(sent)
