"""What the section "TCP + TLS 1.3" asks: three exercises with their judges, the hidden trace, the quiz."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

from labkit.capture.capture import Capture
from labkit.capture.headers import decode
from labkit.handshakes import measure_once
from labkit.handshakes.phases import Timeline
from labkit.lab import Lab
from labkit.learn import Blank, Exercise, HiddenTrace, Mistake, Option, Question, Quiz, Wrong
from labkit.learn.judging import least, serving, the_request, watch_nodelay

REQUEST = b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"
PATIENCE_S = 3.0
# Long enough that the pause of a busy machine between two writes does not look like a round trip.
RTT_MS = 40.0


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one request over TLS and wait until the client has had enough, as a server with keep-alive does."""
    connection, _ = listener.accept()
    # A handshake that fails and a client that leaves without a word are the learner's to explain, not the server's.
    with contextlib.suppress(OSError), connection:
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(RESPONSE)
            tls.recv(1)


def fetch(context: ssl.SSLContext) -> None:
    """One request over TLS as it should be."""
    with socket.create_connection(("server.lab", 8443), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_hostname="server.lab") as tls:
            tls.sendall(REQUEST)
            tls.recv(65536)


def client_hellos(line: Timeline) -> int:
    """How many ClientHellos the client sent. One that fills two segments counts once."""
    return len({m.first for p in line.packets if p.from_client for m in p.messages if m.name == "ClientHello"})


def server_stream(capture: Capture, line: Timeline) -> bytes:
    """All that the server sent over one connection, in order, as somebody between the two sees it."""
    pieces: dict[int, bytes] = {}
    for packet in line.packets:
        segment = decode(packet.transit.data)
        if not packet.from_client and segment.payload and segment.tcp is not None:
            pieces.setdefault(segment.tcp.seq, segment.payload)
    return b"".join(pieces.values())


# Exercise 1: three round trips.


def _judge_three(answer: Callable[[ssl.SSLContext], object]) -> str:
    if (total := least(lambda: _asked(answer), 3)) > 3:
        raise Wrong(f"{total} round trips: look for a packet that you wait for without need")
    return "Three round trips: Finished and request left together."


def _asked(answer: Callable[[ssl.SSLContext], object]) -> int:
    """Round trips of one request. Raises Wrong for what no repetition can change."""
    with Lab(rtt_ms=RTT_MS) as lab:
        server = lab.authority.server_context("server.lab", versions=["1.3"])
        context = lab.authority.client_context(versions=["1.3"])
        nodelay = watch_nodelay(context)
        with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
            response = answer(context)
        if not isinstance(response, bytes) or not response.startswith(b"HTTP/1.1 200 "):
            raise Wrong(
                f"ask_in_three returned {response!r:.60}: return the bytes of the response, b'HTTP/1.1 200 OK…'"
            )
        line = the_request(capture)
    whole = line.whole_rtts()
    total = sum(whole.values())
    if whole["tls"] > 1 and nodelay[-1:] == [False]:
        raise Wrong(
            f"{total} round trips. The request left one after the client's Finished: who holds it back until Finished "
            "is acknowledged?"
        )
    if nodelay[-1:] == [False] and not lab.can("kernel"):
        raise Wrong(
            "3 round trips, but only because no kernel is between the hosts of this tier. With one it is 4, and the "
            "request leaves one after the client's Finished: who holds it back until Finished is acknowledged?"
        )
    return total


