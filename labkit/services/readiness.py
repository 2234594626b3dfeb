"""What says that a service is ready: a port, a line of its log, a command, a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from labkit import checks
from labkit.errors import InvalidValue, NotReady
from labkit.network.host import Host
from labkit.network.process import Program

Probe = int | str | Sequence[str] | Callable[[Any], object]
LOOK_S = 0.005
CONNECT_S = 2.0
COMMAND_S = 5.0


class Starting(Protocol):
    """A service that starts, as probes see it."""

    @property
    def host(self) -> Host: ...
    @property
    def log(self) -> str: ...


def in_words(probe: Probe) -> str:
    """What has to hold, for errors. Raises InvalidValue for what is no probe."""
    if isinstance(probe, str):
        try:
            re.compile(probe)
        except re.error as exc:
            raise InvalidValue(f"ready={probe!r} is no regular expression: {exc}") from None
        return f"its log has to match {probe!r}"
    if isinstance(probe, int):
        return f"port {checks.port('ready', probe)} has to accept a connection"
    if isinstance(probe, Sequence) and probe and all(isinstance(word, str) for word in probe):
        return f"{' '.join(probe)!r} has to answer 0"
    if callable(probe):
        return f"{getattr(probe, '__name__', probe)} has to return what is true"
    raise checks.wrong("ready", probe, "give a port, a pattern of its log, a command as a list, or a function")


def holds(probe: Probe, service: Starting, launch: Callable[[Sequence[str]], Program]) -> bool:
    """Look once. `launch` starts a command; one that does not end in some seconds has not answered."""
    if isinstance(probe, str):
        return re.search(probe, service.log, re.MULTILINE) is not None
    if isinstance(probe, int):
        return accepts(service.host, probe)
    if isinstance(probe, Sequence):
        with launch(probe) as program:
            try:
                return program.wait(COMMAND_S) == 0
            except NotReady:
                return False
    try:
        return bool(probe(service))
    except OSError:
        return False


def accepts(host: Host, port: int, ip: str = "") -> bool:
    """Whether something accepts connections at a port of a host, by default on its address.

    Asked from that host: nothing crosses the wire.
    """
    with host.socket() as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect((ip or host.ip, port))
        except OSError:
            return False
    return True
