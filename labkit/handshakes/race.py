"""The race: each way of saying HTTPS measured on the lab, with its proof.

A variant is measured by real requests to a real server of its kind. Every figure comes from the packets that the
wire captured, none from the client's own clock, and a saved round trip counts only with the packets or the kernel
counters that prove it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from labkit import checks
from labkit.capture.captured import Captured
from labkit.errors import InvalidValue, MeasurementFailed
from labkit.handshakes.clients import client_for, server_for
from labkit.handshakes.phases import Timeline, begins, connections, evidence, timeline
from labkit.handshakes.variants import VARIANTS, Variant, variant
from labkit.network.host import Counters
from labkit.waiting import fewest

if TYPE_CHECKING:
    from labkit.capture.ladder import Ladder
    from labkit.lab import Lab


@dataclass(frozen=True)
class Run:
    """One request of a variant.

    Attributes:
        rtts: round trips from the first packet to the first byte of the response.
        phases_rtts: the same by phase, see labkit.handshakes.phases.
        proof: what its packets say, and ``holds``: whether that is what the variant claims.
        timeline: the moments and the packets.
    """

    rtts: float
    phases_rtts: dict[str, float]
    proof: dict[str, Any]
    timeline: Timeline = field(repr=False)


@dataclass(frozen=True)
class Measurement:
    """A variant, measured.

    Attributes:
        variant: what was measured.
        rtt_ms: round-trip time of the lab that it was made on, milliseconds.
        tier: tier of the lab (see `labkit doctor`), or where and when it was recorded.
        runs: the requests, the warm-up left out.
        counters: kernel counters that the runs moved, of those that matter, by host.
        capture: the packets of all of them, warm-up included.
    """

    variant: Variant
    rtt_ms: float
    tier: str
    runs: tuple[Run, ...]
    counters: dict[str, dict[str, int]] = field(repr=False)
    capture: Captured = field(repr=False)

    @property
    def name(self) -> str:
        """Of the variant: "tls1.3"."""
        return self.variant.name

    @property
    def theory_rtts(self) -> float:
        """Round trips by the RFCs."""
        return self.variant.theory_rtts

    @property
    def measured_rtts(self) -> float:
        """Median of the runs, round trips."""
        return statistics.median(run.rtts for run in self.runs)

    @property
    def whole_rtts(self) -> int:
        """Whole round trips, counted in the packets by cause and effect: the least of the runs."""
        return min(sum(run.timeline.whole_rtts().values()) for run in self.runs)

    @property
    def measured_ms(self) -> float:
        """Median of the runs, milliseconds."""
        return self.measured_rtts * self.rtt_ms

    @property
    def phases_rtts(self) -> dict[str, float]:
        """Median of each phase, round trips."""
        names = self.runs[0].phases_rtts
        return {name: statistics.median(run.phases_rtts[name] for run in self.runs) for name in names}

    @property
    def proof(self) -> dict[str, Any]:
        """What the packets say, the kernel's counters, and whether every run holds what is claimed.

        The packets are those of the run with the fewest round trips, as in ``whole_rtts``: in another one a machine
        that was held up for a whole round trip may have answered late.
        """
        best = min(self.runs, key=lambda run: (not run.proof["holds"], sum(run.timeline.whole_rtts().values())))
        facts = {name: value for name, value in best.proof.items() if name != "holds"}
        return {"holds": all(run.proof["holds"] for run in self.runs), **facts, "counters": self.counters}

    def ladder(self, run: int = -1, **options: Any) -> Ladder:
        """The packets of one run as a time–sequence diagram. Raises InvalidValue for a run that was not."""
        from labkit.capture.ladder import build_ladder

        known = [name for name in signature(build_ladder).parameters if name not in ("packets", "hosts")]
        checks.options(options, known, "a ladder of one run")
        checks.optional(checks.flag, "acks", options.get("acks"))
        checks.whole("run", run, -len(self.runs), len(self.runs) - 1)
        packets = list(self.runs[run].timeline.packets)
        return replace(build_ladder(packets, ["client", "server"], **options), tier=self.tier)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``labkit race --json`` prints it."""
        return {
            "name": self.name,
            "tier": self.tier,
            "theory_rtts": self.theory_rtts,
            "measured_rtts": round(self.measured_rtts, 3),
            "runs": [round(run.rtts, 3) for run in self.runs],
            "phases_rtts": {name: round(value, 3) for name, value in self.phases_rtts.items()},
            "proof": self.proof,
        }


