"""The engine of the tiers with a kernel: a helper process that gives each host a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import child
from labkit.errors import LabClosed, LabUnavailable, NotReady
from labkit.network import rpc
from labkit.network.engine import Address, Engine
from labkit.network.support import why_unavailable
from labkit.network.tiers import FIXED, KERNEL

if TYPE_CHECKING:
    from labkit.network.blocks import BlockRing

START_TIMEOUT_S = 20.0


class Isolation(Engine):
    """Hosts in namespaces: the processes behind a lab, and the two sockets by which they are asked.

    Args:
        directory, seed, hosts: see labkit.network.engine.Start.
        fixed_sysctls: take the right to change kernel settings away, as a container with a read-only /proc/sys does.

    Raises:
        LabUnavailable: this machine gives no namespaces; the message says why and what would.
        NotReady: the helper did not answer in time.
    """

    def __init__(self, directory: Path, seed: int, hosts: Sequence[str], *, fixed_sysctls: bool = False) -> None:
        if sys.platform != "linux":
            cause, way_out = why_unavailable()
            raise LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")
        super().__init__(directory)
        self._pid = os.getpid()
        self._namespaces: dict[str, dict[str, int]] = {}
        self._control, self._wire_socket, self._guardian = _start_helper(directory, seed, len(hosts), fixed_sysctls)
        try:
            # While the helper starts, on another processor: what the notebook will need, which takes as long.
            import labkit.network.host
            import labkit.network.interface
            import labkit.network.within  # noqa: F401

            self.refused |= self._hello()
            self._add_first_hosts(hosts)
        except BaseException as exc:
            self.end()
            if isinstance(exc, OSError) and exc.errno is not None:  # the kernel's, not a deadline of ours
                raise unavailable(exc) from exc
            raise

    def _hello(self) -> dict[str, str]:
        """The helper's first message: it is there, or why it cannot be."""
        self._control.settimeout(START_TIMEOUT_S)
        try:
            hello, _ = rpc.receive(self._control)
        except rpc.Disconnected:
            status = self._guardian.wait(START_TIMEOUT_S)
            raise LabUnavailable(
                f"No lab here: the helper process ended with {status} before it was ready. "
                f"It said: {_said(self._guardian) or 'nothing'}. "
                "Way out: report this with the output of `labkit doctor`."
            ) from None
        except TimeoutError:
            raise NotReady(
                f"the lab's helper was not ready in {START_TIMEOUT_S:g} s: try again, or labkit doctor"
            ) from None
        if "errno" in hello:
            raise unavailable(OSError(hello["errno"], hello["error"]))
        self._control.settimeout(None)
        self.helper_pid: int = hello["pid"]
        return dict(hello["refused"])

    @property
    def tier(self) -> str:
        """KERNEL, or FIXED where the kernel refused a setting."""
        return FIXED if any(name.startswith("net.") for name in self.refused) else KERNEL

    @property
    def first_pid(self) -> int:
        """Process id of the guardian, the parent of all others."""
        return self._guardian.pid

    def _make_host(self, address: Address) -> tuple[Address, str]:
        return self._make("add_host", address)

    def _make_interface(self, address: Address) -> tuple[Address, str]:
        return self._make("add_interface", address)

    def _make(self, operation: str, address: Address) -> tuple[Address, str]:
        bits = self.subnets[address.subnet].bits
        reply, _ = self._ask({"op": operation, "bits": bits, **address._asdict()})
        self.refused |= reply["refused"]
        chosen = {name: reply[name] for name in ("ip6", "interface_index", "device_index")}
        return address._replace(**chosen), reply["interface"]

    def _set_mtu(self, label: str, mtu: int | None) -> None:
        from labkit.network.netlink import ETHERNET_MTU, RouteSocket

        address = self.interfaces[label]
        netlink = self.open_socket(address.name, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        with RouteSocket(socket.socket(fileno=netlink)) as route:
            route.set_mtu(address.device_index, mtu or ETHERNET_MTU)

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self.check_open()
        try:
            return rpc.call(self._control, request)
        except rpc.Disconnected:
            raise LabClosed("the lab's helper process has ended, and its hosts with it: open the lab again") from None

    def _ask_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        self.check_open()
        try:
            return rpc.call(self._wire_socket, request)[0]
        except rpc.Disconnected:
            raise LabClosed("the lab's wire process has ended: open the lab again") from None

    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int:
        request = {"op": "socket", "host": host, "family": int(family), "type": int(kind), "proto": protocol}
        _, (descriptor,) = self._ask(request)
        return descriptor

    def namespaces(self, host: str) -> Mapping[str, int]:
        if host not in self._namespaces:
            reply, descriptors = self._ask({"op": "namespaces", "host": host})
            self._namespaces[host] = dict(zip(reply["kinds"], descriptors, strict=True))
        return self._namespaces[host]

    def read_file(self, host: str, path: str) -> str:
        return str(self._ask({"op": "read", "host": host, "path": path})[0]["text"])

    def write_file(self, host: str, path: str, text: str) -> None:
        self._ask({"op": "write", "host": host, "path": path, "text": text})

    def start_program(
        self, host: str, argv: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[int]
    ) -> Spawned:
        self.check_open()
        request = {"op": "spawn", "host": host, "argv": argv, "env": env, "cwd": cwd}
        try:
            return Spawned(rpc.open_request(self._control, request, files))
        except rpc.Disconnected as exc:
            raise LabClosed(f"{argv[0]!r} was not started: the lab is closed") from exc

    def signal_program(self, pid: int, number: int) -> None:
        self._ask({"op": "signal", "pid": pid, "signal": int(number)})

    def tap(self, host: str | None) -> BlockRing:
        from labkit.network.blocks import BlockRing
        from labkit.network.ring import ETH_P_ALL

        everything = socket.htons(ETH_P_ALL)
        descriptor = self.open_socket(host, socket.AF_PACKET, socket.SOCK_RAW, everything)
        return BlockRing(socket.socket(fileno=descriptor))

    def end(self) -> None:
        """Let go of the helper, which ends for it, and wait until the kernel has ended the rest."""
        self.closed = True
        ours = os.getpid() == self._pid  # and not a forked child's, which must not end its parent's lab
        if ours:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._wire_socket.close()
        for kinds in self._namespaces.values():
            for descriptor in kinds.values():
                os.close(descriptor)
        self._namespaces.clear()
        if self._guardian.stderr is not None:
            self._guardian.stderr.close()
        if not ours:
            return
        child.end(self._guardian)
        shutil.rmtree(self.directory, ignore_errors=True)  # there only where the guardian was killed


class Spawned:
    """A program that the helper starts: the socket on which it says that it runs, and how it ended.

    By the end of this socket the helper knows that nobody wants the program: it is killed.
    """

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        try:
            status.settimeout(START_TIMEOUT_S)
            reply, _ = rpc.receive(status)
            if "errno" in reply:
                raise OSError(reply["errno"], reply["error"])
            self.pid: int = reply["pid"]
        except BaseException:
            status.close()
            raise

    def fileno(self) -> int:
        return self._status.fileno()

    def wait(self, timeout_s: float) -> int:
        self._status.settimeout(timeout_s)
        try:
            reply, _ = rpc.receive(self._status)
        except BlockingIOError:  # for a deadline of 0
            raise TimeoutError from None
        except rpc.Disconnected:
            reply = {"exit": -signal.SIGKILL}  # the lab was closed, and the kernel ended the program
        self._status.close()
        return int(reply["exit"])

    def close(self) -> None:
        self._status.close()


def unavailable(failure: OSError) -> LabUnavailable:
    """What the kernel's refusal means, and the way out."""
    cause, way_out = why_unavailable(failure)
    return LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")


def _start_helper(
    directory: Path, seed: int, interfaces: int, fixed_sysctls: bool
) -> tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]:
    """Start the helper process. Returns the two control sockets and the process."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire_control, wire_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notebook = os.pidfd_open(os.getpid())
    try:
        passed = (theirs.fileno(), wire_theirs.fileno(), notebook)
        words = (directory, seed, interfaces, "fixed" if fixed_sysctls else "free")
        guardian = child.start(
            "labkit.network.helper",
            *passed,
            *words,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except BaseException:
        control.close()
        wire_control.close()
        raise
    finally:
        theirs.close()
        wire_theirs.close()
        os.close(notebook)
    return control, wire_control, guardian


def _said(guardian: subprocess.Popen[bytes]) -> str:
    assert guardian.stderr is not None
    return guardian.stderr.read().decode("utf-8", "replace").strip()[-2000:]
