"""The relay: what it holds, loses and counts, who may ask it, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit import Lab, LabClosed, Link
from labkit.loopback.engine import Loopback
from labkit.loopback.relay import Relay

Start = Callable[..., "subprocess.Popen[str]"]
Until = Callable[..., None]


@contextmanager
def udp(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket that is connected to a server's."""
    with lab.server, socket.socket(type=socket.SOCK_DGRAM) as theirs:
        theirs.bind(("server.lab", 9))
        with lab.client, socket.socket(type=socket.SOCK_DGRAM) as ours:
            ours.connect(("server.lab", 9))
            yield ours, theirs


def numbers(lab: Lab, ours: socket.socket, theirs: socket.socket, count: int) -> list[int]:
    """Send numbered datagrams; which of them arrive, in order."""
    for number in range(count):
        ours.send(number.to_bytes(2, "big"))
    assert lab.wire.settle(10)
    theirs.setblocking(False)
    arrived = []
    while True:
        try:
            arrived.append(int.from_bytes(theirs.recv(10), "big"))
        except BlockingIOError:
            return arrived


def test_a_socket_that_an_earlier_callback_has_closed_is_not_served() -> None:
    relay = Relay("token", seed=1)
    pairs = [socket.socketpair() for _ in range(2)]
    served = []

    def close_all() -> None:
        served.append(True)
        for mine, _ in pairs:
            relay.unwatch(mine)
            mine.close()

    for mine, theirs in pairs:
        relay.watch(mine, close_all)
        theirs.send(b"x")
    relay.serve(0)
    assert served == [True]
    for sock in (relay.control_listener, relay.stream_listener, *(theirs for _, theirs in pairs)):
        sock.close()
    relay.selector.close()


def engine_of(lab: Lab) -> Loopback:
    assert isinstance(lab.engine, Loopback)
    return lab.engine


def test_no_packet_is_early(lab: Lab) -> None:
    with udp(lab) as (ours, theirs), lab.capture() as capture:
        assert numbers(lab, ours, theirs, 50) == list(range(50))
    assert len(capture.transits) == 50
    for transit in capture.transits:
        assert transit.received_ns is not None and transit.sent_ns is not None
        assert transit.received_ns - transit.sent_ns >= 5_000_000 - 200_000  # two clocks, read one after the other


def test_loss_repeats_with_its_seed_and_spares_tcp() -> None:
    runs = []
    for _ in range(2):
        with Lab(rtt_ms=1, loss=0.3, seed=7) as lab, udp(lab) as (ours, theirs):
            runs.append(numbers(lab, ours, theirs, 200))
            counts = lab.wire.counts["client"]["up"]
            assert counts.lost == 200 - len(runs[-1])
            with lab.server, socket.create_server(("", 80)) as listener, lab.client:
                with socket.create_connection(("server.lab", 80)) as client:
                    connection, _ = listener.accept()
                    with connection:
                        client.sendall(bytes(100_000))
                        client.shutdown(socket.SHUT_WR)
                        assert len(b"".join(iter(lambda: connection.recv(65536), b""))) == 100_000  # noqa: B023
    assert runs[0] == runs[1]
    assert 100 < len(runs[0]) < 180


def test_rules_act_on_datagrams(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        with lab.wire.drop(source="client", protocol="udp", skip=1, count=2) as rule:
            assert numbers(lab, ours, theirs, 5) == [0, 3, 4]
        assert (rule.matched, rule.acted) == (5, 2)
        with lab.wire.duplicate(protocol="udp", count=1):
            assert sorted(numbers(lab, ours, theirs, 2)) == [0, 0, 1]


def test_a_dropped_segment_leaves_a_hole_for_good(lab: Lab) -> None:
    with lab.server, socket.create_server(("", 80)) as listener, lab.client:
        with socket.create_connection(("server.lab", 80)) as client:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                client.sendall(b"before")
                assert connection.recv(10) == b"before"
                with lab.wire.drop(source="client", payload=True) as rule:
                    client.sendall(b"lost")
                    assert lab.wire.settle(10)
                assert rule.acted == 1
                client.sendall(b"behind the hole")
                assert lab.wire.settle(10)
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.recv(10)


def test_a_syn_that_is_dropped_is_waited_for(lab: Lab) -> None:
    with lab.server, socket.create_server(("", 80)), lab.client, lab.wire.drop(tcp_flags="S"):
        with pytest.raises(TimeoutError):
            socket.create_connection(("server.lab", 80), timeout=0.2)


def test_rates_and_links_are_those_of_the_wire() -> None:
    with Lab(rtt_ms=0, rate_mbps=8, hosts={"far": Link(rtt_ms=20)}) as lab, lab.capture() as capture:
        with lab.server, socket.create_server(("", 80)) as listener, lab.client:
            with socket.create_connection(("server.lab", 80)) as client:
                connection, _ = listener.accept()
                with connection:
                    client.sendall(bytes(20_000))
                    client.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
        assert lab.far.link.rtt_ms == 20
    data = [transit for transit in capture.transits if len(transit.data) > 1000]
    bits = 8 * sum(len(transit.data) for transit in data)
    assert bits > 8 * 20_000
    assert (data[-1].received_ns or 0) - (data[0].sent_ns or 0) >= bits / 8e6 * 1e9 - 200_000


def test_counts_add_up(lab: Lab) -> None:
    with udp(lab) as (ours, theirs):
        numbers(lab, ours, theirs, 20)
    counts = [count for ways in lab.wire.counts.values() for count in ways.values()]
    assert sum(c.frames for c in counts) == sum(c.delivered for c in counts) == 20
    assert lab.wire.in_flight == 0


def test_a_capture_at_a_host_sees_that_host(lab: Lab) -> None:
    with lab.capture(at="server") as capture, udp(lab) as (ours, theirs):
        numbers(lab, ours, theirs, 3)
    assert [(frame.host, frame.sent) for frame in capture.frames] == [("server", False)] * 3


def test_strangers_get_nothing(lab: Lab) -> None:
    engine = engine_of(lab)
    for words in (b'{"op": "counts"}\n', b'{"op": "counts", "token": "guess"}\n', b"not JSON\n", b"[]\n"):
        with socket.create_connection(("127.0.0.1", engine.relay.control_port), timeout=10) as stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b""
    with socket.create_connection(("127.0.0.1", engine.bindings.stream_port)), udp(lab) as (ours, theirs):
        mouth = engine.bindings.mouth(next(iter(engine.bindings.mouths)))
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"not from the lab", ("127.0.0.1", mouth))
        assert numbers(lab, ours, theirs, 1) == [0]


