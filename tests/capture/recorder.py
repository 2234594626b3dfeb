"""Records what servers and clients say to each other: real sockets on the loopback of a namespace of its own.

Run as a program, ``python recorder.py SCENARIO OUTPUT``, by the fixture ``record``; needs no privilege. Loopback
shows each frame twice, leaving and arriving, so a recording looks like one taken in the middle of a wire.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from labkit.capture.frames import Frame

PORT = 4433
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCSIFMTU, _SIOCETHTOOL = 0x8914, 0x8922, 0x8946
_OFFLOADS = {"TSO": 0x1F, "GSO": 0x24, "GRO": 0x2C}
_SO_TIMESTAMPNS = 35
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO = 26, 27, 55
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING = 263, 6, 4
NO_NAMESPACES = 77


def enter_namespace() -> None:
    """Move this process to a user and a network namespace of its own, where it is root over its loopback."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        print(f"no namespaces for this user: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(NO_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", b"lo", 1500))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", 1))
        for command in _OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP8x", b"lo", ctypes.addressof(value)))
    # No tail loss probes (RFC 8985): over loopback they come after 2 ms, so that a busy machine repeats what was not
    # lost; and of several segments that were lost they repeat the last one first.
    Path("/proc/sys/net/ipv4/tcp_early_retrans").write_text("0")
    # Wireshark knows many of the other ports by name, and takes a client's port for such a protocol's now and then.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("61000 64999")


class Recorder:
    """What a scenario gets: a port for its server, a place for its secrets, a way to lose segments."""

    port = PORT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keylog = folder / "keylog.txt"
        self.keylog.touch()
        self.frames: list[Frame] = []
        self._losses: list[tuple[int, int]] = []  # from when (nanoseconds of the frames' clock), how many
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # the most that the kernel gives
        self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._wait_for_stamps()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._sniff)
        self._thread.start()

    def _wait_for_stamps(self) -> None:
        """The kernel begins to stamp frames a moment after it was asked; until then a frame says when it was read."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))

            def stamped() -> bool:
                sock.sendto(b"", sock.getsockname())  # on loopback it has arrived when this returns
                sent_ns = time.time_ns()
                for _ in range(2):  # leaving and arriving
                    self._take()
                return all(frame.time_ns <= sent_ns for frame in self.frames[-2:])

            wait_until(stamped)
        self.frames.clear()

    def _sniff(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop], [], [])
            if self._socket in ready:
                self._take()
            else:  # stop only when nothing is left
                return

    def _take(self) -> None:
        data, ancillary, _, address = self._socket.recvmsg(65536, 64)
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
        sent = address[2] == _PACKET_OUTGOING
        (source_port,) = struct.unpack_from("!H", data, 34)
        sender, receiver = ("server", "client") if source_port == self.port else ("client", "server")
        frame = Frame(seconds * 10**9 + nanoseconds, data, sender if sent else receiver, sent, len(data))
        self.frames.append(frame)

    def catch_up(self) -> None:
        """Wait until every frame that was captured so far is written down: the kernel's buffer holds few of them."""
        wait_until(lambda: not select.select([self._socket], [], [], 0)[0])

    @contextlib.contextmanager
    def losing(self, server: socket.socket, client: socket.socket) -> Iterator[None]:
        """While this block runs, everything that goes to a server's TCP socket is lost before TCP sees it.

        It ends when all that its client has sent so far is lost.
        """
        drop_all = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0
        program = ctypes.create_string_buffer(drop_all)
        begin_ns, before = time.time_ns(), drops(server)
        server.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
        yield
        wait_until(lambda: drops(server) - before >= unacknowledged(client))
        server.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._losses.append((begin_ns, drops(server) - before))

    def finish(self) -> tuple[list[Frame], str]:
        """Stop, and return the frames and the key log. A lost frame left but did not arrive."""
        os.write(self._stopped, b".")
        self._thread.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert dropped == 0, f"the recording has holes: {dropped} frames"
        self._socket.close()
        os.close(self._stop)
        os.close(self._stopped)
        frames = sorted(self.frames, key=lambda frame: frame.time_ns)
        for begin_ns, count in self._losses:
            arrivals = (f for f in frames if f.host == "server" and not f.sent and f.time_ns >= begin_ns)
            lost = set(map(id, islice(arrivals, count)))
            frames = [frame for frame in frames if id(frame) not in lost]
        return frames, self.keylog.read_text()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what no event announces."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come about before the deadline"
        time.sleep(0.001)


def drops(sock: socket.socket) -> int:
    """How many packets for a socket the kernel has dropped: sock_diag(7), SK_MEMINFO_DROPS."""
    return int(struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[8])


def unacknowledged(sock: socket.socket) -> int:
    """Segments that a socket has sent and that nobody has acknowledged: tcpi_unacked of struct tcp_info."""
    return int(struct.unpack_from("=8x4xIIII", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))[3])


def main(scenario: str, output: str) -> None:
    enter_namespace()
    # Two processors may hand two frames of one sender to the capture in either order.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # Only now: libraries may start threads, and a process with threads cannot enter a user namespace.
    import scenarios_quic
    import scenarios_tcp
    import scenarios_tls
    import scenarios_webrtc

    known = {**vars(scenarios_tcp), **vars(scenarios_tls), **vars(scenarios_quic), **vars(scenarios_webrtc)}
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        try:
            known[scenario](recorder)
        finally:
            result = recorder.finish()
    Path(output).write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
