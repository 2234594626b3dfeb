"""AMQP's frames: by bytes, by the specification's numbers, and as tshark names them in what a real client says."""

from __future__ import annotations

import asyncio
import ssl
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import aio_pika
import aiormq
import pamqp.commands
import pytest
from dialogues import labels, read
from parts import from_packet
from terminator import tls_in_front
from work import check_work

from labkit import Captured, Lab
from labkit.capture.protocols.amqp import _CLASSES, _METHODS
from labkit.services import RabbitMQ

Require = Callable[[str], str]


async def converse(url: str, context: ssl.SSLContext | None = None) -> None:
    """A topic exchange, confirms, a consumer that acknowledges and rejects, and a channel that the broker closes."""
    async with await aio_pika.connect(url, ssl_context=context) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=3)
        orders = await channel.declare_exchange("orders", aio_pika.ExchangeType.TOPIC)
        queue = await channel.declare_queue("warehouse", exclusive=True)
        await queue.bind(orders, "new.*")
        for number, size in enumerate((5000, 10, 200_000, 10)):  # 200,000 are two frames
            await orders.publish(aio_pika.Message(bytes(size)), routing_key=f"new.{number}")
        async with queue.iterator() as messages:
            async for message in messages:
                if message.routing_key == "new.1":
                    await message.reject(requeue=False)
                else:
                    await message.ack()
                if message.routing_key == "new.3":
                    break
        assert await queue.get(fail=False) is None
        await channel.default_exchange.publish(aio_pika.Message(b"last"), routing_key="warehouse")
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue("nowhere", passive=True)


async def converse_by_tls(lab: Lab) -> None:
    async with tls_in_front(lab, 5671, 5672, "amqp"):
        with lab.client:
            await converse("amqps://guest:guest@server.lab:5671/", lab.authority.client_context(alpn=["amqp"]))


@pytest.fixture(scope="module")
def captures(require_program: Require) -> dict[str, Captured]:
    """What aio-pika and RabbitMQ say to each other."""
    require_program("rabbitmq-server")
    made: dict[str, Captured] = {}
    with Lab(rtt_ms=2) as lab, RabbitMQ(lab.server) as broker:
        url = broker.url
        with lab.capture() as made["clear"], lab.client:
            asyncio.run(converse(url))
        with lab.capture() as made["TLS"]:
            asyncio.run(converse_by_tls(lab))
    return made


@pytest.fixture
def captured(captures: dict[str, Captured]) -> Captured:
    return captures["clear"]


KINDS = {"Heartbeat": 8, "ContentHeader": 2, "ContentBody": 3}


def named(capture: Captured) -> list[tuple[int, int, str, int]]:
    """Packet in which a message ends, frame type, "class.method" by name, and channel, of each message once."""
    return [
        (p.index + 1, KINDS.get(m.name, 1), "" if m.name in KINDS else m.name, m.stream or 0)
        for p in capture.messages
        for m in p.messages
        if m.protocol == "AMQP" and m.last == p.index and m.name != "ProtocolHeader"
    ]


