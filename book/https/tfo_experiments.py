"""Requests over TLS 1.3 with TCP Fast Open and without, for the panel of the section "TFO + TLS 1.3".

pyOpenSSL brings the same OpenSSL on every Python, with post-quantum key shares; what the ssl module has differs.
"""

from __future__ import annotations

from contextlib import nullcontext

from book import recorded
from book.https.reading import in_few
from labkit.capture.captured import Captured
from labkit.handshakes import EarlyDataClient
from labkit.lab import Lab
from labkit.servers import EarlyDataServer

GROUPS = {"P-256": "prime256v1", "post-quantum": None}  # None for what OpenSSL chooses


def without_fast_open(lab: Lab, rtt_ms: float, share: str) -> Captured:
    """One request over TCP as it is.

    Args:
        lab: whose link is set to this distance.
        rtt_ms: the distance, in milliseconds.
        share: the key share that the client sends, of GROUPS.
    """
    lab.set_link(rtt_ms=rtt_ms)
    with EarlyDataServer(lab.server) as server:
        return in_few(lambda: _captured(lab, EarlyDataClient(lab.client, server, group=GROUPS[share])))


@recorded(needs="sysctls")
def with_fast_open(lab: Lab, rtt_ms: float, share: str, early_data: bool, dropped: bool) -> Captured:
    """One request of a client whose kernel holds the server's cookie.

    Args:
        lab: whose link is set to this distance.
        rtt_ms: the distance, in milliseconds.
        share: the key share that the client sends, of GROUPS.
        early_data: the request travels behind the ClientHello.
        dropped: a middlebox drops each SYN with data.
    """
    lab.set_link(rtt_ms=rtt_ms)
    with EarlyDataServer(lab.server, fast_open=True) as server:

        def fetched() -> Captured:
            known, new = (EarlyDataClient(lab.client, server, fast_open=True, group=GROUPS[share]) for _ in range(2))
            known.fetch()  # brings home the cookie, which the kernel keeps for both, and a ticket
            with lab.wire.drop(source="client", tcp_flags="S", payload=True) if dropped else nullcontext():
                return _captured(lab, known if early_data else new)

        return fetched() if dropped else in_few(fetched)  # a SYN that is dropped is slow enough


def _captured(lab: Lab, client: EarlyDataClient) -> Captured:
    lab.wire.settle()  # nothing of an earlier connection is on its way
    with lab.capture() as capture:
        client.fetch()
    return capture