@dataclass(frozen=True)
class Race:
    """Several variants, measured on one lab."""

    tier: str
    rtt_ms: float
    measurements: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> Measurement:
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        raise InvalidValue(f"{name!r} was not in this race: {', '.join(m.name for m in self.measurements)}")

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.measurements)

    def __len__(self) -> int:
        return len(self.measurements)

    def __str__(self) -> str:
        lines = [f"{'variant':<19}{'theory':>7}{'measured':>10}{'':4}phases, in round trips of {self.rtt_ms:g} ms"]
        for m in self.measurements:
            phases = "  ".join(f"{name} {value:.2f}" for name, value in m.phases_rtts.items())
            doubt = "" if m.proof["holds"] else "   NOT PROVEN by its packets"
            doubt += f"   ({m.tier})" if m.tier != self.tier else ""
            lines.append(f"{m.name:<19}{m.theory_rtts:>7g}{m.measured_rtts:>10.2f}{'':4}{phases}{doubt}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``labkit race --json`` prints it."""
        return {"tier": self.tier, "rtt_ms": self.rtt_ms, "variants": [m.as_dict() for m in self.measurements]}


def race(
    lab: Lab,
    names: Iterable[str] | None = None,
    *,
    runs: int = 3,
    progress: Callable[[Measurement], None] | None = None,
) -> Race:
    """Measure variants one after the other, so that none disturbs another.

    Args:
        lab: the lab; its RTT is the unit.
        names: which variants, all eleven by default.
        runs: requests for each, after one that is not counted.
        progress: called with each result when it is there.

    Raises:
        InvalidValue: an unknown variant, or a number of runs below 1; nothing was measured.
        MeasurementFailed: a variant's packets hold no request and response.
    """
    if isinstance(names, str) or not isinstance(names, Iterable | None):
        raise InvalidValue(f"names={names!r}: give a list of variants, for instance ['tls1.3', 'quic']")
    checks.optional(checks.function, "progress", progress)
    wanted = [variant(name) for name in (names if names is not None else [v.name for v in VARIANTS])]
    if not wanted:
        raise InvalidValue("no variant was named: leave names out for all of them")
    checks.whole("runs", runs, 1, 1000)
    measurements = []
    for each in wanted:
        measurements.append(measure(lab, each.name, runs=runs))
        if progress is not None:
            progress(measurements[-1])
    return Race(lab.tier, _rtt_ms(lab), tuple(measurements))


def measure(lab: Lab, name: str, *, runs: int = 3) -> Measurement:
    """Measure one variant: a warm-up that fills caches, fetches the cookie and the ticket, then the runs.

    Args:
        lab: the lab; its RTT is the unit. Its links and rules apply.
        name: of the variant.
        runs: requests that count.

    A variant with Fast Open is the recorded one where the lab's tier cannot make it; its ``tier`` says so.

    Raises:
        InvalidValue: an unknown variant, a number of runs below 1, or a lab without delay.
        MeasurementFailed: the packets hold no request and response.
        LabError, OSError: the server did not start, or the client did not get through.
    """
    chosen = variant(name)
    checks.whole("runs", runs, 1, 1000)
    rtt_ms = _rtt_ms(lab)
    if rtt_ms <= 0:
        raise InvalidValue(f"rtt_ms={rtt_ms:g}: round trips are counted in units of the RTT, so give the lab one")

    def live() -> dict[str, Any]:
        return _fetch(lab, chosen, runs)

    # Fast Open is a kernel's, and the server's end of it needs a setting.
    made = lab.live_or_recorded(f"race/{name}", live, needs="sysctls") if chosen.fast_open else live()
    capture: Captured = made["capture"]
    mine, packets = tuple(made["server"]), capture.messages
    groups = [group for group in connections(packets) if (group[0].flow.server, group[0].flow.server_port) == mine]
    # Connections that were cut off before, by an interrupt for instance, may still send their last packets.
    fetched = [group for group in groups if begins(group[0])]
    # Counted before any is read: somebody else's may be without a response yet.
    if len(fetched) != made["runs"] + 1:
        raise MeasurementFailed(
            f"{made['runs'] + 1} requests of {name!r} made {len(fetched)} connections: look at the capture's ladder"
        )
    lines = [timeline(group) for group in fetched]
    results = tuple(_run(chosen, line, made["rtt_ms"]) for line in lines[1:])
    return Measurement(chosen, made["rtt_ms"], capture.tier, results, made["counters"], capture)


def measure_once(lab: Lab, name: str) -> Measurement:
    """A measurement with one run that shows the variant as it is: repeated where a busy machine has lengthened it.

    Args, raises: as in measure.
    """
    return fewest(lambda: measure(lab, name, runs=1), lambda made: made.whole_rtts, variant(name).theory_rtts)


def _fetch(lab: Lab, chosen: Variant, runs: int) -> dict[str, Any]:
    """Make the requests. Returns what their analysis needs, as values that can be recorded."""
    hosts = {"client": lab.client, "server": lab.server}

    def counters() -> dict[str, Counters]:
        return {name: host.counters if lab.can("kernel") else Counters({}) for name, host in hosts.items()}

    with server_for(chosen, lab.server) as server, lab.capture() as capture, _no_garbage_collection():
        client = client_for(chosen, lab.client, server)
        client.fetch()
        # From here on, because the kernel may hold a Fast Open cookie from before: then the warm-up uses it, too.
        before = counters()
        for _ in range(runs):
            client.fetch()
    if capture.dropped:
        raise MeasurementFailed(f"the kernel dropped {capture.dropped} frames of the capture: try again")
    after = counters()
    moved = {
        host: {key: value for key, value in (after[host] - before[host]).changed().items() if "FastOpen" in key}
        for host in hosts
    }
    server_at = lab.server.ip, server.port
    return {"capture": capture, "counters": moved, "server": server_at, "rtt_ms": _rtt_ms(lab), "runs": runs}


def _rtt_ms(lab: Lab) -> float:
    """Round-trip time between client and server, whichever link it is set on."""
    return lab.client.link.rtt_ms + lab.server.link.rtt_ms


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Client and server share the notebook's process; a collection of its objects would count as round trips."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _run(chosen: Variant, line: Timeline, rtt_ms: float) -> Run:
    facts = evidence(line)
    return Run(line.rtts(rtt_ms), line.phases_rtts(rtt_ms), {"holds": claims_hold(chosen, facts), **facts}, line)


def claims_hold(chosen: Variant, facts: dict[str, Any]) -> bool:
    """Whether the packets show what saves the variant's round trips.

    Args:
        chosen: the variant.
        facts: from labkit.handshakes.phases.evidence.
    """
    fast_open = facts["syn_payload_acknowledged"] > 0
    early = facts["request_level"] == "early" and facts["answered_before_finished"]
    if chosen.transport == "quic" and chosen.early_data:
        early = early and facts["zero_rtt_packets"] > 0
    full_handshake = chosen.tls is not None and not chosen.resumed
    encrypted = facts["request_level"] in ("early", "application")
    return bool(
        fast_open == chosen.fast_open
        and early == chosen.early_data
        and encrypted == (chosen.tls is not None)
        and facts["certificate_sent"] == full_handshake
        # Fast Open saves the whole round trip only if the SYN held the whole first flight.
        and facts["syn_payload_acknowledged"] == facts["syn_payload_bytes"]
    )
