"""Hostile bytes for every module of labkit/capture/protocols/, which are listed: one that comes is covered here, too.

The bytes are made of the module's own words: its constants as bytes and numbers, with lengths before them, so that
they get further than random ones. Captures in ``samples/`` are of real programs; they are damaged.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from dialogues import segment
from test_dissect_hostile import check as check_packets
from test_dissect_hostile import mutate
from work import check_work

from labkit import Captured
from labkit.capture import protocols
from labkit.capture.dialogue import Piece, _Dialogue
from labkit.capture.dissect import dissect
from labkit.capture.frames import Transit
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found
from labkit.capture.protocol import BodyProtocol, Certainty, Datagram, DatagramProtocol, HandOver, Side, StreamProtocol

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.pcapng.gz"))
NAMES = sorted(info.name for info in pkgutil.iter_modules(protocols.__path__) if not info.name.startswith("_"))
Said = list[tuple[bool, bytes]]


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"{protocols.__name__}.{name}")


@cache
def words(name: str) -> tuple[bytes, ...]:
    """The constants of a module and of the modules of the folder that it imports, as bytes."""
    found: set[bytes] = {b"\0", b"\r\n"}
    tree = ast.parse(inspect.getsource(module_of(name)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{protocols.__name__}._"):
            found |= set(words(node.module.rpartition(".")[2]))
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, bytes):
            found.add(value)
        elif isinstance(value, str) and 0 < len(value) < 20:
            found.add(value.encode())
        elif isinstance(value, int) and 0 <= value < 2**32:
            found |= {value.to_bytes(size, "big") for size in (1, 2, 4) if value < 256**size}
    return tuple(sorted(found))


def babble(random_: random.Random, name: str, pieces: int) -> Said:
    """What nobody would say, in the words of a protocol: some in front of lengths that are right."""
    said = []
    for _ in range(pieces):
        data = b""
        for _ in range(random_.randint(1, 6)):
            word, body = random_.choice(words(name)), random_.choice(words(name)) * random_.randrange(3)
            size = random_.choice([0, 0, 1, 2, 3, 4, 8])
            extra = random_.choice([0, 0, 4, -1])
            length = max(len(body) + extra, 0).to_bytes(size, "big") if size else b""
            data += random_.choice([word, word + length + body, word + length + body + random_.choice(words(name))])
        said.append((random_.random() < 0.5, data or b"\0"))
    return said


def name_all(name: str, said: Said, begins: bool, gaps: bool) -> Iterator[tuple[int, list[Found]]]:
    """How many bytes each side said, and what they are named."""
    module = module_of(name)
    if stream := getattr(module, "STREAM", None):
        yield from _read_stream(stream, said, begins, gaps)
    if body := getattr(module, "BODY", None):
        yield from _read_body(body, said)
    if datagram := getattr(module, "DATAGRAM", None):
        _read_datagrams(datagram, said)


def _read_stream(
    protocol: type[StreamProtocol], said: Said, begins: bool, gaps: bool
) -> Iterator[tuple[int, list[Found]]]:
    sizes, pieces = {True: 0, False: 0}, list[tuple[bool, Piece]]()
    for number, (from_client, data) in enumerate(said):
        pieces.append((from_client, Piece(number, segment(data, sizes[from_client]))))
        sizes[from_client] += len(data)
        if gaps and number % 5 == 4:
            pieces.append((from_client, Piece(number, None)))
    coming = {side: deque(piece for from_client, piece in pieces if from_client == side) for side in (True, False)}
    dialogue = _Dialogue(coming, (begins, begins), 1)
    dialogue._reader = protocol(dialogue.sides[True], dialogue.sides[False], HandOver())
    for from_client, piece in pieces:
        dialogue.add(from_client, piece)
    dialogue.end()
    yield from ((sizes[side], dialogue.sides[side].found) for side in (True, False))


def _read_body(protocol: type[BodyProtocol], said: Said) -> Iterator[tuple[int, list[Found]]]:
    side, reader, at = Side(from_client=False), protocol("GET /"), 0
    for _, data in said:
        side.add(segment(data, at))
        at += len(data)
        reader.receive(side)
    side.leave(len(side.data))
    yield at, side.found


def _read_datagrams(protocol: type[DatagramProtocol], said: Said) -> None:
    datagrams = [Datagram(data, sender, True, ("a", 1 + sender), ("b", 2 - sender)) for sender, data in said]
    datagrams = [each for each in datagrams if protocol.recognise(each) is not Certainty.NO]
    readings = protocol().read(datagrams, KeyLog())
    assert len(readings) == len(datagrams)
    for number, found in enumerate(readings):
        for each in found or []:
            assert each.start <= number <= each.end < len(datagrams)
            assert each.name.isprintable() and each.detail.isprintable() and each.label.isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_each_byte_has_one_name_and_nothing_is_raised(name: str) -> None:
    random_ = random.Random(name)
    named = set()
    for round_ in range(300):
        said = babble(random_, name, 12)
        for size, found in name_all(name, said, begins=round_ % 3 > 0, gaps=round_ % 4 == 0):
            at = 0
            for each in found:
                assert at == each.start, "a byte has no name, or two"
                assert each.name.isprintable() and each.detail.isprintable() and each.label.isprintable()
                assert each.start_line.isprintable() and each.length >= 0
                named.add(each.name)
                at = each.end
            assert at == size
    by_patterns = hasattr(module_of(name), "re")  # its words are no constants
    assert named > {"data"} or by_patterns or not hasattr(module_of(name), "STREAM"), "these bytes get nowhere"


@pytest.mark.alone
@pytest.mark.parametrize("segments", [True, False], ids=["small segments", "one segment"])
@pytest.mark.parametrize("name", NAMES)
def test_the_work_for_a_byte_stays_the_same(name: str, segments: bool) -> None:
    said = babble(random.Random(name), name, 1600)

    def reading(said: Said) -> Callable[[], object]:
        said = said if segments else [(True, b"".join(data for _, data in said))]
        return lambda: list(name_all(name, said, begins=True, gaps=False))

    check_work(reading(said[:200]), reading(said))


def test_there_are_samples_of_real_programs() -> None:
    assert SAMPLES
    for path in SAMPLES:
        capture = Captured.open(path)
        protocol = path.name.split(".")[0]
        said = {message.protocol.lower() for packet in capture.messages for message in packet.messages}
        assert protocol in said, f"{path.name} has no message of {protocol}: {said}"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_damaged_samples_are_named(path: Path) -> None:
    random_ = random.Random(path.name)
    seen = Captured.open(path).transits  # each sent and received, so that some can be lost
    transits = [Transit(each.time_ns, each.time_ns, each.source, each.destination, each.data) for each in seen]
    for _ in range(40):
        damaged = mutate(random_, transits)
        begin = random_.randrange(len(damaged))
        check_packets(dissect(damaged[begin:], KeyLog()), damaged[begin:])
