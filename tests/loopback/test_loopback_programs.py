"""Programs on the tier "loopback": their addresses, what the wire sees of them, and that nothing is left of them."""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import InvalidValue, Lab, LabError, NameTaken, NotAvailableHere, NotReady, ProgramNotFound
from labkit.capture.captured import Captured
from labkit.loopback import ports
from labkit.network.engine import SocketAddress
from labkit.services import Service

Until = Callable[..., None]
Processes = Callable[[object], dict[int, str]]

PYTHON = [sys.executable, "-I", "-S", "-c"]
ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(listener.getsockname())
print("ready", flush=True)
if len(sys.argv) > 3:
    data, peer = datagrams.recvfrom(100)
    datagrams.sendto(b"echo " + data, peer)
connection, _ = listener.accept()
connection.sendall(b"echo " + connection.recv(100))
"""
SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
    connection.sendall(sys.argv[3].encode())
    print(connection.makefile().read(), end="")
"""
SAY_BY_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(sys.argv[3].encode())
    print(sock.recv(100).decode(), end="")
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=10) as lab:
        yield lab


def words(source: str, address: SocketAddress, *further: str) -> list[str]:
    return [*PYTHON, source, address.ip, str(address.port), *further]


def frames_by_host(captured: Captured) -> list[str]:
    return [frame.host for frame in captured.frames if frame.sent]


def test_a_program_listens_and_others_find_it_under_its_hosts_address(lab: Lab, until: Until) -> None:
    at = lab.server.bound(5432)
    assert at == lab.server.bound(5432)
    assert at.ip == "127.0.0.1"
    with lab.server.start(words(ECHO, at)) as program:
        until(lambda: program.stdout == "ready\n")
        with lab.capture() as capture, lab.client:
            with socket.create_connection(("server.lab", 5432), timeout=20) as connection:
                assert connection.getpeername() == (lab.server.ip, 5432)
                connection.sendall(b"hello")
                assert connection.makefile().read() == "echo hello"
        assert program.wait(20) == 0
    sent = frames_by_host(capture)
    assert sent.count("client") >= 4  # SYN, ACK, its words, FIN
    assert sent.count("server") >= 3


def test_a_program_comes_through_a_door(lab: Lab, until: Until) -> None:
    door = lab.client.door(lab.server, 8080)
    assert door == lab.client.door(lab.server, 8080)
    with lab.server:
        listener = socket.create_server((lab.server.ip, 8080))
    with listener, lab.capture() as capture:
        program = lab.client.start(words(SAY, door, "from a program"))
        connection, peer = listener.accept()
        with connection:
            assert peer[0] == lab.client.ip
            assert connection.recv(100) == b"from a program"
            connection.sendall(b"answered")
        assert program.wait(20) == 0
        assert program.stdout == "answered"
    first = capture.messages[0].flow
    assert (first.client, first.server_port) == (lab.client.ip, 8080)
    assert {"client", "server"} == set(frames_by_host(capture))


def test_program_to_program_by_tcp_and_udp(lab: Lab, until: Until) -> None:
    at, door = lab.server.bound(7), lab.client.door(lab.server, 7)
    with lab.server.start(words(ECHO, at, "and datagrams")) as program, lab.capture() as capture:
        until(lambda: program.stdout == "ready\n")
        assert lab.client.run(words(SAY_BY_UDP, door, "one")).check().stdout == "echo one"
        assert lab.client.run(words(SAY, door, "two")).check().stdout == "echo two"
    assert lab.wire.counts["client"]["up"].frames >= 5
    protocols = {packet.flow.protocol for packet in capture.messages}
    assert protocols == {"TCP", "UDP"}


def test_a_door_on_the_own_host_needs_no_wire(lab: Lab, until: Until) -> None:
    at, door = lab.server.bound(7), lab.server.door(lab.server, 7)
    assert at == door
    with lab.server.start(words(ECHO, at)) as program:
        until(lambda: program.stdout == "ready\n")
        assert lab.server.run(words(SAY, door, "near")).check().stdout == "echo near"
    assert lab.wire.counts["server"]["up"].frames == 0


def test_where_no_program_listens_connections_are_refused(lab: Lab, until: Until) -> None:
    at, door = lab.server.bound(9), lab.client.door(lab.server, 9)
    with lab.client, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("server.lab", 9), timeout=20)
    assert lab.client.run(words(SAY, door, "nobody")).stdout == ""  # it was open, and broke
    with lab.server.start(words(ECHO, at)) as program:
        until(lambda: program.stdout == "ready\n")
        assert lab.client.run(words(SAY, door, "somebody")).check().stdout == "echo somebody"
    with lab.client, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("server.lab", 9), timeout=20)