def test_its_directory_is_the_users_alone(lab: Lab) -> None:
    assert stat.S_IMODE(lab.directory.stat().st_mode) == 0o700
    command = Path(f"/proc/{lab.engine.first_pid}/cmdline").read_bytes()
    assert engine_of(lab)._token.encode() not in command
    assert engine_of(lab)._token.encode() not in Path(f"/proc/{lab.engine.first_pid}/environ").read_bytes()


BUSY = """
import json, os, socket, sys, threading
from labkit import Lab
lab = Lab(rtt_ms=5)
capture = lab.capture()
with lab.server:
    listener = socket.create_server(("", 80))
with lab.client:
    connection = socket.create_connection(("server.lab", 80))
print(json.dumps([str(lab.directory), lab.engine.first_pid]), flush=True)
"""
FORK = "import time\nif os.fork() == 0:\n    time.sleep(1000)\n"
FORKED = BUSY.replace("print(", FORK + "print(") + "sys.stdin.read()"


def start(python: Start, source: str) -> tuple[subprocess.Popen[str], Path, int]:
    process = python(source)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    directory, relay = json.loads(line)
    return process, Path(directory), relay


@pytest.mark.parametrize("source", [BUSY + "sys.stdin.read()", FORKED], ids=["alone", "with a forked child"])
def test_a_killed_notebook_leaves_nothing(python: Start, until: Until, source: str) -> None:
    process, directory, relay = start(python, source)
    assert directory.exists()
    group = os.getpgid(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    try:
        until(lambda: not Path(f"/proc/{relay}").exists())
        assert not directory.exists()
    finally:
        if "fork" in source:
            os.killpg(group, signal.SIGKILL)


def test_an_end_without_close_is_clean(python: Start) -> None:
    process, directory, relay = start(python, BUSY)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, ""), err
    assert err == ""
    assert not directory.exists()
    assert not Path(f"/proc/{relay}").exists()


def test_a_lab_whose_relay_is_killed_says_so() -> None:
    lab = Lab(rtt_ms=0)
    capture = lab.capture()
    os.kill(lab.engine.first_pid, signal.SIGKILL)
    os.waitid(os.P_PID, lab.engine.first_pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(LabClosed, match="open the lab again"):
        _ = lab.wire.counts
    with lab.client, pytest.raises((LabClosed, OSError)):
        socket.create_connection(("server.lab", 80))
    assert not capture.frames
    directory = lab.directory
    lab.close()
    assert not directory.exists()


def test_descriptors_and_threads_are_as_before() -> None:
    def once() -> None:
        with Lab(rtt_ms=0) as lab, lab.capture(), udp(lab) as (ours, theirs):
            numbers(lab, ours, theirs, 2)

    once()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        once()
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before


OTHER_SYSTEM = """
import os, select, signal, socket, sys
sys.platform = "darwin"
for module, names in ((socket, ("AF_PACKET", "AF_NETLINK", "TCP_QUICKACK", "SOCK_NONBLOCK", "SOCK_CLOEXEC")),
                      (os, ("pidfd_open", "setns", "unshare")), (select, ("epoll",))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.environ.pop("LABKIT_TIER", None)
from labkit import Lab
from labkit.servers import HttpServer, Http3Server
from labkit.handshakes import QuicClient, TlsClient, race
with Lab(rtt_ms=5) as lab:
    print(lab.tier)
    print(lab.why_lower)
    results = race(lab, ["tls1.3", "quic"], runs=1)
    print([m.whole_rtts for m in results])
    with HttpServer(lab.server) as server:
        fetch = "import sys, urllib.request as r; print(r.urlopen(f'http://{sys.argv[1]}/').status)"
        words = [sys.executable, "-c", fetch, str(lab.client.door(lab.server, server.port))]
        print(lab.client.run(words).check().stdout, end="")
"""


def test_a_system_that_is_not_linux(python: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rehearsed: what only Linux has is taken away from Python before labkit is imported."""
    monkeypatch.delenv("LABKIT_TIER")
    process = python(OTHER_SYSTEM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    tier, why, rtts, fetched = out.splitlines()
    assert tier == "loopback"
    assert "this is Linux, and" in why or "Way out" in why
    assert (rtts, fetched) == ("[3, 2]", "200")
