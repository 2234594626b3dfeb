"""The protocols that captures name: a module each. One that is added here is found, and no other file names it.

A module calls its class ``STREAM``, ``BODY`` or ``DATAGRAM`` (see ``labkit.capture.protocol``). Modules whose names
begin with an underscore are parts of others. All are imported when somebody looks at a capture, and not before.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.capture.protocol import BodyProtocol, DatagramProtocol, StreamProtocol


@cache
def stream_protocols() -> tuple[type[StreamProtocol], ...]:
    """The protocols over TCP, in the order of their modules' names."""
    return _named("STREAM")


def upgraded(token: str) -> type[StreamProtocol] | None:
    """The protocol that HTTP calls by this name where it changes to another one; None where it is not known here."""
    return next((protocol for protocol in stream_protocols() if token.lower() in protocol.tokens), None)


@cache
def body_protocols() -> tuple[type[BodyProtocol], ...]:
    """What stands in HTTP's bodies, in the order of the modules' names."""
    return _named("BODY")


@cache
def datagram_protocols() -> tuple[type[DatagramProtocol], ...]:
    """The protocols over UDP, in the order of their modules' names."""
    return _named("DATAGRAM")


def _named(name: str) -> tuple[Any, ...]:
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    found = (getattr(import_module(f"{__name__}.{module}"), name, None) for module in modules)
    return tuple(protocol for protocol in found if protocol is not None)