def test_a_program_without_an_address_would_be_on_the_machines_network(lab: Lab) -> None:
    door = lab.client.door(lab.server, 80)
    for args in (["curl", "http://server.lab/"], ["true"], ["echo", f"1{door.port}"]):
        with pytest.raises(NotAvailableHere, match=r"host\.bound\(port\) or host\.door\(server, port\)"):
            lab.client.run(args)
    assert lab.client.run(["echo", f"http://{door}/"]).stdout == f"http://{door}/\n"
    assert lab.client.run(["printenv", "AT"], env={"AT": str(door)}).stdout == f"{door}\n"
    with pytest.raises(NotAvailableHere):  # it was another host's
        lab.server.run(["echo", str(door)])


def test_names_that_are_taken_and_values_that_cannot_be(lab: Lab) -> None:
    with lab.server, socket.create_server((lab.server.ip, 80)):
        with pytest.raises(NameTaken, match="port 80 on server is taken"):
            lab.server.bound(80)
    for port in (0, 65536, "80"):
        with pytest.raises(InvalidValue, match="port"):
            lab.server.bound(port)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="a host of the same lab"):
        lab.client.door("server", 80)  # type: ignore[arg-type]


def test_output_end_and_signals_are_as_on_the_other_tiers(lab: Lab, until: Until, tmp_path: Path) -> None:
    at = {"AT": str(lab.client.bound(1))}
    done = lab.client.run(["sh", "-c", "cat; pwd; echo err >&2; exit 3"], stdin=b"in\n", cwd=str(tmp_path), env=at)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"in\n{tmp_path}\n", "err\n")
    program = lab.client.start(["sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.01; done"], env=at)
    until(lambda: program.stdout)
    assert program.returncode is None
    with pytest.raises(NotReady):
        program.wait(0)
    program.send_signal(signal.SIGUSR1)
    assert program.wait(10) == 7
    for words, failure in ((["no-such-program"], ProgramNotFound), (["/etc/passwd/x"], ProgramNotFound)):
        with pytest.raises(failure):
            lab.client.run(words, env=at)
    with pytest.raises(PermissionError):
        lab.client.run(["/etc/passwd"], env=at)
    assert [program.wait(20) for program in [lab.client.start(["true"], env=at) for _ in range(5)]] == [0] * 5


def test_the_kernel_knows_whose_a_connection_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        to = listener.getsockname()[1]
        with socket.create_connection(listener.getsockname()) as ours:
            port = ours.getsockname()[1]
            assert ports._connected_uid(port, to) == ports._listed_uid(socket.SOCK_STREAM, port, to) == os.getuid()
            assert ports.ours(socket.SOCK_STREAM, port, to)
            assert not ports.ours(socket.SOCK_STREAM, port, port)
        assert not ports.ours(socket.SOCK_STREAM, 1, to), "a listener that would take it is not it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_of_this_machine_gets_nothing_through_a_door(lab: Lab) -> None:
    door = lab.client.door(lab.server, 8080)
    with lab.server:
        listener = socket.create_server((lab.server.ip, 8080))
    other = ["setpriv", "--reuid=65534", "--clear-groups"]
    with listener:
        for source in (SAY, SAY_BY_UDP.replace("settimeout(20)", "settimeout(0.2)")):
            done = subprocess.run([*other, *words(source, door, "let me in")], capture_output=True, text=True)
            assert done.stdout == ""
        assert lab.wire.counts["client"]["up"].frames == 0


def test_a_service_that_listens_for_others_is_ended(lab: Lab, processes_of: Processes) -> None:
    source = "import socket; s = socket.create_server(('0.0.0.0', 0)); print('up', flush=True)"
    with pytest.raises(LabError, match=r"listens on 0\.0\.0\.0 port \d+, where others could reach it"):
        Service(lab.server, [*PYTHON, source + "; import time; time.sleep(100)"], ready="up", ports=[80])
    assert not any("create_server" in words for words in processes_of(lab.directory).values())


DAEMON = """
import os, sys, time
said, tell = os.pipe()
if os.fork():
    print(os.read(said, 20).decode(), flush=True)
    os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.write(tell, str(os.getpid()).encode())
time.sleep(1000)
"""


