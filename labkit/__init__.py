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
    from labkit.capture.captured import Captured as Captured
    from labkit.doctor import doctor as doctor
    from labkit.errors import InvalidValue as InvalidValue
    from labkit.errors import LabClosed as LabClosed
    from labkit.errors import LabError as LabError
    from labkit.errors import LabUnavailable as LabUnavailable
    from labkit.errors import MeasurementFailed as MeasurementFailed
    from labkit.errors import NameTaken as NameTaken
    from labkit.errors import NotAvailableHere as NotAvailableHere
    from labkit.errors import NotReady as NotReady
    from labkit.errors import OutsideTheLab as OutsideTheLab
    from labkit.errors import ProgramNotFound as ProgramNotFound
    from labkit.lab import Lab as Lab
    from labkit.network.host import Host as Host
    from labkit.network.link import Link as Link
    from labkit.network.link import Rule as Rule

__version__ = "0.1.0"

_HOME = {
    "Captured": "labkit.capture.captured",
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
    "OutsideTheLab": "labkit.errors",
    "ProgramNotFound": "labkit.errors",
    "Rule": "labkit.network.link",
    "doctor": "labkit.doctor",
}

__all__ = list(_HOME)


__getattr__, _ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
