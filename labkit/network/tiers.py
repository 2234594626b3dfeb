"""What a machine allows, from everything down to sockets on 127.0.0.1, and what each tier can show live."""

from __future__ import annotations

import os

from labkit.errors import InvalidValue

KERNEL, FIXED, LOOPBACK = "kernel", "kernel, fixed sysctls", "loopback"

# From the highest to the lowest: what is live.
TIERS = {
    KERNEL: "everything in this book runs live",
    FIXED: "everything runs live but what needs a kernel setting, a Fast Open server for one: that is a recorded run",
    LOOPBACK: (
        "clients and servers are real, on 127.0.0.1 behind a relay that delays them; "
        "what only a kernel's network shows is a recorded run"
    ),
}
# What a lesson may need, and the lowest tier that has it.
NEEDS = {"kernel": FIXED, "sysctls": KERNEL}
# The values of LABKIT_TIER.
SHORT_NAMES = {"kernel": KERNEL, "fixed-sysctls": FIXED, "loopback": LOOPBACK}


def allows(tier: str, need: str) -> bool:
    """Whether a tier has what a lesson needs. Raises InvalidValue for a need that is none of NEEDS."""
    if not isinstance(need, str) or need not in NEEDS:
        raise InvalidValue(f"needs={need!r}: one of {', '.join(NEEDS)}")
    order = list(TIERS)
    return order.index(tier) <= order.index(NEEDS[need])


def forced() -> str | None:
    """The tier that LABKIT_TIER asks for; None where it asks for none. Raises InvalidValue for one that is not."""
    name = os.environ.get("LABKIT_TIER", "")
    if not name:
        return None
    if name not in SHORT_NAMES:
        raise InvalidValue(f"LABKIT_TIER={name!r}: one of {', '.join(SHORT_NAMES)}, or leave it out")
    return SHORT_NAMES[name]


def origin(tier: str, verb: str = "Captured") -> str:
    """Where the packets of a picture come from, for its small print.

    Args:
        tier: of the lab, of a recorded capture, which names the kernel and the day, or of a file, which is named.
        verb: what was done here.
    """
    if tier.startswith("file "):
        return f"Read from the {tier}."
    if tier.startswith("recorded"):
        return f"{tier[0].upper()}{tier[1:]}: not on this machine."
    return f"{verb} on this machine, tier: {tier}."
