"""What the section "QUIC (HTTP/3)" asks: two exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import trustme
from aioquic._crypto import CryptoError
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from labkit.capture.messages import Dissected
from labkit.handshakes import QuicClient, measure_once
from labkit.handshakes.phases import Timeline, timeline
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import least
from labkit.servers import Http3Server

RTT_MS = 40
NOWHERE = ("10.77.0.2", 443)  # an address that nothing is sent to
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


_STARTER = (
    "from aioquic.buffer import Buffer\n"
    "from aioquic.quic.crypto import CryptoPair\n"
    "from aioquic.quic.packet import pull_quic_header\n\n\n"
    "def open_initial(datagram):\n"
    "    buffer = Buffer(data=datagram)\n"
    "    header = pull_quic_header(buffer, host_cid_length=8)\n"
    "    keys = CryptoPair()\n"
    "    # Here the keys are missing: keys.setup_initial(cid=..., is_client=..., version=...)\n"
    "    packet, number_at = datagram[: header.packet_length], buffer.tell()\n"
    "    _, frames, _ = keys.decrypt_packet(packet, number_at, 0)\n"
    "    return frames\n"
)


def _with_keys(cid: str, is_client: bool) -> str:
    setup = f"    keys.setup_initial(cid={cid}, is_client={is_client}, version=header.version)\n"
    head, mark, rest = _STARTER.partition("    packet, number_at")
    return head + setup + mark + rest


OPEN_INITIAL = Exercise(
    id="https.quic.open_initial",
    task=(
        "You are the middlebox. Complete `open_initial(datagram)`: it takes the first datagram that a client sends and "
        "returns the frames of its Initial packet, decrypted. You hold no key and no key log. One call is missing: "
        "`keys.setup_initial(cid=…, is_client=…, version=…)` derives the Initial keys of both sides from a connection "
        "ID. `is_client` says whose side *you* take. The header has `destination_cid`, `source_cid` and `version`."
    ),
    starter=_STARTER,
    solution=_with_keys("header.destination_cid", is_client=False),
    explanation=(
        "Client and server derive the Initial keys from a salt that stands in RFC 9001 §5.2 and from the Destination "
        "Connection ID of the client's first packet, which stands in its header in the clear. So the server can open "
        "the first packet of somebody it has never met, and so can everybody else who sees it. "
        "is_client=False, because you read what a client wrote."
    ),
    hints=(
        "Which bytes of this datagram do client and server both know, before they have exchanged a key?",
        "The Destination Connection ID, header.destination_cid. The client encrypts with the client's keys, so you "
        "decrypt as a server does.",
        "keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)",
    ),
    mistakes=(
        Mistake(
            _with_keys("header.source_cid", is_client=False), "the connection ID that the client chose for the server"
        ),
        Mistake(_with_keys("header.destination_cid", is_client=True), "a client encrypts with its own half of them"),
        Mistake("def open_initial(datagram):\n    return datagram\n", "are they decrypted?"),
        Mistake(
            _with_keys("header.destination_cid", is_client=False).replace("_, frames, _ =", "frames ="),
            "returned tuple",
        ),
    ),
    judge=_judge_open_initial,
)


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


CHAIN = Exercise(
    id="https.quic.chain",
    task=(
        "An auditor demands three intermediates. Write `chain(root)`: from `root`, a `trustme.CA`, make a chain with "
        "three intermediates and a leaf for `server.lab`, and return the leaf. A request with it must take two round "
        "trips, not three. The starter's chain takes three. "
        "(`create_child_ca` and `issue_cert` take a `key_type`.)"
    ),
    starter=(
        "import trustme\n\n\n"
        "def chain(root):\n"
        "    key_type = trustme.KeyType.RSA\n"
        "    authority = root\n"
        "    for _ in range(3):\n"
        "        authority = authority.create_child_ca(key_type=key_type)\n"
        '    return authority.issue_cert("server.lab", key_type=key_type)\n'
    ),
    solution=(
        "import trustme\n\n\n"
        "def chain(root):\n"
        "    key_type = trustme.KeyType.ECDSA\n"
        "    authority = root\n"
        "    for _ in range(3):\n"
        "        authority = authority.create_child_ca(key_type=key_type)\n"
        '    return authority.issue_cert("server.lab", key_type=key_type)\n'
    ),
    explanation=(
        "Each certificate carries a public key and a signature. With RSA of 2048 bits each of the two takes 256 bytes "
        "and more, with ECDSA over P-256 a public key is 65 bytes and a signature about 72. Four certificates of that "
        "kind fit into three times 1200 bytes. A server that has RSA clients to serve as well keeps both chains and "
        "shows the one that the ClientHello's signature_algorithms allow (RFC 8446 §4.2.3)."
    ),
    hints=(
        "What is in a certificate, and what of it depends on the kind of key?",
        "A public key and a signature. Elliptic curves need far fewer bytes for both than RSA.",
        "trustme.KeyType.ECDSA, for the intermediates and for the leaf.",
    ),
    mistakes=(
        Mistake(
            "import trustme\n\n\n"
            "def chain(root):\n"
            "    authority = root\n"
            "    for _ in range(3):\n"
            "        authority = authority.create_child_ca(key_type=trustme.KeyType.RSA)\n"
            '    return authority.issue_cert("server.lab")\n',
            "Which part of a certificate is large?",
        ),
        Mistake(
            'def chain(root):\n    return root.issue_cert("server.lab")\n',
            "four are asked for",
        ),
        Mistake(
            "def chain(root):\n"
            "    authority = root\n"
            "    for _ in range(3):\n"
            "        authority = authority.create_child_ca()\n"
            '    return authority.issue_cert("shop.lab")\n',
            "the client does not accept the certificate",
        ),
        Mistake(
            "import trustme\n\n\n"
            "def chain(root):\n"
            "    authority = trustme.CA()\n"
            "    for _ in range(3):\n"
            "        authority = authority.create_child_ca()\n"
            '    return authority.issue_cert("server.lab")\n',
            "the client does not accept the certificate",
        ),
    ),
    judge=_judge_chain,
)

EXERCISES = (OPEN_INITIAL, CHAIN)

QUIZ = Quiz(
    Question(
        "Your company's middlebox logs the server name of every new QUIC connection. How does it read it?",
        (
            Option(
                "It computes the Initial keys from the packet's own header.",
                "The Destination Connection ID and a salt from the RFC are all that it takes.",
                right=True,
            ),
            Option(
                "It has the server's private key.",
                "That would not help either: TLS 1.3 keys come from a key exchange that is new each time. The name is "
                "in the Initial packet, whose keys need no secret at all.",
            ),
            Option(
                "It cannot: QUIC encrypts everything.",
                "It does, but a key that can be computed from the packet's header hides nothing. Only Encrypted "
                "Client Hello would hide the name.",
            ),
        ),
    ),
    Question(
        "Why must a client fill its first datagram up to 1200 bytes?",
        (
            Option(
                "To hide how long its ClientHello is.",
                "The ClientHello can be read anyway. Look at what the server may send.",
            ),
            Option(
                "Because UDP sends nothing smaller.",
                "A UDP datagram may be empty. It is QUIC that refuses a smaller one with an Initial packet.",
            ),
            Option(
                "Because the server may answer with three times as much, and the path must carry such datagrams.",
                "More bytes from the client allow a longer first flight. And a path that drops datagrams of 1200 bytes "
                "cannot carry QUIC: that shows at once, and not in the middle of a response.",
                right=True,
            ),
        ),
    ),
    Question(
        "First visits to your HTTP/3 site take three round trips, later ones two or one. What do you look at first?",
        (
            Option(
                "The size of the certificate chain.",
                "Only a full handshake sends it. If it exceeds three times the client's first flight, the rest waits.",
                right=True,
            ),
            Option(
                "The server's congestion window.",
                "It allows about ten datagrams at the start (RFC 9002 §7.2). The anti-amplification limit allows "
                "three, and is reached first.",
            ),
            Option(
                "The size of the response.",
                "The question is about its first byte. The response begins when the handshake lets it.",
            ),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A request over QUIC on this lab, with three blanks."""
    run = measure_once(lab, "quic").runs[-1]
    return HiddenTrace(
        "https.quic.trace",
        run.timeline.packets,
        [
            Blank("ServerHello", "what", "with it the server answers the ClientHello, and the handshake keys exist"),
            Blank("STREAM 0", "round trip", "the client needs the server's Finished before it has keys for a request"),
            Blank("HANDSHAKE_DONE", "from", "one side knows that the handshake is over when the other's Finished came"),
        ],
        hints=(
            "An Initial packet answers an Initial packet. Every further message of the server's has better keys.",
            "The first stream that an HTTP/3 client opens for a request is stream 0. A client that has just received "
            "its first answer is at the beginning of round trip 2.",
            "The client sends Finished last. So the server is the one who can say that all is done (RFC 9000 §19.20).",
        ),
        explanation=(
            "ServerHello comes in the Initial packet, because the client has no other keys yet. The request leaves "
            "with the client's Finished in the second round trip. The server confirms the handshake with "
            "HANDSHAKE_DONE (RFC 9001 §4.1.2)."
        ),
    )
