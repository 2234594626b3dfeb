"""What was sampled: steps, because a queue keeps its depth until it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from labkit import checks
from labkit.queues.tcp_info import TcpInfo
from labkit.recordable import Recordable

Key = TypeVar("Key")
Pairs = list[tuple[float, int]]

# What the sampling process tells of a connection, in this order.
CONNECTION = ("receive_queue", "unsent", "unacknowledged", "cwnd", "rtt_us", "send_window")


@dataclass(frozen=True)
class Steps:
    """Values over time, each holding until the next.

    Attributes:
        times_s: when each began, seconds after the first look.
        values: as many.
    """

    times_s: tuple[float, ...] = ()
    values: tuple[int, ...] = ()

    @property
    def peak(self) -> int:
        """The highest; 0 of nothing."""
        return max(self.values, default=0)

    @property
    def last(self) -> int:
        """The latest; 0 of nothing."""
        return self.values[-1] if self.values else 0

    def at(self, moment_s: float) -> int:
        """The value that held then; 0 before the first."""
        checks.number("moment_s", moment_s, -math.inf, unit="seconds")
        held = 0
        for time_s, value in zip(self.times_s, self.values, strict=True):
            if time_s > moment_s:
                break
            held = value
        return held

    def __repr__(self) -> str:
        return f"<Steps: {len(self.values)} values, peak {self.peak}, last {self.last}>"


@dataclass(frozen=True)
class ListenerHistory:
    """One listening socket over a run.

    Attributes:
        accept_queue: connections that wait for accept(2).
        limit: the backlog as the kernel took it, ``min(backlog, net.core.somaxconn)``.
    """

    accept_queue: Steps
    limit: Steps


@dataclass(frozen=True)
class ConnectionHistory:
    """One connection over a run. A connection that has gone has 0 from then on.

    Attributes:
        receive_queue: bytes that have arrived and were not read yet.
        unsent: bytes that were written and have not been sent for the first time yet.
        unacknowledged: bytes that were sent and not acknowledged yet. With ``unsent`` it is the send queue.
        cwnd: congestion window, segments.
        rtt_us: the kernel's smoothed round-trip time, microseconds.
        send_window: the peer's receive window as it last said, bytes.
    """

    receive_queue: Steps
    unsent: Steps
    unacknowledged: Steps
    cwnd: Steps
    rtt_us: Steps
    send_window: Steps


@dataclass(frozen=True)
class TcpHistory:
    """What the kernel knew of one connection over a run: each field of labkit.queues.tcp_info.TcpInfo as steps.

    A connection that has gone has 0 from then on.
    """

    ca_state: Steps
    cwnd: Steps
    ssthresh: Steps
    in_flight: Steps
    lost: Steps
    retransmissions: Steps
    rtt_us: Steps
    rttvar_us: Steps
    min_rtt_us: Steps
    rto_us: Steps
    mss: Steps
    path_mtu: Steps
    unsent: Steps
    send_window: Steps
    bytes_acked: Steps
    pacing_rate: Steps
    delivery_rate: Steps
    busy_us: Steps
    rwnd_limited_us: Steps
    sndbuf_limited_us: Steps


@dataclass(frozen=True)
class History(Recordable):
    """The queues of one port of a host over a run.

    Attributes:
        host: name of the host.
        port: the port.
        syn_queue: handshakes of which the last ACK is missing: sockets in SYN_RECV.
        listeners: by the listening socket's inode, ``os.fstat(sock.fileno()).st_ino``: several with SO_REUSEPORT.
        connections: by the client's address and port, "192.0.2.1:40000" or "[2001:db8::1]:40000", on either host.
        counters: kernel counters of the host that moved during the run, by how much.
        looks: how often the kernel was asked.
        duration_s: from the first look to the last.
        cpu_s: processor time that looking took.
        started_ns: the first look on the clock of captures, nanoseconds since 1970.
        tier: of the lab, or where and when it was recorded.
        tcp: all that the kernel knew of each connection, where it was asked for; by the same names as ``connections``.
    """

    host: str
    port: int
    syn_queue: Steps
    listeners: dict[int, ListenerHistory] = field(repr=False)
    connections: dict[str, ConnectionHistory] = field(repr=False)
    counters: dict[str, int] = field(repr=False)
    looks: int
    duration_s: float
    cpu_s: float
    started_ns: int
    tier: str
    tcp: dict[str, TcpHistory] = field(default_factory=dict, repr=False)

    @property
    def accept_queue(self) -> Steps:
        """Connections that wait for accept(2), those of all listeners of the port together."""
        return total([listener.accept_queue for listener in self.listeners.values()])

    @property
    def limit(self) -> Steps:
        """The backlog as the kernel took it, that of all listeners together."""
        return total([listener.limit for listener in self.listeners.values()])

    @property
    def rate_hz(self) -> float:
        """Looks in a second."""
        return self.looks / self.duration_s if self.duration_s else 0.0

    def as_data(self) -> dict[str, Any]:
        """See ``Recordable``."""
        facts = {name: getattr(self, name) for name in ("host", "port", "looks", "started_ns", "tier")}
        return {
            **facts,
            "duration_s": round(self.duration_s, 6),
            "cpu_s": round(self.cpu_s, 6),
            "syn_queue": _plain(self.syn_queue),
            "listeners": {str(inode): _plain_all(listener) for inode, listener in self.listeners.items()},
            "connections": {client: _plain_all(each) for client, each in self.connections.items()},
            "counters": dict(self.counters),
            **({"tcp": {client: _plain_all(each) for client, each in self.tcp.items()}} if self.tcp else {}),
        }

    @classmethod
    def of_data(cls, data: Mapping[str, Any], tier: str | None = None) -> History:
        """See ``Recordable``."""
        facts = {name: data[name] for name in ("host", "port", "looks", "started_ns", "duration_s", "cpu_s")}
        return cls(
            **facts,
            syn_queue=_steps(data["syn_queue"]),
            listeners={int(inode): ListenerHistory(**_steps_all(d)) for inode, d in data["listeners"].items()},
            connections={client: ConnectionHistory(**_steps_all(d)) for client, d in data["connections"].items()},
            counters=dict(data["counters"]),
            tier=tier or data["tier"],
            tcp={client: TcpHistory(**_steps_all(d)) for client, d in data.get("tcp", {}).items()},
        )

    def __repr__(self) -> str:
        queues = f"accept queue {self.accept_queue.peak} at most, SYN queue {self.syn_queue.peak} at most"
        return (
            f"<History {self.host}:{self.port}, {queues}, limit {self.limit.last}, "
            f"{len(self.connections)} connections, {self.looks} looks in {self.duration_s:.2f} s, tier: {self.tier}>"
        )


def total(parts: Sequence[Steps]) -> Steps:
    """The sum of several steps, as steps."""
    changes = sorted(
        (time_s, place, value)
        for place, part in enumerate(parts)
        for time_s, value in zip(part.times_s, part.values, strict=True)
    )
    held = [0] * len(parts)
    pairs: Pairs = []
    for time_s, place, value in changes:
        held[place] = value
        if pairs and pairs[-1][0] == time_s:
            pairs.pop()
        _add(pairs, time_s, sum(held))
    return _of_pairs(pairs)


def build(samples: Sequence[Mapping[str, Any]], end_ns: int, **about: Any) -> History:
    """Put together what the sampling process told.

    Args:
        samples: its lines, at least one.
        end_ns: when the run ended.
        about: host, port, counters and tier.
    """
    start_ns = samples[0]["at"]
    handshakes: Pairs = []
    listeners: dict[int, tuple[Pairs, Pairs]] = {}
    connections: dict[str, tuple[Pairs, ...]] = {}
    tcp: dict[str, tuple[Pairs, ...]] = {}
    for sample in samples:
        time_s = (sample["at"] - start_ns) / 1e9
        _add(handshakes, time_s, sample["syn_queue"])
        _follow(listeners, {int(inode): values for inode, values in sample["listeners"].items()}, time_s, 2)
        _follow(connections, sample["connections"], time_s, len(CONNECTION))
        _follow(tcp, sample.get("tcp", {}), time_s, len(TcpInfo._fields))
    return History(
        syn_queue=_of_pairs(handshakes),
        listeners={inode: ListenerHistory(*map(_of_pairs, pairs)) for inode, pairs in listeners.items()},
        connections={client: ConnectionHistory(*map(_of_pairs, pairs)) for client, pairs in connections.items()},
        tcp={client: TcpHistory(*map(_of_pairs, pairs)) for client, pairs in tcp.items()},
        looks=samples[-1]["looks"],
        cpu_s=samples[-1]["cpu_s"],
        duration_s=max(0, end_ns - start_ns) / 1e9,
        started_ns=start_ns,
        **about,
    )


def _follow(kept: dict[Key, Any], seen: Mapping[Key, Sequence[int]], time_s: float, width: int) -> None:
    """Add one look to what is kept of each; what is not seen any more has 0 from now on."""
    for key in seen:
        kept.setdefault(key, tuple([] for _ in range(width)))
    for key, columns in kept.items():
        for pairs, value in zip(columns, seen.get(key, [0] * width), strict=True):
            _add(pairs, time_s, value)


def _add(pairs: Pairs, time_s: float, value: int) -> None:
    if not pairs or pairs[-1][1] != value:
        pairs.append((time_s, value))


def _of_pairs(pairs: Iterable[tuple[float, int]]) -> Steps:
    kept = list(pairs)
    return Steps(tuple(time_s for time_s, _ in kept), tuple(value for _, value in kept))


def _plain(steps: Steps) -> list[list[float]]:
    return [[round(time_s, 6), value] for time_s, value in zip(steps.times_s, steps.values, strict=True)]


def _plain_all(of: ListenerHistory | ConnectionHistory | TcpHistory) -> dict[str, list[list[float]]]:
    return {name: _plain(steps) for name, steps in vars(of).items()}


def _steps(pairs: Iterable[Sequence[float]]) -> Steps:
    return _of_pairs((float(time_s), int(value)) for time_s, value in pairs)


def _steps_all(data: Mapping[str, Iterable[Sequence[float]]]) -> dict[str, Steps]:
    return {name: _steps(pairs) for name, pairs in data.items()}
