"""The notebook's side of the relay: starts it, asks it, and knows which real port stands for which endpoint."""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabClosed, NotAvailableHere, NotReady
from labkit.loopback import sockets
from labkit.loopback.frames import Endpoint
from labkit.loopback.relay import LOOPBACK_ADDRESS, RECORD, START_TIMEOUT_S
from labkit.network.engine import Address, Engine, Running
from labkit.network.link import Rule
from labkit.network.ring import RingFrame
from labkit.network.tiers import LOOPBACK

ANSWER_TIMEOUT_S = 20.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from labkit.loopback.relay import main; main()"


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
        self.real_ports: dict[tuple[int, Endpoint], int] = {}  # by kind of socket and endpoint: where it is bound
        self.local: dict[tuple[int, int], tuple[str, int]] = {}  # by kind and real port: the lab's address
        self.remote: dict[tuple[int, int], tuple[str, int]] = {}  # the same for what is on the relay's other side
        self.mouths: dict[Endpoint, int] = {}
        self._token = secrets.token_hex(16)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        sockets.prepare()
        self._relay = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, str(_PACKAGE_ROOT), str(directory), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a notebook's interrupt goes to its whole process group
        )
        self._life: Any = None
        try:
            self._control_port, self.stream_port = self._ports()
            self._life = self._send({"op": "live"})
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
        """Process id of the relay, the only process."""
        return self._relay.pid

    # What is asked of every engine.

    def _make_host(self, number: int, name: str, ip: str, ip6: str) -> tuple[Address, str]:
        return Address(number, name, ip, "", number), name  # a name and a number; there is no IPv6

    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int:
        self.check_open()
        if family not in (socket.AF_INET, socket.AF_INET6) or host is None:
            raise _needs_kernel(f"a socket of family {family} needs a network of its own")
        return sockets.open_on(self, self.hosts[host].number, family, kind, protocol)

    def read_file(self, host: str, path: str) -> str:
        raise _needs_kernel("the counters and settings of a host's kernel cannot be read")

    def write_file(self, host: str, path: str, text: str) -> None:
        raise _needs_kernel("the settings of a host's kernel cannot be changed")

    def start_program(self, *_: object) -> Running:
        raise _needs_kernel("a program cannot be run on a host")

    def signal_program(self, pid: int, number: int) -> None:
        raise _needs_kernel("a program cannot be run on a host")

    def add_rule(self, rule: Rule) -> int:
        """A rule that drops some TCP segments and not all is refused: nobody would repair it."""
        if rule.action == "drop" and rule.protocol != "udp" and (rule.count is not None or rule.skip):
            raise _needs_kernel("a lost TCP segment is sent again by a kernel only")
        return super().add_rule(rule)

    def _ask_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.ask(request)

    def tap(self, host: str | None) -> TapSource:
        return TapSource(
            self._send({"op": "tap", "host": None if host is None else self.hosts[host].number}), host is None
        )

    def end(self) -> None:
        """Let go of the relay, which ends for it."""
        self.closed = True
        if self._life is not None:
            self._life.close()
        for pipe in (self._relay.stdin, self._relay.stdout, self._relay.stderr):
            if pipe is not None:
                pipe.close()
        if os.getpid() != self._pid:  # a forked child, which must not end its parent's lab
            return
        if self._life is None:
            self._relay.terminate()
        try:
            self._relay.wait(10)
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._relay.wait()
        shutil.rmtree(self.directory, ignore_errors=True)  # there only where the relay was killed

    # What its sockets ask.

    def _send(self, request: dict[str, Any]) -> Any:
        """A request on a connection of its own. Not by ``socket.socket``, which inside ``with host:`` is the host's."""
        self.check_open()
        connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect((LOOPBACK_ADDRESS, self._control_port))
            connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            connection.sendall(json.dumps({**request, "token": self._token}).encode() + b"\n")
        except ConnectionError:
            connection.close()
            raise LabClosed("the lab's relay has ended: open the lab again") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer. Raises OSError as the relay says, LabClosed where it has gone."""
        with contextlib.closing(self._send(request)) as connection:
            return self.answer(connection)

    def start(self, request: dict[str, Any]) -> Any:
        """A request whose answer takes its time: the connection on which it comes, see ``answer``."""
        return self._send(request)

    @staticmethod
    def answer(connection: Any) -> dict[str, Any]:
        """The answer that a connection brings, waiting as long as its time-out allows."""
        data = b""
        while not data.endswith(b"\n"):
            try:
                part = connection.recv(65536)
            except ConnectionError:
                part = b""
            if not part:
                raise LabClosed("the lab's relay has ended: open the lab again")
            data += part
        reply: dict[str, Any] = json.loads(data)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        return reply

    def mouth(self, endpoint: Endpoint) -> int:
        """The real port to which datagrams for an endpoint are sent."""
        port = self.mouths.get(endpoint)
        if port is None:
            port = self.ask({"op": "mouth", "number": endpoint.number, "port": endpoint.port})["mouth"]
            self.know_mouth(endpoint, port)
        return port

    def know_mouth(self, endpoint: Endpoint, port: int) -> None:
        self.mouths[endpoint] = port
        self.remote[socket.SOCK_DGRAM, port] = f"10.77.0.{endpoint.number}", endpoint.port


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
        self._marks = 0  # asked for and not come; more than one after an interrupt
        self._record()  # the mark that says that it has begun: what comes now is seen

    def frames(self, limit: int) -> Iterator[RingFrame]:
        """Those since the last look. A lab that was closed has no more."""
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
