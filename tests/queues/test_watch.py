"""What the watch says of a host's queues, beside what ``ss`` and the kernel's counters say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from labkit import InvalidValue, Lab, LabClosed, NotAvailableHere
from labkit.queues.history import History
from labkit.queues.watch import Watch

Until = Callable[..., None]
PORT = 8080
Listed = Callable[..., list[list[str]]]


@contextlib.contextmanager
def connecting(lab: Lab, clients: int) -> Iterator[list[socket.socket]]:
    """Clients that have begun to connect, all at once."""
    with contextlib.ExitStack() as stack:
        opened = []
        with lab.client:
            for _ in range(clients):
                opened.append(stack.enter_context(socket.socket()))
                opened[-1].setblocking(False)
                opened[-1].connect_ex(("server.lab", PORT))
        yield opened


def listener_on(lab: Lab, backlog: int = 128, **options: bool) -> socket.socket:
    with lab.server:
        return socket.create_server(("server.lab", PORT), backlog=backlog, **options)


@pytest.fixture
def listed(lab: Lab, require_program: Callable[[str], str]) -> Listed:
    """``listed("-l")``: lines of ss on the server's host, in words: state, Recv-Q, Send-Q, address, peer, …"""
    require_program("ip")  # ss is in the same package

    def ask(*options: str) -> list[list[str]]:
        said = lab.server.run(["ss", "-H", "-t", "-n", "-O", *options, f"( sport = :{PORT} )"]).check().stdout
        return [line.split() for line in said.splitlines()]

    return ask


# Beside ss.


def test_a_listeners_queue_is_what_ss_says(lab: Lab, until: Until, listed: Listed) -> None:
    with listener_on(lab, 7) as listener, lab.watch(PORT) as watch, connecting(lab, 3):
        until(lambda: watch.so_far().accept_queue.last == 3)
        ((state, waiting, limit, *_),) = listed("-l")
        now = watch.so_far()
        assert (state, int(waiting), int(limit)) == ("LISTEN", now.accept_queue.last, now.limit.last)
        assert (now.accept_queue.last, now.limit.last) == (3, 7)
        listener.accept()[0].close()
        until(lambda: watch.so_far().accept_queue.last == 2)
        assert int(listed("-l")[0][1]) == 2


def test_half_open_connections_are_those_that_ss_lists(lab: Lab, until: Until, listed: Listed) -> None:
    lab.server.sysctl["net.ipv4.tcp_syncookies"] = "0"
    with listener_on(lab), lab.watch(PORT) as watch:
        spoofed_syns(lab, range(40000, 40020))
        until(lambda: watch.so_far().syn_queue.last == 20)
        assert len(listed("state", "syn-recv")) == 20
        assert watch.so_far().accept_queue.peak == 0


def test_a_connections_queues_are_those_of_ss(lab: Lab, until: Until, listed: Listed) -> None:
    """A client sends, nobody reads; the server sends, and neither does the client."""
    with listener_on(lab) as listener, lab.watch(PORT, connections=True) as watch, connecting(lab, 1) as (client,):
        served, _ = listener.accept()
        with served:
            client.setblocking(True)
            client.sendall(bytes(3000))
            served.setblocking(False)
            name = "{}:{}".format(*client.getsockname())

            def settled() -> bool:
                """Written until no more is taken; the client's window has closed, what was sent is acknowledged."""
                with contextlib.suppress(BlockingIOError):
                    served.send(bytes(1 << 16))
                    return False
                held = watch.so_far().connections[name]
                return held.send_window.last == 0 and held.unacknowledged.last == 0

            until(settled)
            ((_, received, to_send, *_, about),) = [[*line[:3], " ".join(line)] for line in listed("-i")]
            held = watch.so_far().connections[name]
            assert int(received) == held.receive_queue.last == 3000
            assert int(to_send) == held.unsent.last + held.unacknowledged.last
            assert held.unsent.last > 0
            assert int(re.findall(r"notsent:(\d+)", about)[0]) == held.unsent.last
            assert int(re.findall(r"\bcwnd:(\d+)", about)[0]) == held.cwnd.last
            assert float(re.findall(r"\brtt:([\d.]+)", about)[0]) * 1000 == held.rtt_us.last


