"""The engine of the tiers with a kernel: a helper process that gives each host a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabClosed, LabUnavailable, NotReady
from labkit.network import rpc
from labkit.network.ring import ETH_P_ALL, Ring
from labkit.network.support import why_unavailable
from labkit.network.tiers import FIXED, KERNEL

START_TIMEOUT_S = 20.0
CAPTURE_BYTES = 32 << 20  # some 20,000 frames: at 20,000 packets a second (each twice) half a second without a look
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from labkit.network.helper import main; main()"


class Isolation:
    """Hosts in namespaces: the processes behind a lab, and the two sockets by which they are asked.

    Args:
        directory: of the lab; the guardian makes it with mode 0700, and removes it when all has ended.
        seed: for every random decision of the wire.
        fixed_sysctls: take the right to change kernel settings away, as a container with a read-only /proc/sys does.

    Raises:
        LabUnavailable: this machine gives no namespaces; the message says why and what would.
        NotReady: the helper did not answer in time.
    """

    def __init__(self, directory: Path, seed: int, *, fixed_sysctls: bool = False) -> None:
        if sys.platform != "linux":
            cause, way_out = why_unavailable()
            raise LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")
        self.directory = directory
        self.refused: dict[str, str] = {}
        self._pid = os.getpid()
        self._control, self._wire_socket, self._guardian = _start_helper(directory, seed, fixed_sysctls)
        try:
            self.refused |= self._hello()
        except BaseException:
            self.end()
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

    def add_host(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a host. Returns its interface, the interface's index and its IPv6 address. Raises OSError."""
        reply, _ = self.call({"op": "add_host", **request})
        self.refused |= reply["refused"]
        return reply

    def call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Ask the helper. Raises LabClosed, or the kernel's own OSError."""
        try:
            return rpc.call(self._control, request, descriptors)
        except rpc.Disconnected:
            raise LabClosed("the lab's helper process has ended, and its hosts with it: open the lab again") from None

    def call_wire(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the wire process. Raises LabClosed, or the kernel's own OSError."""
        try:
            return rpc.call(self._wire_socket, request)[0]
        except rpc.Disconnected:
            raise LabClosed("the lab's wire process has ended: open the lab again") from None

    def open_request(self, request: dict[str, Any], descriptors: Sequence[int]) -> socket.socket:
        """A request with more than one answer: they come on the socket returned."""
        return rpc.open_request(self._control, request, descriptors)

    def open_socket(self, host: str | None, family: int, kind: int, protocol: int) -> int:
        """A socket as a bare descriptor, on a host or (None) in the middle of the wire. Raises the kernel's OSError."""
        request = {"op": "socket", "host": host, "family": int(family), "type": int(kind), "proto": protocol}
        _, (descriptor,) = self.call(request)
        return descriptor

    def tap(self, host: str | None) -> Ring:
        """Every frame of a host from now on, or (None) of all links, seen from the middle of the wire."""
        everything = socket.htons(ETH_P_ALL)
        descriptor = self.open_socket(host, socket.AF_PACKET, socket.SOCK_RAW, everything)
        return Ring(socket.socket(fileno=descriptor), size_bytes=CAPTURE_BYTES)

    def end(self) -> None:
        """Let go of the helper, which ends for it, and wait until the kernel has ended the rest."""
        ours = os.getpid() == self._pid  # and not a forked child's, which must not end its parent's lab
        if ours:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._wire_socket.close()
        if self._guardian.stderr is not None:
            self._guardian.stderr.close()
        if not ours:
            return
        # Not guardian.wait(timeout): it polls, up to 50 ms late.
        with contextlib.suppress(ProcessLookupError):  # somebody has waited for it already
            descriptor = os.pidfd_open(self._guardian.pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                if not poll.poll(10_000):
                    self._guardian.kill()
            finally:
                os.close(descriptor)
        self._guardian.wait()
        shutil.rmtree(self.directory, ignore_errors=True)  # there only where the guardian was killed


def unavailable(failure: OSError) -> LabUnavailable:
    """What the kernel's refusal means, and the way out."""
    cause, way_out = why_unavailable(failure)
    return LabUnavailable(f"No lab here: {cause}. Way out: {way_out}.")


def _start_helper(
    directory: Path, seed: int, fixed_sysctls: bool
) -> tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]:
    """Start the helper process. Returns the two control sockets and the process."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wire_control, wire_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notebook = os.pidfd_open(os.getpid())
    try:
        passed = (theirs.fileno(), wire_theirs.fileno(), notebook)
        words = [str(_PACKAGE_ROOT), *map(str, passed), str(directory), str(seed), "fixed" if fixed_sysctls else "free"]
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, *words],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a notebook's interrupt goes to its whole process group
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