@pytest.mark.parametrize("name", ["clear", "TLS"])
def test_tshark_sees_the_same_frames(
    captures: dict[str, Captured], require_program: Require, tmp_path: Path, name: str
) -> None:
    captured = captures[name]
    file = captured.save(tmp_path / "x.pcapng")
    words = [
        require_program("tshark"),
        "-r",
        str(file),
        "-d",
        "tls.port==5671,amqp",
        "-Y",
        "amqp",
        "-T",
        "fields",
        "-E",
        "aggregator=~",
    ]
    fields = ["frame.number", "amqp.type", "amqp.channel", "amqp.method.class", "amqp.method.method"]
    fields += ["amqp.method.arguments.routing_key", "amqp.method.arguments.delivery_tag"]
    words += [word for field in fields for word in ("-e", field)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    seen, keys, tags = [], [], []
    for at, types, channels, classes, methods, key, tag in (line.split("\t") for line in done.stdout.splitlines()):
        numbers = ([int(each) for each in text.split("~") if each] for text in (classes, methods))
        pairs = iter(list(zip(*numbers, strict=True)))
        for kind, channel in zip(types.split("~"), channels.split("~"), strict=True):
            name = ""
            if kind == "1":
                pair = next(pairs)
                name = f"{_CLASSES[pair[0]]}.{_METHODS[pair][0]}"
            seen.append((int(at), int(kind), name, int(channel)))
        keys += [each for each in key.split("~") if each]
        tags += [int(each) for each in tag.split("~") if each]
    assert named(captured) == seen
    assert len(seen) > 50
    found = [m for p in captured.messages for m in p.messages if m.protocol == "AMQP" and m.last == p.index]
    said = [m.label for m in found if m.name in ("Basic.Publish", "Basic.Deliver", "Queue.Bind")]
    assert [label.split()[-1] for label in said] == keys
    told = [m.label for m in found if m.name in ("Basic.Deliver", "Basic.Ack", "Basic.Reject")]
    assert [int(label.split("#")[1].split()[0]) for label in told] == tags


def test_roles_and_bodies(captured: Captured) -> None:
    found = [m for p in captured.messages for m in p.messages if m.protocol == "AMQP" and m.first == p.index]
    roles = {m.name: m.role for m in found}
    assert [roles[name] for name in ("Basic.Publish", "Basic.Deliver", "Queue.Declare")] == ["request"] * 3
    assert [roles[name] for name in ("Basic.Ack", "Basic.GetEmpty", "Queue.DeclareOk")] == ["response"] * 3
    assert [roles[name] for name in ("ProtocolHeader", "Connection.Tune", "Channel.Close")] == ["control"] * 3
    bodies = [m.data for m in found if m.name == "ContentBody"]
    assert sum(map(len, bodies)) == 2 * (5000 + 10 + 200_000 + 10) + 4
    assert bodies[-1] == b"last"
    (closed,) = [m for m in found if m.name == "Channel.Close"]
    assert "code 404" in closed.detail and "no queue 'nowhere'" in closed.detail


def test_under_tls_it_is_the_same_conversation(captures: dict[str, Captured]) -> None:
    clear, hidden = ([(name, channel) for _, _, name, channel in named(captures[each])] for each in ("clear", "TLS"))
    assert sorted(clear) == sorted(hidden)  # confirms and deliveries may come in another order
    levels = {m.level for p in captures["TLS"].messages for m in p.messages if m.protocol == "AMQP"}
    assert levels == {"application"}


def test_from_the_middle_on(captured: Captured) -> None:
    """A capture that begins with any method of the client names it, and all that follows, as the whole one does."""
    begins = [p for p in captured.messages if p.from_client and any(m.role == "request" for m in p.messages)]
    for begin in begins:
        part = from_packet(captured, begin.index)
        assert [each for _, *each in named(part)] == [each for number, *each in named(captured) if number > begin.index]


def test_the_numbers_are_those_of_the_specification() -> None:
    ours = {(number, method): f"{_CLASSES[number]}.{name}" for (number, method), (name, _) in _METHODS.items()}
    theirs = {divmod(index, 2**16): command.__qualname__ for index, command in pamqp.commands.INDEX_MAPPING.items()}
    assert {pair: name for pair, name in ours.items() if pair in theirs} == theirs
    assert {name for pair, name in ours.items() if pair not in theirs} <= {
        "Connection.Secure", "Connection.SecureOk", "Connection.Blocked", "Connection.Unblocked",
        "Connection.UpdateSecret", "Connection.UpdateSecretOk",
    }  # fmt: skip


def frame(kind: int, channel: int, body: bytes) -> bytes:
    return struct.pack("!BHI", kind, channel, len(body)) + body + b"\xce"


PUBLISH = frame(1, 3, struct.pack("!HHH", 60, 40, 0) + b"\6orders\7new.\x1b[1\0")
HEADER = frame(2, 3, struct.pack("!HHQH", 60, 0, 5, 0))


def test_what_is_said_of_a_frame() -> None:
    client = b"AMQP\0\0\x09\x01" + PUBLISH + HEADER + frame(3, 3, b"hello") + frame(8, 0, b"")
    server = frame(1, 3, struct.pack("!HHQB", 60, 80, 7, 1)) + frame(1, 0, struct.pack("!HH", 10, 99))
    found = read((">", client), ("<", server))
    assert labels(found) == [
        "> ProtocolHeader",
        "> Basic.Publish 3: orders new.?[1",
        "> ContentHeader 3",
        "> ContentBody 3",
        "> Heartbeat",
        "< Basic.Ack 3: #7 and all before",
        "< Connection.99",
    ]
    assert found[3][1].data == b"hello"
    assert found[2][1].detail == "channel 3, 5 bytes of body"


def test_a_frame_is_found_behind_the_end_of_another() -> None:
    """In a capture from the middle on: the rest of a body, then frames, in one segment."""
    found = read((">", b"rest\xce of it\xce" + PUBLISH + HEADER), begins=(False, False), port=5672)
    assert [each.name for _, each in found] == ["data"]  # nobody is asked within a segment
    found = read((">", PUBLISH), (">", None), (">", b"rest\xce of it\xce" + PUBLISH + HEADER), begins=(False, False))
    assert [each.name for _, each in found] == ["Basic.Publish", "data", "Basic.Publish", "ContentHeader"]


def test_frames_over_many_segments_and_cut_ones() -> None:
    body = frame(3, 1, bytes(range(256)) * 40)
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    whole = read((">", PUBLISH), *((">", part) for part in parts))
    assert labels(whole) == ["> Basic.Publish 3: orders new.?[1", "> ContentBody 1"]
    (_, cut) = read((">", PUBLISH), (">", parts[0]), (">", None))
    assert (cut[1].name, cut[1].detail) == ("ContentBody", f"1000 of {len(body)} bytes")


UNKNOWN_METHOD = frame(1, 1, struct.pack("!HH", 10, 99))


@pytest.mark.parametrize(
    "data", [b"AMQP\0\1\0\0", b"GET / HTTP/1.1\r\n\r\n", PUBLISH[:-1] + b"\xcd", bytes(40), UNKNOWN_METHOD]
)
def test_what_is_something_else(data: bytes) -> None:
    assert {found.protocol for _, found in read((">", data), port=5672)} <= {"DATA", "HTTP"}


ENDLESS: dict[str, Callable[[int], list[tuple[str, bytes | None]]]] = {
    "ends of frames, and no frame": lambda n: [
        (">", PUBLISH),
        (">", None),
        *((">", b"\xce\1" * 700) for _ in range(n)),
    ],
    "a body without an end": lambda n: [(">", PUBLISH + b"\3\0\1\0\xff\xff\xff"), *((">", b"x") for _ in range(n))],
    "acknowledgments": lambda n: [("<", frame(1, 3, b"\0\x3c\0\x50" + bytes(9)) * 10) for _ in range(n)],
}


@pytest.mark.alone
@pytest.mark.parametrize("kind", ENDLESS)
def test_the_work_for_a_byte_stays_the_same(kind: str) -> None:
    few, many = ENDLESS[kind](15), ENDLESS[kind](120)
    check_work(lambda: read(*few), lambda: read(*many))
