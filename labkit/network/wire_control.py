"""The notebook's hand on the wire: links, rules and counts."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from labkit import checks
from labkit.errors import InvalidValue
from labkit.network.engine import Engine
from labkit.network.link import Counts, Rule


class WireControl:
    """``lab.wire``: what the wire does to frames, changed while it runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        links = ", ".join(f"{host} {link.rtt_ms:g} ms" for host, link in self._engine.links.items())
        return f"<Wire {links}>"

    def drop(self, **conditions: Any) -> RuleHandle:
        """Drop the packets that match: ``lab.wire.drop(source="server", tcp_flags="SA", count=1)``.

        Args:
            conditions: fields of labkit.Rule.

        Returns:
            a handle with ``.acted``, ``.matched`` and ``.remove()``; a context manager, too.

        Raises:
            InvalidValue: a condition that cannot be.
        """
        return self._add("drop", conditions)

    def delay(self, delay_ms: float, **conditions: Any) -> RuleHandle:
        """Hold the packets that match for `delay_ms` more. Arguments and errors as for ``drop``."""
        return self._add("delay", conditions, delay_ms=delay_ms)

    def duplicate(self, **conditions: Any) -> RuleHandle:
        """Deliver the packets that match twice. Arguments and errors as for ``drop``."""
        return self._add("duplicate", conditions)

    def _add(self, action: str, conditions: dict[str, Any], **settings: Any) -> RuleHandle:
        own = {"action", "delay_ms"}
        checks.options(conditions, [f.name for f in fields(Rule) if f.name not in own], f"lab.wire.{action}")
        return self.add(Rule(action, **settings, **conditions))

    def add(self, rule: Rule) -> RuleHandle:
        """Put a rule to work. Rules are asked in the order in which they came."""
        checks.instance("rule", rule, Rule, "a labkit.Rule")
        for name in filter(None, (rule.source, rule.destination)):
            if name not in self._engine.interfaces:  # such a rule would never match
                raise InvalidValue(f"no host {name!r} in this lab, which has {', '.join(self._engine.interfaces)}")
        return RuleHandle(self._engine, self._engine.add_rule(rule), rule)

    @property
    def counts(self) -> dict[str, dict[str, Counts]]:
        """What the wire carried and dropped: ``counts["client"]["up"]`` is what the client sent.

        A further interface of a host counts for itself: "router/outside".
        """
        return self._engine.wire_counts()[0]

    @property
    def in_flight(self) -> int:
        """Frames that are on their way at this moment; 0 when the wire is quiet."""
        return self._engine.wire_counts()[1]

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until no frame is on its way, so that what was sent last has arrived.

        Args:
            timeout_s: deadline in seconds, by default two round trips of the longest link and half a second.

        Returns:
            whether the wire is quiet; False where traffic goes on at the deadline.
        """
        return self.quiet_since(timeout_s) is not None

    def quiet_since(self, timeout_s: float | None = None) -> int | None:
        """As ``settle``, and tell since when (CLOCK_REALTIME, ns): of what was sent before it nothing is under way."""
        checks.optional(checks.number, "timeout_s", timeout_s, 0, unit="seconds")
        if timeout_s is None:
            longest = max((link.rtt_ms for link in self._engine.links.values()), default=0.0)
            timeout_s = 2 * longest / 1000 + 0.5
        deadline = time.monotonic() + timeout_s
        while True:
            moment_ns = time.time_ns()
            if not self.in_flight:
                return moment_ns
            if time.monotonic() > deadline:
                return None
            time.sleep(0.002)  # the wire tells no one when it falls silent


class RuleHandle:
    """A rule at work. ``with lab.wire.drop(…) as rule:`` removes it at the end of the block."""

    def __init__(self, engine: Engine, identity: int, rule: Rule) -> None:
        self._engine, self._identity = engine, identity
        self._last = 0, 0
        self.rule = rule

    def __enter__(self) -> RuleHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<RuleHandle {self.rule}>"

    def _counts(self) -> tuple[int, int]:
        self._last = self._engine.rule_counts(self._identity) or self._last
        return self._last

    @property
    def matched(self) -> int:
        """Packets that met every condition so far."""
        return self._counts()[0]

    @property
    def acted(self) -> int:
        """Packets that the rule dropped, delayed or duplicated so far."""
        return self._counts()[1]

    def remove(self) -> None:
        """Take the rule away; its counts stay readable. Removing twice is fine."""
        if not self._engine.closed:
            self._counts()
            self._engine.remove_rule(self._identity)
