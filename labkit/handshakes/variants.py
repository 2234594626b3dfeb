"""The eleven ways to fetch a small answer, and what theory says each of them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labkit.errors import InvalidValue


@dataclass(frozen=True)
class Variant:
    """One way to reach a server.

    Attributes:
        name: "tls1.3-0rtt".
        title: for a heading or an axis.
        theory_rtts: round trips from the client's first packet to the first byte of the response, where the
            round trip is long and computing is free.
        why: what the round trips are spent on.
        rfc: where it is specified.
        transport: "tcp" or "quic".
        tls: None, "1.2" or "1.3".
        fast_open: the client holds a TCP Fast Open cookie, and the SYN carries data.
        resumed: the client holds a session of an earlier connection.
        early_data: the request travels in the client's first flight, encrypted with that session's keys.
    """

    name: str
    title: str
    theory_rtts: int
    why: str
    rfc: str
    transport: Literal["tcp", "quic"] = "tcp"
    tls: Literal["1.2", "1.3"] | None = None
    fast_open: bool = False
    resumed: bool = False
    early_data: bool = False

    @property
    def needs_warm_up(self) -> bool:
        """Whether it needs state (cookie, session, ticket) that only an earlier connection can bring."""
        return self.fast_open or self.resumed


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "tcp",
        "HTTP over TCP",
        2,
        "one for SYN and SYN-ACK, one for request and response",
        "RFC 9293, section 3.5",
    ),
    Variant(
        "tfo",
        "HTTP over TCP Fast Open",
        1,
        "the request rides in the SYN; a cookie from an earlier connection proves the client's address",
        "RFC 7413, section 3",
        fast_open=True,
    ),
    Variant(
        "tls1.2",
        "TLS 1.2",
        4,
        "one for TCP, two for TLS (hellos and key exchange, then both Finished), one for the request",
        "RFC 5246, section 7.3",
        tls="1.2",
    ),
    Variant(
        "tls1.2-resumed",
        "TLS 1.2, resumed",
        3,
        "one for TCP, one for TLS (the ticket saves the key exchange), one for the request",
        "RFC 5077, section 3.1",
        tls="1.2",
        resumed=True,
    ),
    Variant(
        "tls1.3",
        "TLS 1.3",
        3,
        "one for TCP, one for TLS (the first message holds a key share), one for the request",
        "RFC 8446, section 2",
        tls="1.3",
    ),
    Variant(
        "tls1.3-resumed",
        "TLS 1.3, resumed",
        3,
        "as in full: resumption saves the certificate and the signature, not a round trip",
        "RFC 8446, section 2.2",
        tls="1.3",
        resumed=True,
    ),
    Variant(
        "tfo+tls1.3",
        "TLS 1.3 over TCP Fast Open",
        2,
        "the ClientHello rides in the SYN: one for TCP and TLS together, one for the request",
        "RFC 7413, section 3; RFC 8446, section 2",
        tls="1.3",
        fast_open=True,
    ),
    Variant(
        "tls1.3-0rtt",
        "TLS 1.3, early data",
        2,
        "one for TCP, then the request follows the ClientHello at once",
        "RFC 8446, section 2.3",
        tls="1.3",
        resumed=True,
        early_data=True,
    ),
    Variant(
        "tfo+tls1.3-0rtt",
        "TLS 1.3, early data, over TCP Fast Open",
        1,
        "ClientHello and request ride in the SYN",
        "RFC 7413, section 3; RFC 8446, section 2.3",
        tls="1.3",
        fast_open=True,
        resumed=True,
        early_data=True,
    ),
    Variant(
        "quic",
        "HTTP/3 over QUIC",
        2,
        "one for transport and TLS together, one for the request",
        "RFC 9000, section 7; RFC 9001, section 4",
        transport="quic",
        tls="1.3",
    ),
    Variant(
        "quic-0rtt",
        "HTTP/3 over QUIC, 0-RTT",
        1,
        "the request rides in the first datagram, behind the ClientHello",
        "RFC 9001, section 4.6",
        transport="quic",
        tls="1.3",
        resumed=True,
        early_data=True,
    ),
)

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def variant(name: str) -> Variant:
    """The variant of this name. Raises InvalidValue for a name that is none."""
    if not isinstance(name, str) or name not in _BY_NAME:
        raise InvalidValue(f"variant {name!r}: choose from {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