THREE = Exercise(
    id="https.tls13.three",
    task=(
        "Write `ask_in_three(context)`: connect to `server.lab`, port 8443, speak TLS with the client context that\n"
        "you are given, send `GET / HTTP/1.1` with a `Host` header, and return the bytes of the response. It has to\n"
        "be there after three round trips. The wire is asked, not your code."
    ),
    starter="import socket\n\n\ndef ask_in_three(context):\n    return ...\n",
    solution=(
        "import socket\n\n\n"
        "def ask_in_three(context):\n"
        '    with socket.create_connection(("server.lab", 8443)) as connection:\n'
        "        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        '        with context.wrap_socket(connection, server_hostname="server.lab") as tls:\n'
        '            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: server.lab\\r\\n\\r\\n")\n'
        "            return tls.recv(65536)\n"
    ),
    explanation=(
        "wrap_socket ends with writing the client's Finished; sendall writes the request right behind it. Both are "
        "small. Without TCP_NODELAY the second small segment waits until the first is acknowledged (RFC 9293 §3.7.4), "
        "which is a round trip."
    ),
    hints=(
        "socket.create_connection makes TCP's round trip, context.wrap_socket that of TLS. What is written last in "
        "each?",
        "The client's Finished is a small segment that nobody has acknowledged when you send the request.",
        "connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), before the handshake.",
    ),
    mistakes=(
        Mistake(
            "import socket\n\n\n"
            "def ask_in_three(context):\n"
            '    with socket.create_connection(("server.lab", 8443)) as connection:\n'
            '        with context.wrap_socket(connection, server_hostname="server.lab") as tls:\n'
            '            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: server.lab\\r\\n\\r\\n")\n'
            "            return tls.recv(65536)\n",
            "who holds it back until Finished is acknowledged?",
        ),
        Mistake(
            "import socket\n\n\n"
            "def ask_in_three(context):\n"
            '    with socket.create_connection(("server.lab", 8443)) as connection:\n'
            "        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
            "        with context.wrap_socket(connection) as tls:\n"
            '            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: server.lab\\r\\n\\r\\n")\n'
            "            return tls.recv(65536)\n",
            "check_hostname requires server_hostname",
        ),
        Mistake(
            "import socket\n\n\n"
            "def ask_in_three(context):\n"
            '    with socket.create_connection(("server.lab", 8443)) as connection:\n'
            "        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
            '        with context.wrap_socket(connection, server_hostname="server.lab") as tls:\n'
            '            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: server.lab\\r\\n\\r\\n")\n'
            "            tls.recv(65536)\n",
            "return the bytes of the response",
        ),
    ),
    judge=_judge_three,
)


# Exercise 2: what anybody can read.


def _judge_readable(answer: Callable[[bytes], object]) -> str:
    for version in ("1.2", "1.3"):
        with Lab(rtt_ms=10) as lab:
            server = lab.authority.server_context("server.lab", versions=[version])
            with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
                fetch(lab.authority.client_context())
            line = the_request(capture)
            clear = [
                m.data[0]
                for p in line.packets
                for m in p.messages
                if not p.from_client and m.protocol == "TLS" and m.level == "" and m.last == p.index
                if m.name != "ChangeCipherSpec"
            ]
            _compare(version, answer(server_stream(capture, line)), clear)
    return "TLS 1.2 shows hello, certificate, key exchange and ticket; TLS 1.3 shows the hello."


def _compare(version: str, given: object, clear: list[int]) -> None:
    where = f"TLS {version}"
    if not isinstance(given, list) or not all(isinstance(kind, int) for kind in given):
        raise Wrong(f"{where}: readable returned {given!r:.60}: return a list of numbers, such as [2, 11]")
    if given == clear:
        return
    if given and given[: len(clear)] == clear:
        raise Wrong(
            f"{where}: after {clear} you found {given[len(clear) :]}, in bytes that are encrypted: what is the last "
            "thing that the server says before it uses its keys?"
        )
    if 20 in given or given.count(22) > 1:
        raise Wrong(f"{where}: {given} are content types of records (RFC 8446 §5.1): look inside those of type 22")
    if given == clear[: len(given)]:
        raise Wrong(f"{where}: {given} is right but not all of it: {len(clear)} messages can be read without a key")
    raise Wrong(f"{where}: {given}, but in the clear stand {len(clear)} messages: check your lengths, 2 and 3 bytes")


_WALK = (
    "def readable(stream):\n"
    "    handshake, at = b'', 0\n"
    "    while at < len(stream):\n"
    "        length = int.from_bytes(stream[at + 3 : at + 5], 'big')\n"
    "{stop}        at += 5 + length\n"
    "    types = []\n"
    "    while handshake:\n"
    "        types.append(handshake[0])\n"
    "        handshake = handshake[4 + int.from_bytes(handshake[1:4], 'big') :]\n"
    "    return types\n"
)

