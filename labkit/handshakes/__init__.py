"""Eleven ways to fetch a small answer, each measured against a real server of its kind, with its proof.

::

    variants  →  clients  →  a request on the wire  →  phases  →  race
    (theory)     (real)      (captured)                (pure)     (result)
"""

from labkit.handshakes.clients import EarlyDataClient, QuicClient, TcpClient, TlsClient, client_for, server_for
from labkit.handshakes.race import Measurement, Race, Run, fewest, measure, measure_once, race
from labkit.handshakes.variants import VARIANTS, Variant, variant

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
