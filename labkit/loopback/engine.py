"""The notebook's side of the relay: starts it, asks it, and knows which real port stands for which endpoint."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit import child
from labkit.errors import LabClosed, NotAvailableHere, NotReady
from labkit.loopback import sockets
from labkit.loopback.bindings import Bindings, RelayClient
from labkit.loopback.frames import Endpoint
from labkit.loopback.ports import LOOPBACK_ADDRESS
from labkit.loopback.programs import Kept
from labkit.loopback.relay import RECORD, START_TIMEOUT_S
from labkit.network import patches
from labkit.network.addresses import Subnet
from labkit.network.engine import Address, Engine, Running, SocketAddress
from labkit.network.link import Rule
from labkit.network.ring import RingFrame
from labkit.network.tiers import LOOPBACK


class Loopback(Engine):
    """Hosts that are names for sockets on 127.0.0.1: the relay's process, and what is bound where.

    Args:
        directory, seed, hosts: see labkit.network.engine.Start.

    Raises:
        NotReady: the relay did not start in time.
    """

    tier = LOOPBACK

    def __init__(self, directory: Path, seed: int, hosts: Sequence[str]) -> None:
        super().__init__(directory)
        self._token = secrets.token_hex(16)
        self._pid = os.getpid()
        self.relay = RelayClient(self._token)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._relay = child.start("labkit.loopback.relay", directory, seed, **pipes)
        self._life: Any = None
        self._programs: dict[int, Kept] = {}  # by process id
        patches.install(sockets.LAYER)
        try:
            self.relay.control_port, stream_port = self._ports()
            self.bindings = Bindings(self.relay, stream_port, self.hosts)
            self._life = self.relay.send({"op": "live"})
            for name in hosts:
                self.add_host(name)
        except BaseException:
            self.end()
            raise

    def _ports(self) -> tuple[int, int]:
        """The relay's first words."""
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._relay.stdin:
            self._relay.stdin.write(self._token.encode() + b"\n")
        timer = threading.Timer(START_TIMEOUT_S, self._relay.kill)
        timer.start()
        try:
            with self._relay.stdout:
                words = self._relay.stdout.readline().split()
        finally:
            timer.cancel()
        if len(words) != 2:
            assert self._relay.stderr is not None
            said = self._relay.stderr.read().decode("utf-8", "replace").strip()[-2000:]
            raise NotReady(f"the lab's relay did not start. It said: {said or 'nothing'}. Try again, or labkit doctor")
        return int(words[0]), int(words[1])

    @property
    def first_pid(self) -> int:
        """Process id of the relay, the only process beside those of programs."""
        return self._relay.pid

    # What is asked of every engine.

    def add_subnet(self) -> Subnet:
        raise _needs_kernel("a lab has one network, and no router")

    def _make_host(self, address: Address) -> tuple[Address, str]:
        # A name and a number; there is no IPv6.
        return address._replace(ip6="", interface_index=address.number), address.name

    def _make_interface(self, address: Address) -> tuple[Address, str]:
        raise _needs_kernel("a host has one interface")

    def _set_mtu(self, label: str, mtu: int | None) -> None:
        raise _needs_kernel("a link has no MTU")

    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int:
        self.check_open()
        if family not in (socket.AF_INET, socket.AF_INET6) or host is None:
            raise _needs_kernel(f"a socket of family {family} needs a network of its own")
        return sockets.open_on(self.bindings, self.hosts[host].number, family, kind, protocol)

    def read_file(self, host: str, path: str) -> str:
        raise _needs_kernel("the counters and settings of a host's kernel cannot be read")

    def write_file(self, host: str, path: str, text: str) -> None:
        raise _needs_kernel("the settings of a host's kernel cannot be changed")

    def namespaces(self, host: str) -> Mapping[str, int]:
        raise _needs_kernel("a process cannot be on a host")

    def start_program(
        self, host: str, argv: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[int]
    ) -> Running:
        """A program that was given addresses of this tier; no other, because it would be on the machine's network."""
        self.check_open()
        if not self.bindings.for_a_program(self.hosts[host].number, [*argv, *env.values()]):
            raise _needs_kernel(
                "a program runs on a host only with an address that host.bound(port) or host.door(server, port) gave, "
                "in its arguments or variables,"
            )
        self._programs = {pid: kept for pid, kept in self._programs.items() if not kept.over}
        kept = Kept(self.directory, argv, env, cwd, files)
        self._programs[kept.pid] = kept
        return kept

    def signal_program(self, pid: int, number: int) -> None:
        self.check_open()
        if (kept := self._programs.get(pid)) is not None:
            kept.signal(number)

    def bound(self, host: str, port: int) -> SocketAddress:
        self.check_open()
        return self.bindings.bound(Endpoint(self.hosts[host].number, port))

    def door(self, host: str, target: str, port: int) -> SocketAddress:
        self.check_open()
        return self.bindings.door(self.hosts[host].number, Endpoint(self.hosts[target].number, port))

    def add_rule(self, rule: Rule) -> int:
        """A rule that drops some TCP segments and not all is refused: nobody would repair it."""
        if rule.action == "drop" and rule.protocol != "udp" and (rule.count is not None or rule.skip):
            raise _needs_kernel("a lost TCP segment is sent again by a kernel only")
        if rule.protocol in ("icmp", "icmpv6"):
            raise _needs_kernel("there is no ICMP")
        return super().add_rule(rule)

    def _ask_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        self.check_open()
        return self.relay.ask(request)

    def tap(self, host: str | None) -> TapSource:
        number = None if host is None else self.hosts[host].number
        return TapSource(self.relay.send({"op": "tap", "host": number}), host is None)

    def end(self) -> None:
        """Let go of the relay, which ends for it."""
        if not self.closed:
            patches.uninstall(sockets.LAYER)
        self.closed = self.relay.closed = True
        if hasattr(self, "bindings"):  # else it ended before it was there
            self.bindings.close()
        for kept in list(self._programs.values()):
            kept.end()  # in a forked child this lets go of it, and ends nothing
        if self._life is not None:
            self._life.close()
        for pipe in (self._relay.stdin, self._relay.stdout, self._relay.stderr):
            if pipe is not None:
                pipe.close()
        if os.getpid() != self._pid:  # a forked child, which must not end its parent's lab
            return
        if self._life is None:
            self._relay.terminate()
        child.end(self._relay)
        shutil.rmtree(self.directory, ignore_errors=True)  # there only where the relay was killed