READABLE = Exercise(
    id="https.tls13.readable",
    task=(
        "Somebody between client and server has all the bytes that the server sent, and no key. Write\n"
        "`readable(stream)`: return the types of the handshake messages that this somebody can read, in order, as a\n"
        "list of numbers. It is called with a connection over TLS 1.2 and with one over TLS 1.3.\n\n"
        "`stream` is a sequence of records: content type (1 byte), version (2), length (2), content (RFC 8446 §5.1).\n"
        "Type 22 is handshake, 20 ChangeCipherSpec, 23 application data. The content of handshake records, joined, is\n"
        "a sequence of messages: type (1 byte), length (3), body (RFC 8446 §4)."
    ),
    starter="def readable(stream):\n    return ...\n",
    solution=_WALK.format(
        stop=(
            "        if stream[at] != 22:\n            break\n        handshake += stream[at + 5 : at + 5 + length]\n"
        )
    ),
    explanation=(
        "In TLS 1.2 the server's keys begin with ChangeCipherSpec: ServerHello (2), Certificate (11), "
        "ServerKeyExchange (12), ServerHelloDone (14) and NewSessionTicket (4) come before it. In TLS 1.3 they begin "
        "right after ServerHello, and all that follows travels in records that say application data, whatever is in "
        "them. The ChangeCipherSpec there means nothing: it is for middleboxes (RFC 8446, appendix D.4)."
    ),
    hints=(
        "Walk through the records first: the next one begins 5 + length bytes further on.",
        "Stop at the first record that is not of type 22. What comes after it is encrypted, even where it says 22.",
        "Join the contents, then walk through the messages: the next one begins 4 + length bytes further on.",
    ),
    mistakes=(
        Mistake(
            _WALK.format(
                stop="        if stream[at] == 22:\n            handshake += stream[at + 5 : at + 5 + length]\n"
            ),
            "in bytes that are encrypted",
        ),
        Mistake(
            "def readable(stream):\n"
            "    types, at = [], 0\n"
            "    while at < len(stream):\n"
            "        types.append(stream[at])\n"
            "        at += 5 + int.from_bytes(stream[at + 3 : at + 5], 'big')\n"
            "    return types\n",
            "content types of records",
        ),
        Mistake("def readable(stream):\n    return [stream[5]]\n", "is right but not all of it"),
    ),
    judge=_judge_readable,
)


# Exercise 3: no HelloRetryRequest.


def _judge_group(answer: Callable[[ssl.SSLContext], object]) -> str:
    if (count := least(lambda: _tls_rtts(answer), 1)) != 1:
        raise Wrong(f"TLS took {count} round trips and not 1")
    return "One ClientHello, one round trip: the key share is for the group that the server takes."


def _tls_rtts(answer: Callable[[ssl.SSLContext], object]) -> int:
    """Round trips of TLS in one request. Raises Wrong for what no repetition can change."""
    with Lab(rtt_ms=RTT_MS) as lab:
        server = lab.authority.server_context("server.lab", versions=["1.3"])
        server.set_ecdh_curve("secp384r1")
        context = lab.authority.client_context()
        answer(context)
        with lab.capture() as capture, serving(lab.server, serve, server), lab.client:
            try:
                fetch(context)
            except ssl.SSLError as exc:
                raise Wrong(
                    f"no handshake, {exc.reason}: client and server have no group or no version in common"
                ) from exc
        line = the_request(capture)
    if (hellos := client_hellos(line)) > 1:
        raise Wrong(f"the client sent {hellos} ClientHellos: the server still asks for a key share of another group")
    return line.whole_rtts()["tls"]


