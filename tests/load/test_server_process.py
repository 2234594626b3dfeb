"""A server function in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from book.execution.workers import process
from labkit import InvalidValue, Lab, LabClosed, LabError, NameTaken, NotAvailableHere
from labkit.load.server_process import ServerProcess, listening

Address = tuple[str, int]


def echo(address: Address) -> None:
    listener = socket.create_server(address)

    def serve(connection: socket.socket) -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), name="reader 1", daemon=True).start()


def never(address: Address) -> None:
    raise ValueError("the database is on fire")


def at_once(address: Address) -> None:
    print("good night", flush=True)


def forking(address: Address) -> None:
    listener = socket.create_server(address)
    for number in (1, 2):
        process(f"worker {number}", signal.pause)
    listener.accept()
    signal.pause()


def stubborn(address: Address) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.create_server(address)
    while True:
        listener.accept()


def said(lab: Lab, port: int = 8080) -> bytes:
    with lab.client, socket.create_connection(("server.lab", port), timeout=5) as sock:
        sock.sendall(b"hello")
        return sock.recv(100)


def test_it_serves_on_the_host_and_tells_its_threads(lab: Lab) -> None:
    with ServerProcess(lab.server, 8080, echo) as server:
        assert said(lab) == b"hello"
        assert server.pid != os.getpid()
        assert os.path.exists(f"/proc/{server.pid}")
        with lab.client, socket.create_connection(("server.lab", 8080), timeout=5) as sock:
            sock.sendall(b"x")
            sock.recv(1)
            names = [times.name for times in server.threads().values()]
        assert names[0] == "echo"
        assert "reader 1" in names
    assert listening(lab.server, 8080) == 0
    assert not os.path.exists(f"/proc/{server.pid}")
    server.close()


def test_a_cell_that_is_run_twice_takes_the_place_of_the_first(lab: Lab) -> None:
    first = ServerProcess(lab.server, 8080, echo)
    second = ServerProcess(lab.server, 8080, echo)
    assert first.closed
    assert not os.path.exists(f"/proc/{first.pid}")
    assert said(lab) == b"hello"
    second.close()


def test_its_children_end_with_it(lab: Lab, until: Callable[..., None]) -> None:
    with ServerProcess(lab.server, 8080, forking) as server:
        until(lambda: {"worker 1", "worker 2"} <= {times.name for times in server.threads().values()})
        pids = {times.pid for times in server.threads().values()}
        assert len(pids) == 3
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_a_worker_ends_with_a_server_that_is_killed(lab: Lab, until: Callable[..., None]) -> None:
    with ServerProcess(lab.server, 8080, forking) as server:
        until(lambda: len(server.threads()) == 3)
        pids = {times.pid for times in server.threads().values()}
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        assert server.threads() == {}


def test_one_that_does_not_heed_sigterm(lab: Lab) -> None:
    server = ServerProcess(lab.server, 8080, stubborn)
    lab.close()
    assert server.closed
    assert not os.path.exists(f"/proc/{server.pid}")


def test_a_closed_lab_has_none(lab: Lab) -> None:
    lab.close()
    with pytest.raises(LabClosed):
        ServerProcess(lab.server, 8080, echo)


@pytest.mark.parametrize(("function", "words"), [(never, "the database is on fire"), (at_once, "good night")])
def test_one_that_ends_before_it_listens_is_quoted(lab: Lab, function: Callable[..., None], words: str) -> None:
    with pytest.raises(LabError, match=words):
        ServerProcess(lab.server, 8080, function)
    assert listening(lab.server, 8080) == 0


def test_a_taken_port(lab: Lab) -> None:
    with lab.server, socket.create_server(("server.lab", 8080)):
        with pytest.raises(NameTaken, match="8080"):
            ServerProcess(lab.server, 8080, echo)


@pytest.mark.parametrize("port", [0, 70000, True, "80"])
def test_ports_that_cannot_be(lab: Lab, port: object) -> None:
    with pytest.raises(InvalidValue, match="port"):
        ServerProcess(lab.server, port, echo)  # type: ignore[arg-type]


def test_what_cannot_be_taken_there(lab: Lab) -> None:
    with pytest.raises(InvalidValue, match="function"):
        ServerProcess(lab.server, 8080, "echo")  # type: ignore[arg-type]
    lock = threading.Lock()
    with pytest.raises(InvalidValue, match="cannot be taken"):
        ServerProcess(lab.server, 8080, lambda address: lock.acquire())


def test_loopback_has_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=0) as lab, pytest.raises(NotAvailableHere):
        ServerProcess(lab.server, 8080, echo)


INTERRUPTED = """
import socket, sys, time
from labkit import Lab
from labkit.load.server_process import ServerProcess
def slow(address):
    print("started", flush=True)
    time.sleep(1000)
lab = Lab(rtt_ms=0)
print(lab.directory, flush=True)
try:
    ServerProcess(lab.server, 8080, slow)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


def test_an_interrupt_while_it_starts_leaves_nothing(
    python: Callable[..., subprocess.Popen[str]],
    processes_of: Callable[[object], dict[int, str]],
    until: Callable[..., None],
) -> None:
    notebook = python(INTERRUPTED)
    assert notebook.stdout is not None
    directory = notebook.stdout.readline().strip()

    def server() -> list[str]:
        return [words for words in processes_of(directory).values() if "server_process" in words]

    until(server)
    notebook.send_signal(signal.SIGINT)
    assert notebook.stdout.readline() == "interrupted\n"
    until(lambda: not server())


def test_one_that_is_stopped_ends_all_the_same(lab: Lab) -> None:
    server = ServerProcess(lab.server, 8080, echo)
    os.kill(server.pid, signal.SIGSTOP)
    server.close()
    assert server._program is not None
    assert server._program.returncode == -signal.SIGTERM
