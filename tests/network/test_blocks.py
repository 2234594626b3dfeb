"""The ring of captures: all frames, each once, whatever is interrupted, and as they were."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from labkit import Lab
from labkit.network import blocks
from labkit.network.blocks import BlockRing
from labkit.network.ring import ETH_P_ALL

DATAGRAM = socket.AF_INET, socket.SOCK_DGRAM


@pytest.fixture
def ring(lab: Lab) -> Iterator[BlockRing]:
    """Of the client, which sends to a port that is bound and never read."""
    descriptor = lab.client.open_descriptor(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    ring = BlockRing(socket.socket(fileno=descriptor))
    yield ring
    ring.close()


@pytest.fixture
def sender(lab: Lab) -> Iterator[socket.socket]:
    with lab.server.socket(*DATAGRAM) as receiver, lab.client.socket(*DATAGRAM) as sock:
        receiver.bind((lab.server.ip, 9))
        sock.connect((lab.server.ip, 9))
        yield sock


def numbers(ring: BlockRing) -> list[int]:
    return [int.from_bytes(frame.data[42:46], "big") for frame in ring.frames]


def test_what_was_sent_before_a_flush_is_read_after_it(ring: BlockRing, sender: socket.socket) -> None:
    for number in range(50):
        sender.send(number.to_bytes(4, "big"))
        ring.flush()
        ring.read()
        assert numbers(ring) == list(range(number + 1))
    assert all(frame.outgoing and frame.length == len(frame.data) == 46 for frame in ring.frames)
    stamps = [frame.time_ns for frame in ring.frames]
    assert stamps == sorted(stamps)


def test_the_largest_frames_of_a_loopback_interface_are_whole(lab: Lab, ring: BlockRing) -> None:
    with lab.client.socket(*DATAGRAM) as receiver, lab.client.socket(*DATAGRAM) as sock:
        receiver.bind((lab.client.ip, 9))
        sock.sendto(bytes(65507), (lab.client.ip, 9))
        ring.flush()
        ring.read()
    assert [(frame.length, len(frame.data)) for frame in ring.frames] == [(65549, 65549)] * 2  # out of lo, and in


def files_in_memory() -> int:
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum("labkit-capture" in os.readlink(link) for link in links if os.path.lexists(link))


def test_the_memory_of_what_was_read_is_free(
    ring: BlockRing, sender: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "STORE_BYTES", 50_000)
    for number in range(500):
        sender.send(number.to_bytes(4, "big") + bytes(996))
        if number % 100 == 99:
            ring.flush()
    assert files_in_memory() >= 4
    ring.close()
    ring.read()
    assert numbers(ring) == list(range(500))
    assert files_in_memory() == 1


class Interrupting:
    """Raises KeyboardInterrupt at the n-th line of labkit.network.blocks that is executed."""

    def __init__(self, line: int) -> None:
        self.left = line

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != blocks.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


def test_an_interrupt_loses_no_frame_and_doubles_none(ring: BlockRing, sender: socket.socket) -> None:
    sent = 0
    for line in itertools.count(1):
        for _ in range(3):
            sender.send(sent.to_bytes(4, "big"))
            sent += 1
        interrupting = Interrupting(line)
        before = sys.gettrace()
        sys.settrace(interrupting.trace)
        try:
            ring.flush()
            ring.read()
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(before)
        if interrupting.left > 0:  # it ended before
            break
    assert line > 40
    ring.flush()
    ring.read()
    assert numbers(ring) == list(range(sent))
