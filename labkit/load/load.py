"""``load()``: requests for a server from a host of the lab, and ``Load``: what came of them."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hdrh.histogram import HdrHistogram

from labkit import checks, child
from labkit.errors import InvalidValue, NotReady
from labkit.network.host import Host
from labkit.network.process import Completed
from labkit.recordable import Recordable

DEFAULT = b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n"  # its place with new connections
MOST_CLIENTS = 10_000
LIMIT = 0.9  # from this share of its time on, a Python process that works is as likely the limit as the server
STARTING_S = 20.0  # what the generator may take to start, wait for the last responses and end, on a busy machine
LOOK_S = 1.0

Requests = bytes | Sequence[tuple[bytes, float]]


@dataclass(frozen=True)
class Load(Recordable):
    """What a load was, and what came of it. Plain data: see ``as_data``.

    sent = completed + the errors + unfinished, and those due in the open loop are sent + unsent.

    Attributes:
        mode: "closed" (a client's next request follows its response) or "open" (requests are due at a rate).
        source, target, port: name of the host it ran on, IP address and port of the server.
        clients, rate, new_connections, seconds, warmup_s, timeout_s, seed: as asked; see ``load``.
        requests: the kinds of requests, each by its first line.
        weights: of the kinds.
        sent: requests that began after the warm-up.
        completed: those with a complete 2xx response.
        errors: the others by kind: "refused", "reset", "timeout", "closed" (before the response was complete), "status"
            (complete, and not 2xx), "malformed" (no HTTP/1.1), or the kernel's name of the error, such as "EMFILE".
        unfinished: still without a response when the generator ended.
        unsent: open loop: due, and never sent, because no connection became free. They are in no histogram.
        duration_s: how long it took, without the warm-up and the wait for the last responses.
        cpu_s: CPU time of the generator itself in that time.
        latency, service: HDR histograms in microseconds by kind, encoded; see ``latencies``. Service times are those
            from the send, kept in the open loop only: in the closed one they are the latencies.
        tier: of the lab, or "recorded, …".
    """

    mode: str
    source: str
    target: str
    port: int
    clients: int
    rate: float | None
    new_connections: bool
    seconds: float
    warmup_s: float
    timeout_s: float
    seed: int
    requests: tuple[str, ...]
    weights: tuple[float, ...]
    sent: int
    completed: int
    errors: dict[str, int]
    unfinished: int
    unsent: int
    duration_s: float
    cpu_s: float
    latency: tuple[str, ...]
    service: tuple[str, ...]
    tier: str

    @property
    def throughput(self) -> float:
        """Completed requests per second."""
        return self.completed / self.duration_s

    @property
    def busy(self) -> float:
        """The share of the time in which the generator itself computed, from 0 to 1.

        Near 1 the generator was the limit, or shared it with the server: a quicker server would not show.
        """
        return self.cpu_s / self.duration_s

    @property
    def mean_ms(self) -> float:
        """Mean latency of the completed requests, milliseconds; nan without any."""
        histogram = self.latencies()
        return float(histogram.get_mean_value()) / 1000 if histogram.get_total_count() else float("nan")

    def percentile_ms(self, p: float, kind: int | None = None, corrected: bool = True) -> float:
        """The latency that p percent of the completed requests did not exceed.

        Args:
            p: from 0 to 100.
            kind: of the requests of this kind alone: its place in the list of requests, from 0.
            corrected: open loop: from when a request was due. False: from when it was sent, which leaves out how long
                it waited for its turn ("coordinated omission"). In the closed loop both are the same.

        Returns:
            milliseconds, to three digits; nan where no request was completed.

        Raises:
            InvalidValue: a percentage or a kind that cannot be.
        """
        checks.number("p", p, 0, 100, unit="percent")
        histogram = self.latencies(kind, corrected)
        return float(histogram.get_value_at_percentile(p)) / 1000 if histogram.get_total_count() else float("nan")

    def latencies(self, kind: int | None = None, corrected: bool = True) -> HdrHistogram:
        """The latencies of the completed requests: a histogram of the package hdrhistogram, in microseconds.

        Args:
            kind, corrected: as in ``percentile_ms``.

        Raises:
            InvalidValue: a kind that there is not.
        """
        checks.flag("corrected", corrected)
        encoded = self.latency if corrected or not self.service else self.service
        if kind is not None:
            kind = checks.whole("kind", kind, 0, len(self.requests) - 1)
            encoded = encoded[kind : kind + 1]
        first, *others = map(HdrHistogram.decode, encoded)
        for other in others:
            first.add(other)
        return first

    def as_data(self) -> dict[str, Any]:
        """See ``Recordable``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_data(cls, data: Mapping[str, Any], tier: str | None = None) -> Load:
        """See ``Recordable``. Raises InvalidValue: something is missing, or there is too much."""
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(data)):
            raise InvalidValue(f"the data of a load has {', '.join(sorted(names))}; missing or too much: {wrong}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        values["errors"] = dict(values["errors"])
        return cls(**{**values, "tier": tier or values["tier"]})

    def __repr__(self) -> str:
        pace = f"{self.rate:g} requests/s due" if self.rate else "closed loop"
        connections = f"{self.clients} connection{'s' if self.clients > 1 else ''}"
        if self.new_connections:
            connections += " at once, a new one for each request"
        times = ", ".join(f"p{p:g} {self.percentile_ms(p):.3g} ms" for p in (50, 99) if self.completed)
        wrong = [f"{count} {kind}" for kind, count in sorted(self.errors.items())]
        wrong += [f"{getattr(self, name)} {name}" for name in ("unfinished", "unsent") if getattr(self, name)]
        warning = " (it may have been the limit, and not the server)" if self.busy >= LIMIT else ""
        return (
            f"<Load {self.source} → {self.target}:{self.port}, {pace}, {connections}, {self.duration_s:.3g} s: "
            f"{self.throughput:.0f} completed/s{', ' + times if times else ''}\n"
            f" {self.completed} of {self.sent} completed, {', '.join(wrong) or 'no errors'}, "
            f"generator {self.busy:.0%} busy{warning}, tier {self.tier}>"
        )


def load(
    host: Host,
    target: Host | str,
    port: int,
    *,
    clients: int = 16,
    seconds: float = 2.0,
    rate: float | None = None,
    new_connections: bool = False,
    requests: Requests = DEFAULT,
    warmup_s: float = 0.2,
    timeout_s: float = 5.0,
    seed: int = 0,
) -> Load:
    """Load a server from a host, and wait for the end.

    Args:
        host: where the generator runs, a program of its own.
        target: the server: a host of the same lab, or an IP address.
        port: the server's port.
        clients: connections at the same time, from 1 to 10000.
        seconds: how long, without the warm-up.
        rate: None for the closed loop: each client sends its next request as soon as its response is complete. A
            number for the open loop: so many requests a second, request i due i / rate seconds after the start. A due
            request waits until a connection is free, and its latency counts from the moment it was due.
        new_connections: a connection for each request, as part of its latency. Ask for ``Connection: close``, as the
            default request does: where the server does not close first, the generator does, and the kernel keeps each
            port for a minute. Some 10000 connections later it searches long for one that is free.
        requests: the bytes of a request, or a list of (bytes, weight). They are sent as given.
        warmup_s: seconds before the time, in which the load runs and nothing is counted; it leaves no backlog.
        timeout_s: seconds that a request may take from the send; then it is a "timeout" and its connection replaced.
        seed: for the choice of requests by weight.

    Returns:
        what came of it. Errors are counted, not raised.

    Raises:
        InvalidValue: an argument that cannot be; nothing was started.
        NotAvailableHere: the tier runs no programs on hosts. LabClosed.
    """
    checks.instance("host", host, Host, "a host of the lab, for instance lab.client")
    kinds = _kinds(CLOSING if new_connections and requests == DEFAULT else requests)
    checks.flag("new_connections", new_connections)
    asked: dict[str, Any] = {
        "port": checks.port("port", port),
        "clients": checks.whole("clients", clients, 1, MOST_CLIENTS),
        "seconds": checks.number("seconds", seconds, 0.01, 3600),
        "rate": None
        if rate is None
        else checks.number("rate", rate, 0.1, 1e6, unit="requests a second, None for no rate"),
        "new_connections": new_connections,
        "weights": [weight for _, weight in kinds],
        "warmup_s": checks.number("warmup_s", warmup_s, 0, 60, unit="seconds"),
        "timeout_s": checks.number("timeout_s", timeout_s, 0.01, 60, unit="seconds"),
        "seed": checks.whole("seed", seed),
    }
    address = _address(host, target)
    task = {**asked, "address": address, "requests": [content.decode("latin-1") for content, _ in kinds]}
    told = _generate(host, task, asked["warmup_s"] + asked["seconds"] + STARTING_S)
    return Load.of_data(
        {
            "mode": "closed" if rate is None else "open",
            "source": host.name,
            "target": address,
            **asked,
            "requests": [content.partition(b"\r\n")[0].decode("latin-1") for content, _ in kinds],
            "sent": told["completed"] + sum(told["errors"].values()) + told["unfinished"],
            **told,
            "tier": host.engine.tier,
        }
    )


def _generate(host: Host, task: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """Run the generator on a host. However this ends, so has the program."""
    deadline = time.monotonic() + deadline_s
    with host.start(child.command("labkit.load.generator"), stdin=json.dumps(task).encode()) as program:
        while program.returncode is None:
            try:
                program.wait(LOOK_S)
            except NotReady:  # an interrupt that came right before the wait is seen here
                if time.monotonic() > deadline:
                    raise
    Completed(program.args, program.returncode, program.stdout, program.stderr).check()
    told: dict[str, Any] = json.loads(program.stdout)
    return told


def _address(host: Host, target: object) -> str:
    if isinstance(target, Host):
        if target.lab is not host.lab:
            raise InvalidValue(f"target={target!r} belongs to another lab than {host!r}: give a host of the same lab")
        return target.ip
    try:
        if not isinstance(target, str):
            raise ValueError
        return str(ipaddress.ip_address(target))
    except ValueError:
        raise InvalidValue(
            f"target={target!r}: give a host of the lab, for instance lab.server, or an IP address"
        ) from None


def _kinds(requests: object) -> list[tuple[bytes, float]]:
    pairs = [(requests, 1.0)] if isinstance(requests, bytes) else requests
    wanted = f"give bytes, for instance {DEFAULT!r}, or a list of (bytes, weight)"
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
        raise InvalidValue(f"requests={requests!r}: {wanted}")
    kinds = []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], bytes) or not pair[0]:
            raise InvalidValue(f"requests: {pair!r} among them; {wanted}")
        kinds.append((pair[0], checks.number(f"weight of {pair[0][:40]!r}", pair[1], 0.001, 1e6)))
    return kinds