def test_both_ends_are_named_by_the_client(lab: Lab, until: Until) -> None:
    with listener_on(lab) as listener, connecting(lab, 2) as clients, contextlib.ExitStack() as stack:
        for _ in clients:
            stack.enter_context(listener.accept()[0])
        names = {"{}:{}".format(*client.getsockname()) for client in clients}
        for host in ("server", "client"):
            with lab.watch(PORT, host, connections=True) as watch:
                until(lambda watch=watch: watch.so_far().connections.keys() == names)


def test_listeners_that_share_a_port_are_told_apart(lab: Lab, until: Until) -> None:
    # The kernel chooses by a hash: each has room for all six.
    with listener_on(lab, 7, reuse_port=True) as one, listener_on(lab, 9, reuse_port=True) as other:
        inodes = {os.fstat(sock.fileno()).st_ino: limit for sock, limit in ((one, 7), (other, 9))}
        with lab.watch(PORT) as watch, connecting(lab, 6):
            until(lambda: watch.so_far().accept_queue.last == 6)
            seen = watch.so_far()
            assert {inode: listener.limit.last for inode, listener in seen.listeners.items()} == inodes
            assert sum(listener.accept_queue.last for listener in seen.listeners.values()) == 6
            assert seen.limit.last == 16


# Listeners on "::", which also take IPv4 clients.

ON_ANY = {
    "python": [sys.executable, "-c", "import socket, time; s = socket.create_server(('', 8080), "
               "family=socket.AF_INET6, dualstack_ipv6=True, backlog=4); time.sleep(60)"],
    # What node listens on where no address is named. Stopped, it accepts nothing.
    "node": ["node", "-e", "require('net').createServer().listen({port: 8080, backlog: 4})"],
}  # fmt: skip


@pytest.mark.parametrize("program", ON_ANY)
def test_a_listener_on_any_address_is_what_ss_says(
    lab: Lab, until: Until, listed: Listed, require_program: Callable[[str], str], program: str
) -> None:
    if program == "node":
        require_program("node")
    with lab.watch(PORT, connections=True) as watch, lab.server.start(ON_ANY[program]) as server:
        until(lambda: watch.so_far().limit.last == 4)
        server.send_signal(signal.SIGSTOP)
        with connecting(lab, 10) as clients:
            until(lambda: watch.so_far().accept_queue.last == 5)
            ((state, waiting, limit, address, *_),) = listed("-l")
            assert (state, waiting, limit, address) == ("LISTEN", "5", "4", f"*:{PORT}")
            until(lambda: len(watch.so_far().connections) == 5)
            # By the address that the client has, not by the one that IPv6 maps it to.
            assert watch.so_far().connections.keys() <= {"{}:{}".format(*each.getsockname()) for each in clients}
        server.send_signal(signal.SIGCONT)


def test_half_open_connections_of_a_listener_on_any_address(lab: Lab, until: Until, listed: Listed) -> None:
    lab.server.sysctl["net.ipv4.tcp_syncookies"] = "0"
    with lab.server:
        listener = socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, lab.watch(PORT) as watch:
        spoofed_syns(lab, range(40000, 40020))
        until(lambda: watch.so_far().syn_queue.last == 20)
        assert len(listed("state", "syn-recv")) == 20


def test_ipv6_connections_are_named_by_the_client(lab: Lab, until: Until, listed: Listed) -> None:
    with lab.server:
        listener = socket.create_server((lab.server.ip6, PORT), family=socket.AF_INET6)
    with listener, lab.client.socket(socket.AF_INET6) as client:
        client.connect((lab.server.ip6, PORT))
        with listener.accept()[0]:
            client.sendall(bytes(700))
            for host, queue in (("server", 700), ("client", 0)):
                with lab.watch(PORT, host, connections=True) as watch:
                    name = "[{}]:{}".format(*client.getsockname())
                    until(lambda watch=watch, name=name: name in watch.so_far().connections)
                    until(
                        lambda watch=watch, name=name, queue=queue: (
                            watch.so_far().connections[name].receive_queue.last == queue
                        )
                    )
            assert [line[4] for line in listed()] == [name]


