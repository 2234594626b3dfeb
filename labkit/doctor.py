"""What this machine can do for the book, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from typing import Any

from labkit.errors import LabError
from labkit.lab import Lab
from labkit.network import environment
from labkit.network.support import why_unavailable
from labkit.network.tiers import LOOPBACK, TIERS, forced

OLDEST_PYTHON = (3, 11)
PROGRAMS = {
    "curl": "other people's HTTP client, used in some cells",
    "openssl": "another TLS client, used in some cells",
    "tshark": "opens saved captures on the command line (Wireshark does with windows)",
}

LIFT = "unset LABKIT_TIER"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: "ok", "missing" (something does not work without it), "lower" (the tier is lower for it, and recorded
            runs stand in) or "optional" (a cell or two go without it).
        found: what is there.
        mend: the command or setting that would mend it, "" where nothing is to mend.
    """

    name: str
    state: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """A doctor's report.

    Attributes:
        tier: of labkit.network.tiers.TIERS, or "unavailable".
        live: what is live in this tier, in words.
        checks: what was looked at.
    """

    tier: str
    live: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that matters is missing."""
        return all(check.state != "missing" for check in self.checks)

    def __str__(self) -> str:
        marks = {"ok": "ok     ", "missing": "MISSING", "lower": "LOWER  ", "optional": "without"}
        lines = [f"tier: {self.tier} — {self.live}", ""]
        for check in self.checks:
            lines.append(f"  {marks[check.state]}  {check.name}: {check.found}")
            if check.mend:
                lines.append(f"           → {check.mend}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``labkit doctor --json`` prints it."""
        return {
            "tier": self.tier,
            "live": self.live,
            "healthy": self.healthy,
            "checks": [asdict(c) for c in self.checks],
        }


def doctor() -> Report:
    """Look at this machine: opens a lab for a moment, and closes it.

    Returns:
        the report. Nothing is raised for what is missing; that is what the report is for.
    """
    checks = [_python(), _packages()]
    tier, lab_checks = _lab()
    checks += lab_checks
    checks.append(_surroundings())
    checks += _others()
    checks += [_program(name, use) for name, use in PROGRAMS.items()]
    return Report(tier, TIERS.get(tier, "no lab can be opened"), tuple(checks))


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.release()}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "missing", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")


def _packages() -> Check:
    absent = []
    try:
        needed = requires("labkit") or []
    except PackageNotFoundError:
        return Check("Python packages", "missing", "labkit runs from its folder, without its dependencies", "make env")
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    if absent:
        return Check("Python packages", "missing", f"not installed: {', '.join(absent)}", "make env")
    return Check("Python packages", "ok", "all that labkit needs are installed")


def _lab() -> tuple[str, list[Check]]:
    """Open a lab, and see what the kernel refuses."""
    try:
        with Lab(rtt_ms=0) as lab:
            refused, tier, ip6, why_lower = dict(lab.refused), lab.tier, lab.hosts["client"].ip6, lab.why_lower
            users = "" if tier == LOOPBACK else lab.engine.read_file("client", "/proc/self/uid_map")
    except LabError as exc:
        return "unavailable", [Check("lab", "missing", str(exc), LIFT if forced() else why_unavailable()[1])]
    if tier == LOOPBACK:
        if forced():
            return tier, [Check("lab", "lower", f"hosts are sockets on 127.0.0.1: {why_lower}", LIFT)]
        cause, _, way_out = why_lower.removeprefix("No lab here: ").partition(" Way out: ")
        return tier, [Check("lab", "lower", f"hosts are sockets on 127.0.0.1: {cause}", way_out.rstrip("."))]
    checks = [Check("lab", "ok", f"hosts in namespaces of their own, as {_who()}")]
    sysctls = sorted(name for name in refused if name.startswith("net."))
    if sysctls:
        mend = (
            LIFT if forced() else "in Docker: --security-opt systempaths=unconfined; elsewhere mount /proc/sys writable"
        )
        checks.append(Check("kernel settings", "lower", f"/proc/sys refuses {', '.join(sysctls)}", mend))
    else:
        checks.append(Check("kernel settings", "ok", "each host has its own, and they can be set"))
    if "hosts file" in refused:
        found = f"programs on a host cannot resolve server.lab ({refused['hosts file']}); Python can"
        checks.append(Check("names for programs", "optional", found, "allow mount(2) in this container"))
    else:
        checks.append(Check("names for programs", "ok", "server.lab resolves for every program on a host"))
    if sum(int(line.split()[2]) for line in users.splitlines()) > 1:  # user_namespaces(7)
        checks.append(Check("users", "ok", "programs on a host may change their user, as nginx and sshd do"))
    else:
        checks.append(Check("users", "ok", f"programs on a host are {_who()} and cannot change that"))
    if ip6:
        checks.append(Check("IPv6", "ok", "hosts have IPv6 addresses"))
    else:
        checks.append(Check("IPv6", "optional", "this kernel has none", "boot without ipv6.disable=1"))
    return tier, checks


def _surroundings() -> Check:
    """What of this machine's settings is kept from hosts and pictures: nothing to mend, but who wonders finds it."""
    folder = os.environ.get("MATPLOTLIBRC") or os.path.join(
        os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "matplotlib"
    )
    places = (folder, os.path.join(folder, "matplotlibrc"), "matplotlibrc")  # matplotlib.matplotlib_fname
    kept = environment.overridden() + [place for place in places if os.path.isfile(place)]
    found = f"without effect on hosts and pictures: {', '.join(kept)}" if kept else "nothing that would matter"
    return Check("surroundings", "ok", found)


def _others() -> list[Check]:
    """What packages that build on labkit say, by the entry points of the group "labkit.doctor"."""
    return [check for entry in entry_points(group="labkit.doctor") for check in entry.load()()]


def _who() -> str:
    return "root" if os.geteuid() == 0 else "an ordinary user"


def _program(name: str, use: str) -> Check:
    path = shutil.which(name)
    if path:
        return Check(name, "ok", path)
    return Check(name, "optional", f"not found: {use}", f"sudo apt-get install {name}")