def test_a_daemon_ends_with_the_lab(lab: Lab, processes_of: Processes) -> None:
    daemon = lab.server.run([*PYTHON, DAEMON], env={"AT": str(lab.server.bound(1))}).check().stdout
    pidfd = os.pidfd_open(int(daemon))
    assert not select.select([pidfd], [], [], 0.1)[0]
    lab.close()
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    assert processes_of(lab.directory) == {}


def test_descriptors_and_children_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")

    def once() -> None:
        with Lab(rtt_ms=0) as lab:
            at, _ = lab.server.bound(1), lab.server.bound(2)
            lab.server.run(["echo", str(at), str(lab.client.door(lab.server, 3))]).check()
            lab.server.start(["sleep", "1000"], env={"AT": str(at)})

    def census() -> object:
        gc.collect()
        return sorted(os.listdir("/proc/self/fd")), Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    once()
    before = census()
    once()
    assert census() == before


def test_a_program_ends_with_its_keeper(lab: Lab, until: Until, processes_of: Processes) -> None:
    program = lab.server.start(["sleep", "1000"], env={"AT": str(lab.server.bound(1))})
    (keeper,) = [pid for pid, words in processes_of(lab.directory).items() if "loopback.keeper" in words]
    os.kill(keeper, signal.SIGKILL)
    assert program.wait(10) == -signal.SIGKILL
    until(lambda: not any("sleep" in words for words in processes_of(lab.directory).values()))


KILLED = """
import os, sys
os.environ["LABKIT_TIER"] = "loopback"
from labkit import Lab
lab = Lab(rtt_ms=0)
env = {"AT": str(lab.server.bound(1))}
lab.server.start(["sh", "-c", "trap '' TERM; setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000"], env=env)
# It writes into the lab's directory as fast as it can: no remover of that may be too early.
writing = "mkdir d; while :; do echo > d/$$; rm -r d; mkdir d; done"
lab.server.start(["sh", "-c", writing], env=env, cwd=str(lab.directory))
print(lab.directory, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "the end of its input"])
def test_a_notebook_that_ends_leaves_nothing(
    python: Callable[..., subprocess.Popen[str]], processes_of: Processes, until: Until, how: str
) -> None:
    process = python(KILLED)
    assert process.stdout is not None
    directory = process.stdout.readline().strip()
    until(lambda: sum("sleep" in words for words in processes_of(directory).values()) >= 3)
    if how == "SIGKILL":
        process.kill()
    process.communicate(timeout=20)
    until(lambda: not [words for pid, words in processes_of(directory).items()])
    until(lambda: not Path(directory).exists())


INTERRUPTED = """
import gc, os, signal, sys
from labkit import Lab
from labkit.services import Service

def interrupt(number, frame):
    # A KeyboardInterrupt wherever work() is; what comes outside of it is too late, and the next one counts.
    while frame is not None:
        if frame.f_code is work.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back

def work():
    lab.client.run(["true"], env=env)
    with Service(lab.server, ["sleep", "1000"], ready=lambda _: True, ports=[9], patience_s=0.5):
        lab.client.start(["sh", "-c", "setsid sleep 1000 & sleep 1000"], env=env).close()

with Lab(rtt_ms=0) as lab:
    env = {"AT": str(lab.client.bound(1))}
    work()
    signal.signal(signal.SIGINT, interrupt)
    print(lab.directory, flush=True)
    interrupted = 0
    while interrupted < int(sys.argv[1]):
        try:
            work()
        except KeyboardInterrupt:
            interrupted += 1
            print("interrupted", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work()
    print("usable", flush=True)
gc.collect()
print("done", open(f"/proc/self/task/{os.getpid()}/children").read().split(), flush=True)
"""


def test_interrupts_at_any_point(
    python: Callable[..., subprocess.Popen[str]], processes_of: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    moments, rounds = random.Random("interrupts"), 20
    process = python(INTERRUPTED, str(rounds))
    assert process.stdout is not None
    directory = process.stdout.readline().strip()
    for _ in range(rounds):
        select.select([process.stdout], [], [], moments.random() ** 2 * 0.2)  # a moment, and not a wait for anything
        while True:  # Python had one in a weakref's callback, where exceptions are ignored, or outside of work()
            process.send_signal(signal.SIGINT)
            if select.select([process.stdout], [], [], 0.5)[0]:
                break
        line = process.stdout.readline()
        assert line == "interrupted\n", line + process.communicate()[1]
    out, err = process.communicate(timeout=60)
    assert out.splitlines() == ["usable", "done []"], out + err
    assert processes_of(directory) == {}
    assert not Path(directory).exists()
