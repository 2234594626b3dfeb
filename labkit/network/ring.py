"""A packet socket's receive ring: frames that the kernel writes into shared memory, with its own time stamps.

The wire reads its hosts' frames from such rings, and address translation its packets. A ring is not bound by
``net.core.rmem_max`` (208 KiB on most machines, about 90 full frames), so a reader that is held up for some
milliseconds loses nothing; and what it does lose, the kernel counts.

Sources: packet(7), Documentation/networking/packet_mmap.rst (TPACKET_V2), linux/if_packet.h.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
TPACKET_V2 = 1
TP_STATUS_KERNEL, TP_STATUS_USER = 0, 1
PACKET_OUTGOING = 4

WIRE_BYTES = 8 << 20  # of each ring of the wire and of address translation
SLOT_BYTES = 1600  # header, address and a frame of 1514 bytes
BLOCK_BYTES = 1 << 18
SLOTS_PER_BLOCK = BLOCK_BYTES // SLOT_BYTES
# struct tpacket2_hdr (status, length, captured length, offset of the frame, …, seconds, nanoseconds), padding,
# then struct sockaddr_ll from byte 32 on (family, protocol, interface index, hardware type, packet type).
_HEADER = struct.Struct("=IIIHHII8xHHiHB")
_STATUS = struct.Struct("=I")


class RingFrame(NamedTuple):
    """One frame out of a ring: kernel time (CLOCK_REALTIME, ns), bytes on the wire, interface, direction, bytes."""

    time_ns: int
    length: int
    interface: int
    outgoing: bool
    data: bytes


class PacketRing:
    """What a packet socket's rings have in common: this one, and the one in blocks (labkit.network.blocks).

    Args:
        packet_socket: an AF_PACKET socket, which the ring owns.
        version: the layout of the ring.
        request: the struct that asks for it.
        size_bytes: its memory.
        ignore_outgoing: leave out what this namespace sends.

    Raises:
        OSError: the kernel refused the ring; the socket is closed.
    """

    def __init__(
        self, packet_socket: socket.socket, version: int, request: bytes, size_bytes: int, *, ignore_outgoing: bool
    ) -> None:
        self.socket = packet_socket
        self._dropped = 0
        try:
            packet_socket.setsockopt(SOL_PACKET, PACKET_VERSION, version)
            if ignore_outgoing:
                packet_socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            _set_ring(packet_socket, request)
            self._memory = mmap.mmap(packet_socket.fileno(), size_bytes)
            self.dropped()
            self._dropped = 0  # what came before the ring was there was not asked for
        except OSError:
            packet_socket.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Wait until frames can be read; False at the deadline."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def dropped(self) -> int:
        """Frames that the kernel found no room for, since the ring was made."""
        _, dropped = struct.unpack("=II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._dropped += dropped  # the kernel's own count starts again at every look
        return self._dropped

    def close(self) -> None:
        """Give the ring back, with what is in it; closing twice is fine."""
        self.socket.close()
        with contextlib.suppress(BufferError):
            self._memory.close()


class Ring(PacketRing):
    """What arrives at one interface, a slot for each frame: it is there at once. None before ``bind``.

    Args:
        packet_socket: an AF_PACKET socket of protocol 0, which the ring owns.

    Raises:
        OSError: the kernel refused the ring; the socket is closed.
    """

    def __init__(self, packet_socket: socket.socket) -> None:
        blocks = WIRE_BYTES // BLOCK_BYTES
        self._offsets = [
            block * BLOCK_BYTES + slot * SLOT_BYTES for block in range(blocks) for slot in range(SLOTS_PER_BLOCK)
        ]
        self._next = 0
        request = struct.pack("=IIII", BLOCK_BYTES, blocks, SLOT_BYTES, len(self._offsets))
        super().__init__(packet_socket, TPACKET_V2, request, WIRE_BYTES, ignore_outgoing=True)

    def bind(self, interface: str) -> None:
        """Take the frames of this interface from now on."""
        self.socket.bind((interface, ETH_P_ALL))

    def frames(self, limit: int) -> Iterator[RingFrame]:
        """The frames that are there, at most `limit`, in order. Each slot goes back to the kernel when it was read."""
        memory, offsets, at = self._memory, self._offsets, self._next
        for _ in range(limit):
            offset = offsets[at]
            header = _HEADER.unpack_from(memory, offset)
            status, length, captured, start, _, seconds, nanoseconds, _, _, interface, _, kind = header
            if not status & TP_STATUS_USER:
                break
            data = memory[offset + start : offset + start + captured]
            _STATUS.pack_into(memory, offset, TP_STATUS_KERNEL)
            at = at + 1 if at + 1 < len(offsets) else 0
            self._next = at
            time_ns = seconds * 1_000_000_000 + nanoseconds
            yield RingFrame(time_ns, length, interface, kind == PACKET_OUTGOING, data)


def _set_ring(packet_socket: socket.socket, request: bytes) -> None:
    """setsockopt(2) by ctypes, which lets Python's global lock go: the kernel waits for an RCU grace period here."""
    libc = _libc()
    if libc.setsockopt(packet_socket.fileno(), SOL_PACKET, PACKET_RX_RING, request, len(request)):
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, f"packet ring: {os.strerror(number)}")


@cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


class RingAhead:
    """A ring that is made in a thread, for an interface that is not there yet."""

    def __init__(self) -> None:
        self._made: Ring | OSError | None = None
        _libc()  # here, and not in the thread, which would have to wait for its turn after it
        self._thread = threading.Thread(target=self._make)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._made = Ring(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        except OSError as exc:
            self._made = exc

    def get(self) -> Ring:
        """The ring, once it is made. Raises the kernel's own OSError."""
        self._thread.join()
        assert self._made is not None
        if isinstance(self._made, OSError):
            raise self._made
        return self._made