# What documentation and source say.


@pytest.mark.parametrize(("backlog", "somaxconn"), [(1, 4096), (4, 4096), (16, 4096), (16, 3)])
def test_an_accept_queue_holds_one_more_than_the_smaller_limit(
    lab: Lab, until: Until, backlog: int, somaxconn: int
) -> None:
    """listen(2), and sk_acceptq_is_full() of include/net/sock.h: full when there are *more* than the limit."""
    lab.server.sysctl["net.core.somaxconn"] = str(somaxconn)
    limit = min(backlog, somaxconn)
    with listener_on(lab, backlog), lab.watch(PORT) as watch, connecting(lab, limit + 9):
        until(lambda: watch.so_far().accept_queue.last == limit + 1)
        until(lambda: watch.so_far().counters.get("TcpExtListenOverflows", 0) >= 8)
    history = watch.history
    assert history.limit.values == (limit,)
    assert history.accept_queue.peak == limit + 1
    assert history.counters["TcpExtListenOverflows"] >= 8


def test_counters_are_the_connections_refused(lab: Lab, until: Until) -> None:
    """Without cookies a SYN that finds the accept queue full is dropped, and counted."""
    lab.server.sysctl["net.ipv4.tcp_syncookies"] = "0"
    with listener_on(lab, 4), lab.capture() as capture, lab.watch(PORT) as watch:
        with connecting(lab, 5):
            until(lambda: watch.so_far().accept_queue.last == 5)
            with connecting(lab, 7):
                until(lambda: watch.so_far().counters.get("TcpExtListenOverflows", 0) >= 7)
            lab.wire.settle()
    moved = watch.history.counters
    # Seven, unless the machine stalls for a second: then clients send their SYN once more.
    syns = sum(packet.label == "SYN" for packet in capture.messages)
    assert moved["TcpExtListenOverflows"] == moved["TcpExtListenDrops"] == syns - 5 >= 7


# Spoofed SYNs stay in the lab.


def checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source: str, port: int, target: str) -> bytes:
    """An IPv4 header and a TCP header with nothing but SYN."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    begin = port.to_bytes(2, "big") + PORT.to_bytes(2, "big") + bytes(8) + b"\x50\x02\xfa\xf0"
    tcp = begin + checksum(addresses + b"\0\x06\0\x14" + begin + bytes(4)).to_bytes(2, "big") + bytes(2)
    return b"\x45\0\0\x28\0\1\0\0\x40\x06\0\0" + addresses + tcp


def spoofed_syns(lab: Lab, ports: range) -> None:
    """From an address of the lab's network that no host has, so nobody answers the SYN-ACK with a RST."""
    with lab.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for port in ports:
            raw.sendto(syn("192.0.2.200", port, lab.server.ip), (lab.server.ip, 0))


FLOOD = """
import contextlib, json, sys, socket, time
from labkit import Lab
sys.path.insert(0, sys.argv[1])
from test_watch import PORT, listener_on, spoofed_syns

def machine():
    return [open(f"/proc/net/{name}").read() for name in ("snmp", "netstat", "dev")]

before = machine()
with Lab(rtt_ms=0) as lab:
    with listener_on(lab, 16), lab.watch(PORT) as watch:
        spoofed_syns(lab, range(20000, 22000))
        end = time.monotonic() + 20
        while (seen := watch.so_far().counters).get("TcpExtSyncookiesSent", 0) < 1900 and time.monotonic() < end:
            time.sleep(0.01)
print(json.dumps([before == machine(), seen.get("TcpExtSyncookiesSent", 0), watch.history.syn_queue.peak]))
"""


