"""What the section "QUIC (HTTP/3)" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import trustme
from aioquic._crypto import CryptoError
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.judging import least
from labkit.capture.messages import Dissected
from labkit.handshakes import QuicClient, measure_once
from labkit.handshakes.phases import Timeline, timeline
from labkit.lab import Lab
from labkit.servers import Http3Server

TEXT = Text(__file__)

RTT_MS = 40
NOWHERE = ("203.0.113.1", 443)  # an address that nothing is sent to
CRYPTO = 0x06  # type of the frame (RFC 9000, section 19.6)


def unprovoked_bytes(packets: Sequence[Dissected]) -> tuple[int, int]:
    """What a server sent for the client's first datagrams, before it heard again.

    Args:
        packets: those of one connection.

    Returns:
        bytes that had reached the server by then, and bytes that it sent for them.
    """
    first = [packet for packet in packets if packet.from_client and packet.transit.received_ns is not None]
    answers = [packet for packet in packets if not packet.from_client]
    begun_ns = answers[0].transit.time_ns
    heard = [p for p in first if (p.transit.received_ns or 0) <= begun_ns]
    later_ns = min((p.transit.received_ns or 0 for p in first if p not in heard), default=2**63)
    return sum(p.payload for p in heard), sum(p.payload for p in answers if p.transit.time_ns < later_ns)


def first_flight_bytes(packets: Sequence[Dissected]) -> int:
    """Bytes of the server's datagrams from ServerHello to Finished, in one go or not."""
    size = 0
    for packet in packets:
        if not packet.from_client:
            size += packet.payload
            if any(message.name == "Finished" for message in packet.messages):
                return size
    return size


@cache  # RSA keys take a while to make
def leaf(root: trustme.CA, key: str, intermediates: int) -> trustme.LeafCert:
    """A server's certificate.

    Args:
        root: the authority that the chain begins with.
        key: of every certificate below it, "RSA" or "ECDSA".
        intermediates: between the root and the server's certificate.
    """
    return _authority(root, key, intermediates).issue_cert("server.lab", key_type=trustme.KeyType[key])


@cache
def _authority(root: trustme.CA, key: str, depth: int) -> trustme.CA:
    if depth == 0:
        return root
    return _authority(root, key, depth - 1).create_child_ca(key_type=trustme.KeyType[key])


def handshake_bytes(line: Timeline) -> int:
    """Bytes of the server's handshake messages up to its Finished, whatever they travelled in."""
    size = 0
    for packet in line.packets:
        for message in packet.messages:
            if not packet.from_client and message.protocol == "TLS" and packet.index == message.last:
                size += message.length
                if message.name == "Finished":
                    return size
    return size


# Exercise 1: whoever sees the first datagram can open it.


def _judge_open_initial(open_initial: Callable[[bytes], Any]) -> str:
    for _ in range(2):
        name = f"shop-{secrets.token_hex(4)}.lab"
        quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name))
        quic.connect(NOWHERE, now=time.monotonic())
        datagram, _ = quic.datagrams_to_send(now=time.monotonic())[0]
        try:
            frames = open_initial(datagram)
        except CryptoError as exc:
            raise Wrong(
                "the packet does not open: the keys come from the connection ID that the client chose for the server "
                "(RFC 9001 §5.2), and a client encrypts with its own half of them"
            ) from exc
        if not isinstance(frames, bytes):
            raise Wrong(f"open_initial returned {type(frames).__name__}: give the decrypted bytes")
        if name.encode() not in frames:
            raise Wrong(
                f"the {len(frames)} bytes that came back do not hold the server's name, which the ClientHello says in "
                "the clear: are they decrypted?"
            )
        if frames[0] != CRYPTO:
            raise Wrong(
                f"the first byte is {frames[0]:#04x}: give the frames alone, which begin with a CRYPTO frame, type 0x06"
            )
    return "Two datagrams opened without a key. The ClientHello in them names the server, for everybody on the path."


OPEN_INITIAL = TEXT.exercise("open_initial", _judge_open_initial)


# Exercise 2: a chain that fits.


def _judge_chain(chain: Callable[[trustme.CA], Any]) -> str:
    with Lab(rtt_ms=RTT_MS) as lab:
        certificate = chain(lab.authority.root)
        if not isinstance(certificate, trustme.LeafCert):
            raise Wrong(f"chain returned {type(certificate).__name__}: give what issue_cert returns, a LeafCert")
        shown = len(certificate.cert_chain_pems)
        if shown < 4:
            raise Wrong(
                f"the server would show {shown} certificate(s): four are asked for, the leaf and three intermediates"
            )
        whole = least(lambda: _round_trips(lab, certificate), 2)
    if whole > 2:
        raise Wrong(f"{whole} round trips with this chain: two are possible")
    return "2 round trips with four certificates: the server's handshake fits into what it may send unasked."


def _round_trips(lab: Lab, certificate: trustme.LeafCert) -> int:
    """Of one request to a server with this certificate. Raises Wrong where its chain exceeds the limit."""
    with Http3Server(lab.server, certificate=certificate) as server, lab.capture() as capture:
        try:
            QuicClient(lab.client, server).fetch()
        except ConnectionError as exc:
            raise Wrong(f"the client does not accept the certificate: {exc}") from exc
    line = timeline(capture.messages)
    heard, sent = unprovoked_bytes(line.packets)
    whole = sum(line.whole_rtts().values())
    if whole > 2 and handshake_bytes(line) > 3 * heard:
        raise Wrong(
            f"{whole} round trips: the server had received {heard} bytes, so it stopped after {sent} and waited for "
            "the client, with the chain half sent. Which part of a certificate is large?"
        )
    return whole


CHAIN = TEXT.exercise("chain", _judge_chain)

EXERCISES = (OPEN_INITIAL, CHAIN)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request over QUIC on this lab, with three blanks."""
    run = measure_once(lab, "quic").runs[-1]
    return TEXT.trace(
        run.timeline.packets,
        [
            Blank("ServerHello", "what", "with it the server answers the ClientHello, and the handshake keys exist"),
            Blank("STREAM 0", "round trip", "the client needs the server's Finished before it has keys for a request"),
            Blank("HANDSHAKE_DONE", "from", "one side knows that the handshake is over when the other's Finished came"),
        ],
    )
