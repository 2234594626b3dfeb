"""Eleven ways to fetch a small answer, each measured against a real server of its kind, with its proof.

::

    variants  →  clients  →  a request on the wire  →  phases  →  race
    (theory)     (real)      (captured)                (pure)     (result)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Not lazily: whoever imports the module of this name, for whatever is in it, would find the module under the name.
from labkit.handshakes.race import Measurement, Race, Run, measure, measure_once, race
from labkit.lazy import lazy
from labkit.waiting import fewest

if TYPE_CHECKING:
    from labkit.handshakes.clients import EarlyDataClient, QuicClient, TcpClient, TlsClient, client_for, server_for
    from labkit.handshakes.variants import VARIANTS, Variant, variant

_HOME = {
    "VARIANTS": "labkit.handshakes.variants",
    "EarlyDataClient": "labkit.handshakes.clients.early_data",
    "QuicClient": "labkit.handshakes.clients.quic",
    "TcpClient": "labkit.handshakes.clients.tcp",
    "TlsClient": "labkit.handshakes.clients.tcp",
    "Variant": "labkit.handshakes.variants",
    "client_for": "labkit.handshakes.clients",
    "server_for": "labkit.handshakes.clients",
    "variant": "labkit.handshakes.variants",
}

__all__ = [
    "VARIANTS",
    "EarlyDataClient",
    "Measurement",
    "QuicClient",
    "Race",
    "Run",
    "TcpClient",
    "TlsClient",
    "Variant",
    "client_for",
    "fewest",
    "measure",
    "measure_once",
    "race",
    "server_for",
    "variant",
]

__getattr__, __dir__ = lazy(__name__, _HOME)
