"""The process that samples: asks the kernel again and again, and tells what has changed.

It runs beside the notebook, so that a busy server does not keep it from looking, and has a socket of the host's, which
is all that sock_diag needs. Standard library only, started without site-packages.

Arguments: the descriptor of a NETLINK_SOCK_DIAG socket, the port, the period in µs, and what to look at: "listeners",
"connections" for those, too, "tcp" for all that the kernel knows of them. A line of JSON for each look at which
something was different, and one at the end. It ends with its standard input, and with the process that started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from labkit.queues.diag import CONNECTIONS, LISTEN, LISTENERS, SYN_RECV, Entry, ask, request
from labkit.queues.tcp_info import parse


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads any more: end, without a word
    descriptor, port, period_us = map(int, sys.argv[1:4])
    netlink = socket.socket(fileno=descriptor)
    tcp = sys.argv[4] == "tcp"
    if tcp or sys.argv[4] == "connections":
        # One question for all ports: the kernel goes through its table of connections once for each question.
        question = request(states=LISTENERS | CONNECTIONS, info=True)
    else:
        question = request(states=LISTENERS, port=port)
    parent = os.getppid()
    before: object = None
    looks, due = 0, time.monotonic_ns()
    while True:
        looks += 1
        now = look(netlink, question, f":{port}", tcp=tcp)
        if now != before:
            before = now
            tell({"at": time.time_ns(), "looks": looks, "cpu_s": time.process_time(), **now})
        due += period_us * 1000
        left_s = (due - time.monotonic_ns()) / 1e9
        if left_s < 0:  # late: go on from here, not in a hurry through what was missed
            due, left_s = time.monotonic_ns(), 0
        if select.select([sys.stdin], [], [], left_s)[0] or os.getppid() != parent:
            break
    now = look(netlink, question, f":{port}", tcp=tcp)
    tell({"at": time.time_ns(), "looks": looks, "cpu_s": time.process_time(), **now})


def look(netlink: socket.socket, question: bytes, port: str, *, tcp: bool) -> dict[str, Any]:
    """The listeners' queues by inode, how many handshakes wait for their last ACK, each connection by its client."""
    listeners: dict[str, list[int]] = {}
    connections: dict[str, list[int]] = {}
    told: dict[str, list[int]] = {}
    handshakes = 0
    for entry in ask(netlink, question):
        ours = entry.local.endswith(port)
        if entry.state == LISTEN and ours:
            listeners[str(entry.inode)] = [entry.receive_queue, entry.send_queue]
        elif entry.state == SYN_RECV and ours:
            handshakes += 1
        elif 1 << entry.state & CONNECTIONS and (ours or entry.peer.endswith(port)):
            client = entry.peer if ours else entry.local
            connections[client] = of_connection(entry)
            if tcp:
                told[client] = [*parse(entry.info)]
    seen = {"syn_queue": handshakes, "listeners": listeners, "connections": connections}
    return {**seen, "tcp": told} if tcp else seen


def of_connection(entry: Entry) -> list[int]:
    """In the order of labkit.queues.history.CONNECTION."""
    unacknowledged = max(0, entry.send_queue - entry.unsent)
    return [entry.receive_queue, entry.unsent, unacknowledged, entry.cwnd, entry.rtt_us, entry.send_window]


def tell(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()