GROUP = Exercise(
    id="https.tls13.group",
    task=(
        "A server takes P-384 (`secp384r1`) and no other group. You cannot change it. Write `prepare(context)`, which\n"
        "changes the client context that it is given, so that the handshake takes one round trip again."
    ),
    starter="def prepare(context):\n    return ...\n",
    solution='def prepare(context):\n    context.set_ecdh_curve("secp384r1")\n',
    explanation=(
        "A client sends key shares for the groups that it likes best, for one or two of all that it supports (RFC "
        "8446 §4.2.8). With one group in its list, the share is for that one. A client for everybody cannot know in "
        "advance; it is the server that should take the common groups."
    ),
    hints=(
        "HelloRetryRequest names the group that the server wants. The second ClientHello has a share for it.",
        "The share in the first ClientHello is for the first group of the client's list.",
        "ssl.SSLContext.set_ecdh_curve makes a list of one group.",
    ),
    mistakes=(
        Mistake('def prepare(context):\n    context.set_ciphers("ECDHE+AESGCM")\n', "the client sent 2 ClientHellos"),
        Mistake(
            'def prepare(context):\n    context.set_ecdh_curve("prime256v1")\n', "no group or no version in common"
        ),
        Mistake(
            "import ssl\n\n\ndef prepare(context):\n    context.maximum_version = ssl.TLSVersion.TLSv1_2\n",
            "no group or no version in common",
        ),
    ),
    judge=_judge_group,
)

EXERCISES = (THREE, READABLE, GROUP)

QUIZ = Quiz(
    Question(
        "What does TLS 1.3 do to need one round trip where TLS 1.2 needs two?",
        (
            Option(
                "It leaves the certificate out.",
                "A full handshake has one in both. It is a resumed handshake that leaves it out, and that saves no "
                "round trip.",
            ),
            Option(
                "The client sends its half of the key exchange before it knows what the server supports.",
                "A key share for a group that the server most probably takes. If it does not, HelloRetryRequest costs "
                "the round trip again.",
                right=True,
            ),
            Option(
                "The client sends the request with its first message.",
                "That is 0-RTT, which needs keys from an earlier connection. Here the request leaves with Finished.",
            ),
        ),
    ),
    Question(
        "Resumed handshakes with TLS 1.3 take as many round trips as full ones. Why bother?",
        (
            Option(
                "They save the certificate and the signature: bytes on the wire, and computing at the server.",
                "And a ticket is what 0-RTT needs, which does save a round trip.",
                right=True,
            ),
            Option(
                "They save the key exchange.",
                "It is done all the same, as long as both keep to psk_dhe_ke (RFC 8446 §2.2): so the new connection "
                "has forward secrecy.",
            ),
            Option(
                "They save TCP's handshake.",
                "TCP knows nothing of TLS's tickets. TCP Fast Open is another mechanism, with a cookie of its own.",
            ),
        ),
    ),
    Question(
        "You moved from TLS 1.2 to TLS 1.3 and the first byte comes no earlier. What do you look at first?",
        (
            Option(
                "The size of the certificate chain.",
                "It would have to exceed the initial congestion window of ten segments (RFC 6928) to cost a round "
                "trip, and would have done so with TLS 1.2.",
            ),
            Option(
                "The cipher suite.",
                "It costs computing, some of it, but no packet waits for another one because of it.",
            ),
            Option(
                "TCP_NODELAY at both ends, and HelloRetryRequest in a capture.",
                "Each of them costs the one round trip that TLS 1.3 had saved.",
                right=True,
            ),
        ),
    ),
)


def hidden_trace(lab: Lab) -> HiddenTrace:
    """A full handshake with TLS 1.3 on this lab, with four blanks."""
    run = measure_once(lab, "tls1.3").runs[-1]
    return HiddenTrace(
        "https.tls13.trace",
        run.timeline.packets,
        [
            Blank("ServerHello", "what", "it answers the ClientHello, and is the last that can be read without a key"),
            Blank("CertificateVerify", "from", "who has to prove that the certificate is its own?"),
            Blank(
                "GET /", "round trip", "it leaves together with the client's Finished: count what the client waited for"
            ),
            Blank("ClientHello", "seq", "a SYN counts as one byte, and it is the client's number 0"),
        ],
        hints=(
            "Count the round trips by what the client waits for: SYN-ACK, then the server's Finished.",
            "The certificate and its signature come from the same side, in the same packet as the hello that answers.",
            "Each side's SYN has number 0, so its first byte of data has the number after it.",
        ),
        explanation=(
            "One round trip for TCP, one for TLS; the request opens the third. Everything from ServerHello to the "
            "server's Finished fits one flight, because the client's key share came with its first message (RFC 8446 "
            "§2)."
        ),
    )
