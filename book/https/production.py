"""A capture file as it comes from production: it begins in the middle of things, and another program has written it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from book import Wrong
from labkit.lab import Lab
from labkit.servers import HttpServer, Response

WORDS = ["basket", "checkout", "health", "invoice", "login", "orders", "prices", "search", "stock", "users"]


@dataclass(frozen=True)
class Traffic:
    """A capture file, and what went on while it was made.

    Attributes:
        file: a pcap file.
        paid: targets of the requests that went over a connection that was opened for them, in their order.
        reused: those over a connection that had carried a request before, in the file.
        before: those over the connection that was open when the capture began.
    """

    file: Path
    paid: list[str]
    reused: list[str]
    before: list[str]


def traffic(lab: Lab, seed: int | None = None) -> Traffic:
    """Let a client work over several connections, and keep what was captured in a file of the lab's directory.

    One connection is there before, one carries no request, and one page is asked for over two connections.
    """
    from scapy.utils import wrpcap  # here, so that the judges of the section's other exercises do without it

    chosen = random.Random(seed)
    words = [f"/{word}/{chosen.randrange(1000)}" for word in chosen.sample(WORDS, 7)]
    # Who asks for what: over the old connection, over one that is used again, over one for a single request.
    plan = [("old", words[1]), *(("kept", word) for word in words[2:5]), *(("other", word) for word in words[5:])]
    chosen.shuffle(plan)
    plan = [("old", words[0]), *plan]
    plan.insert(chosen.randint(1, len(plan)), ("once", words[0]))
    made = Traffic(lab.directory / "production.pcap", [], [], [])
    connections: dict[str, HTTPConnection] = {}

    def ask(name: str, target: str) -> None:
        connections[name].request("GET", target)
        connections[name].getresponse().read()

    with HttpServer(lab.server, lambda request: Response.text(request.target)) as server, lab.client:
        connections = {
            name: HTTPConnection("server.lab", server.port, timeout=5.0)
            for name in ("old", "kept", "once", "other", "idle")
        }
        ask("old", "/before")
        with lab.capture() as capture:
            for name, target in plan:
                first = name != "old" and connections[name].sock is None
                (made.before if name == "old" else made.paid if first else made.reused).append(target)
                ask(name, target)
                if connections["idle"].sock is None:
                    connections["idle"].connect()
            for connection in connections.values():
                connection.close()
    wrpcap(str(made.file), capture.packets)
    return made


def judge_paid(paid: Callable[..., Any]) -> str:
    """Run the answer on a file that was not there before."""
    with Lab(rtt_ms=4) as lab:
        made = traffic(lab)
        answer = paid(str(made.file))
    if not isinstance(answer, (list, tuple)) or not all(isinstance(each, str) for each in answer):
        raise Wrong(f"it returned {answer!r:.60}: expected is a list of targets, such as ['/login/7']")
    wanted, found = Counter(made.paid), Counter(answer)
    for target in found - wanted:
        if found[target] == 1 and target in made.reused:
            raise Wrong(f"{target!r} came second on its connection: it did not wait for a handshake")
        if target in made.before:
            raise Wrong(f"{target!r} went over a connection that was open before: the file has no SYN of it")
        raise Wrong(f"{target!r} stands in the answer and should not: the file that was judged is a new one")
    for target in wanted - found:
        raise Wrong(f"{target!r} is missing: it is the first request after the SYN of its connection")
    if list(answer) != made.paid:
        raise Wrong(f"these are the right targets, but the order in the file is {made.paid!r}")
    requests = len(made.paid + made.reused + made.before)
    return (
        f"{len(made.paid)} of {requests} requests in a new file paid for connecting: a round trip each, with TLS one "
        "or two more."
    )