def test_a_flood_stays_in_the_lab(python: Callable[..., subprocess.Popen[str]]) -> None:
    """In a network of its own, where nothing else moves the machine's counters: they are the same to the last one."""
    process = python(FLOOD, os.path.dirname(__file__), prefix=("unshare", "-Urn"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    unmoved, cookies, half_open = json.loads(out)
    assert unmoved
    assert cookies >= 1900
    assert 16 <= half_open <= 17


# Watching, and its end.


def test_a_watch_that_runs_tells_so_far(lab: Lab, until: Until) -> None:
    with listener_on(lab), lab.watch(PORT) as watch:
        assert watch.so_far().accept_queue.last == 0
        with pytest.raises(LabClosed, match="still runs"):
            _ = watch.history
        with connecting(lab, 2):
            until(lambda: watch.so_far().accept_queue.last == 2)
    history = watch.history
    assert history is watch.so_far()
    assert history.looks >= len(history.accept_queue.values)
    assert (history.host, history.port, history.tier) == ("server", PORT, lab.tier)
    assert History.of_data(json.loads(json.dumps(history.as_data()))).as_data() == history.as_data()
    assert History.of_data(history.as_data(), "recorded").tier == "recorded"


def test_a_port_that_nobody_listens_on_yet(lab: Lab, until: Until) -> None:
    with lab.watch(PORT) as watch:
        assert watch.so_far().limit.last == 0
        with listener_on(lab, 9):
            until(lambda: watch.so_far().limit.last == 9)
        until(lambda: watch.so_far().limit.last == 0)
    assert [*next(iter(watch.history.listeners.values())).limit.values] == [9, 0]


def test_a_closed_lab_ends_its_watches() -> None:
    lab = Lab(rtt_ms=0)
    watch = lab.watch(PORT)
    process = watch._process
    lab.close()
    assert watch.closed
    assert process.returncode == 0
    assert watch.history.duration_s >= 0
    watch.close()
    with pytest.raises(LabClosed):
        watch.__enter__()
    with pytest.raises(LabClosed):
        lab.watch(PORT)


KILLED = """
import sys
from labkit import Lab
lab = Lab(rtt_ms=0)
watch = lab.watch(8080)
print(watch._process.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_notebook_leaves_no_sampler(python: Callable[..., subprocess.Popen[str]], until: Until) -> None:
    process = python(KILLED)
    assert process.stdout is not None
    sampler = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{sampler}"))
    assert process.communicate()[1] == ""


def test_a_killed_sampler_is_told(lab: Lab) -> None:
    """What it had told is there; nothing hangs."""
    with lab.watch(PORT) as watch:
        watch._process.kill()
        watch._process.wait()
    assert watch.history.looks >= 1


@pytest.mark.parametrize("port", [0, 65536, -1, True, "80", 8080.0, None])
def test_ports_that_cannot_be(lab: Lab, port: object) -> None:
    with pytest.raises(InvalidValue, match="port"):
        lab.watch(port)  # type: ignore[arg-type]


@pytest.mark.parametrize("every_us", [0, 99, -5, float("nan"), float("inf"), "1000", True])
def test_periods_that_cannot_be(lab: Lab, every_us: object) -> None:
    with pytest.raises(InvalidValue, match="every_us"):
        lab.watch(PORT, every_us=every_us)  # type: ignore[arg-type]


def test_a_host_that_is_none(lab: Lab) -> None:
    with pytest.raises(InvalidValue, match="nowhere"):
        lab.watch(PORT, "nowhere")


def test_loopback_says_that_it_has_no_such_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=0) as lab, pytest.raises(NotAvailableHere, match="doctor"):
        lab.watch(PORT)


def test_the_kernels_own_refusal_comes_through(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without sock_diag, or a seccomp filter: nothing is left running."""

    def refused(*_: object) -> int:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(type(lab.server), "open_descriptor", refused)
    with pytest.raises(OSError, match="Protocol not supported"):
        Watch(lab.server, PORT)
