"""The errors that labkit raises.

::

    LabError
    ├── InvalidValue (also ValueError)   an argument that cannot work; nothing was started
    ├── LabUnavailable                   this machine cannot give a lab: the cause and the way out
    ├── NotAvailableHere                 the lab is there, but its tier cannot do this
    ├── LabClosed                        the lab (or server, or capture) was closed before
    ├── NameTaken                        a host, server or port that is there already
    ├── OutsideTheLab                    inside `with host:` something would have used the machine's own network
    ├── ProgramNotFound                  host.run / host.start of something that is not on PATH
    ├── NotReady                         something did not become ready before its deadline
    └── MeasurementFailed                a measurement ran and its packets do not support a result

Every message quotes the value, says what was tried and what to do next. An error of the kernel stays an
``OSError`` with the kernel's own number, because the code under study is meant to see it.
"""

from __future__ import annotations


class LabError(Exception):
    """Base of every error that labkit raises itself."""


class InvalidValue(LabError, ValueError):
    """An argument that cannot work. Nothing was started or changed."""


class LabUnavailable(LabError):
    """This machine cannot give a lab. The message names the cause and the way out."""


class NotAvailableHere(LabError):
    """This lab's tier cannot do this. A notebook shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Not available here: {self}"]


class LabClosed(LabError):
    """The lab, server or capture was closed before."""


class NameTaken(LabError):
    """A host, server or port of this name is there already."""


class OutsideTheLab(LabError):
    """Inside ``with host:`` something would have used this machine's own network. Nothing was opened or started."""


class ProgramNotFound(LabError):
    """A program that a host should run is not on its PATH."""


class NotReady(LabError):
    """Something did not become ready before its deadline."""


class MeasurementFailed(LabError):
    """A measurement ran, and what was captured does not support a result."""
