"""A packet socket's ring in blocks: how a capture loses nothing while the notebook's Python is busy with other things.

The kernel packs frames one after the other into a block of memory, and hands the block over when it is full or some
milliseconds old. Blocks are taken as they are, by one system call that writes them into a file in memory and for which
Python's global lock is let go; the frames in them are read when somebody looks. (In labkit.network.ring, which the wire
uses, each frame has a slot of its own and is there at once.)

Sources: packet(7), Documentation/networking/packet_mmap.rst (TPACKET_V3), linux/if_packet.h, memfd_create(2).
"""

from __future__ import annotations

import errno
import io
import os
import socket
import struct

from labkit.network.ring import (
    PACKET_OUTGOING,
    TP_STATUS_KERNEL,
    TP_STATUS_USER,
    PacketRing,
    RingFrame,
)

TPACKET_V3 = 2
BLOCK_BYTES = 1 << 17  # the largest frame of a loopback interface, 64 KiB and its header, fits
BLOCKS = 256  # 32 MiB: an eighth of a second at 1 Gbit/s, each frame twice
RETIRE_MS = 8  # a block that holds a frame is handed over after so long, full or not
STORE_BYTES = 16 << 20  # of a file; its memory is free again when it was read
LONGEST_S = 1.0  # to wait for that, on a machine that stands still

# struct tpacket_block_desc: version, offset of private data, status, frames, offset of the first, bytes in use.
_BLOCK = struct.Struct("=IIIIII")
_STATUS_AT = 8
_HANDED_BACK = struct.pack("=II", TP_STATUS_KERNEL, 0)  # status and number of frames
# struct tpacket3_hdr: next, seconds, nanoseconds, captured, length, status, start of the frame, …; at 48 sockaddr_ll.
_FRAME = struct.Struct("=IIIIIIH22xHHiHB")


class _Store(io.FileIO):
    """A file in memory with blocks: `end` is how many bytes of them, and `following` the next one, once it is full."""

    __del__ = io.FileIO.close  # in C: an interrupt can fall between two statements, and leaves no warning then

    def __init__(self) -> None:
        super().__init__(os.memfd_create("labkit-capture"), "r+")
        self.end = 0
        self.following: _Store | None = None


class BlockRing(PacketRing):
    """The frames of one namespace, on every interface.

    An interrupt between any two steps of these methods loses no frame and doubles none: what was done is written down
    in one assignment after it, and what was not written down is done again.

    Args:
        packet_socket: an AF_PACKET socket of protocol ``socket.htons(ETH_P_ALL)``, which the ring owns.

    Attributes:
        frames: those that were read, in order.

    Raises:
        OSError: the kernel refused the ring; the socket is closed.
    """

    def __init__(self, packet_socket: socket.socket) -> None:
        self._blocks = BLOCKS
        self.frames: list[RingFrame] = []
        first = _Store()
        self._taken = 0, first, 0  # blocks so far, the store that they go to, and how many bytes of it are in use
        self._read = first, 0, 0  # the store that is read, up to which byte, and how many frames there are so far
        self._back = 0  # blocks that were handed back
        # struct tpacket_req3. The size of slots counts for nothing here, and has to fit all the same.
        slots = BLOCKS * BLOCK_BYTES // 2048
        request = struct.pack("=IIIIIII", BLOCK_BYTES, BLOCKS, 2048, slots, RETIRE_MS, 0, 0)
        super().__init__(packet_socket, TPACKET_V3, request, BLOCKS * BLOCK_BYTES, ignore_outgoing=False)

    def collect(self) -> int:
        """Take the blocks that are handed over out of the kernel's memory, unread. Returns how many those were."""
        self._hand_back()
        block, store, used = self._taken
        if used >= STORE_BYTES:
            store.end, store.following = used, _Store()
            store, used = store.following, 0
        ready: list[memoryview] = []
        total = 0
        with memoryview(self._memory) as memory:
            while len(ready) < self._blocks:
                start = self._start(block)
                _, _, status, frames, _, length = _BLOCK.unpack_from(memory, start)
                if not status & TP_STATUS_USER:
                    break
                ready.append(memory[start : start + (length if frames else 0)])
                total += len(ready[-1])
                block += 1
            try:
                if total and os.pwritev(store.fileno(), ready, used) < total:
                    raise OSError(errno.ENOSPC, "no memory for what was captured")
            finally:
                for view in ready:
                    view.release()
        if ready:
            self._taken = block, store, used + total
            self._hand_back()
        return len(ready)

    def _start(self, block: int) -> int:
        return block % self._blocks * BLOCK_BYTES

    def _hand_back(self) -> None:
        while self._back != self._taken[0]:
            at = self._start(self._back) + _STATUS_AT
            self._memory[at : at + len(_HANDED_BACK)] = _HANDED_BACK
            self._back += 1

    def flush(self) -> None:
        """Collect all that was sent before this call."""
        self.collect()
        # The kernel counts a frame in before it hands it on to the receiver, so this sees all that anybody has.
        if _BLOCK.unpack_from(self._memory, self._start(self._taken[0]))[3]:
            self.wait(LONGEST_S)
            self.collect()

    def read(self) -> None:
        """Read what was collected into ``frames``. Also after the end."""
        while True:
            store, at, count = self._read
            _, last, used = self._taken
            end = used if store is last else store.end
            if at < end:
                blocks, begin = os.pread(store.fileno(), end - at, at), at
                while at < end:
                    found, following = _read(blocks, at - begin)
                    self.frames[count:] = found
                    _, at, count = self._read = store, at + following, count + len(found)
            elif store is last or store.following is None:
                return
            else:
                self._read = store.following, 0, count  # and the memory of the store that was read is free


def _read(blocks: bytes, start: int) -> tuple[list[RingFrame], int]:
    """The frames in the block that begins there, and its length."""
    _, _, _, frames, first, length = _BLOCK.unpack_from(blocks, start)
    at, found = start + first, []
    for _ in range(frames):
        following, seconds, ns, captured, size, _, begin, _, _, interface, _, kind = _FRAME.unpack_from(blocks, at)
        data = blocks[at + begin : at + begin + captured]
        found.append(RingFrame(seconds * 1_000_000_000 + ns, size, interface, kind == PACKET_OUTGOING, data))
        at += following
    return found, length
