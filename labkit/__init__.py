"""labkit: a small network on this machine's kernel, for the notebooks of "Backend Engineering, Live".

::

    from labkit import Lab

    with Lab(rtt_ms=40) as lab, lab.capture() as cap:
        with lab.client:
            ...                     # sockets opened here belong to the client
    print(cap.ladder())

The public names are loaded when they are used, so that ``import labkit`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.lazy import lazy

if TYPE_CHECKING:
    from labkit.doctor import doctor
    from labkit.errors import (
        InvalidValue,
        LabClosed,
        LabError,
        LabUnavailable,
        MeasurementFailed,
        NameTaken,
        NotAvailableHere,
        NotReady,
        ProgramNotFound,
    )
    from labkit.lab import Lab
    from labkit.network.host import Host
    from labkit.network.link import Link, Rule

__version__ = "0.1.0"

_HOME = {
    "Host": "labkit.network.host",
    "InvalidValue": "labkit.errors",
    "Lab": "labkit.lab",
    "LabClosed": "labkit.errors",
    "LabError": "labkit.errors",
    "LabUnavailable": "labkit.errors",
    "Link": "labkit.network.link",
    "MeasurementFailed": "labkit.errors",
    "NameTaken": "labkit.errors",
    "NotAvailableHere": "labkit.errors",
    "NotReady": "labkit.errors",
    "ProgramNotFound": "labkit.errors",
    "Rule": "labkit.network.link",
    "doctor": "labkit.doctor",
}

__all__ = [
    "Host",
    "InvalidValue",
    "Lab",
    "LabClosed",
    "LabError",
    "LabUnavailable",
    "Link",
    "MeasurementFailed",
    "NameTaken",
    "NotAvailableHere",
    "NotReady",
    "ProgramNotFound",
    "Rule",
    "doctor",
]


__getattr__, _ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