class TapSource:
    """Frames that the relay copies: what a ring is on the other tiers.

    Args:
        connection: to the relay; owned by this.
        middle: whether it is the middle of the wire, where what a host sends comes in.

    Raises:
        LabClosed: the relay has gone.
    """

    def __init__(self, connection: Any, middle: bool) -> None:
        self._connection, self._middle = connection, middle
        self._buffer = b""
        self.frames: list[RingFrame] = []
        self._marks = 0  # asked for and not come; more than one after an interrupt
        self._record()  # the mark that says that it has begun: what comes now is seen

    def collect(self) -> int:
        """See labkit.network.engine.Source. A lab that was closed has no more."""
        self.frames.extend(self._come())
        return 0

    def flush(self) -> None:
        """The same: the relay says what it has seen before it was asked."""
        self.collect()

    def read(self) -> None:
        """Nothing is left to do: what has come is read already."""

    def _come(self) -> Iterator[RingFrame]:
        try:
            self._marks += 1
            self._connection.sendall(b"m")
            while self._marks:
                if (record := self._record()) is not None:
                    yield record
                else:
                    self._marks -= 1
        except (OSError, LabClosed):
            return

    def _record(self) -> RingFrame | None:
        """The next one; None for a mark."""
        time_ns, number, sent, length = RECORD.unpack(self._take(RECORD.size))
        if not length:
            return None
        return RingFrame(time_ns, length, number, bool(sent) != self._middle, self._take(length))

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._connection.recv(1 << 20)
            if not data:
                raise LabClosed("the lab's relay has ended")
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def dropped(self) -> int:
        return 0  # the relay keeps all of them

    def close(self) -> None:
        self._connection.close()


def _needs_kernel(what: str) -> NotAvailableHere:
    return NotAvailableHere(
        f"{what} on the tier {LOOPBACK!r}, whose hosts are sockets on {LOOPBACK_ADDRESS}. "
        "`labkit doctor` says what would give this machine a higher tier"
    )
