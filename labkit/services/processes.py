"""The processes of a service, as this machine sees them: what memory they take, where they listen."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.network.engine import Engine
from labkit.network.host import Host
from labkit.network.process import Program
from labkit.network.tiers import LOOPBACK

if TYPE_CHECKING:
    import psutil

GONE_S = 5.0


@dataclass(frozen=True)
class Memory:
    """What a service's processes take.

    Attributes:
        kind: "PSS", in which what several processes share counts once (proc_pid_smaps(5)), or "RSS", where this
            machine does not tell that.
        by_name: bytes by the program's name, of all processes of that name together.
    """

    kind: str
    by_name: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Of all of them."""
        return sum(self.by_name.values())

    @property
    def mib(self) -> float:
        """Of all of them, MiB (2**20 bytes)."""
        return self.total_bytes / 2**20

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in self.by_name.items())
        return f"<Memory {self.mib:.0f} MiB {self.kind}: {parts or 'no process'}>"


def memory(pids: Sequence[int]) -> Memory:
    """Of these processes. Those that end meanwhile count nothing."""
    import psutil

    for kind, field in (("PSS", "pss"), ("RSS", "rss")):
        found: Counter[str] = Counter()
        try:
            for process in _each(pids):
                with contextlib.suppress(psutil.NoSuchProcess):
                    info = process.memory_full_info() if kind == "PSS" else process.memory_info()
                    found[process.name()] += getattr(info, field)
        except (AttributeError, psutil.AccessDenied):
            continue
        return Memory(kind, dict(found.most_common()))
    raise LabError("this machine tells nothing of its processes' memory")


def _each(pids: Iterable[int]) -> Iterator[psutil.Process]:
    import psutil

    for pid in pids:
        try:
            yield psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue


def family(pids: Sequence[int]) -> list[psutil.Process]:
    """These processes, to be ended later: psutil knows them even where another one gets their number."""
    return list(_each(pids))


def end(members: Sequence[psutil.Process]) -> None:
    """Kill those that are left, and wait until they have gone."""
    import psutil

    for process in members:
        with contextlib.suppress(psutil.Error):  # it has ended, or has become another user's
            process.kill()
    psutil.wait_procs(members, timeout=GONE_S)


def pids_of(engine: Engine, programs: Sequence[Program]) -> list[int]:
    """These programs and all that descend from them, by the process ids that this process sees."""
    import psutil

    inside = {program.pid for program in programs}
    firsts = inside if engine.tier == LOOPBACK else _seen_from_outside(engine, inside)
    found: dict[int, None] = {}
    for first in _each(firsts):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= dict.fromkeys([first.pid, *(child.pid for child in first.children(recursive=True))])
    return list(found)


def _seen_from_outside(engine: Engine, inside: set[int]) -> set[int]:
    """A lab counts its processes from 1 in a PID namespace of its own; this process is outside of that."""
    found = set()
    for process in _each([engine.first_pid]):
        for child in process.children(recursive=True):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{child.pid}/status").read_text()
                if int(status.split("NSpid:")[1].splitlines()[0].split()[-1]) in inside:
                    found.add(child.pid)
    return found


def check_listeners(host: Host, pids: Sequence[int]) -> None:
    """On the tier "loopback" a program is on the machine's own network: it may listen on 127.0.0.1 alone.

    Raises:
        LabError: it listens elsewhere.
    """
    if host.engine.tier != LOOPBACK:
        return
    import psutil

    for process in _each(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections("inet"):
                open_to_others = each.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and each.laddr
                if open_to_others and each.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                    raise LabError(
                        f"{process.name()!r} listens on {each.laddr.ip} port {each.laddr.port}, where others could "
                        f"reach it: on the tier {LOOPBACK!r} let it listen where host.bound(port) says, for which "
                        f"'{host.fqdn}:{each.laddr.port}' in its configuration stands"
                    )
