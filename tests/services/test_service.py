"""Service: from the start of a program to its end, with small programs that do what is asked."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import InvalidValue, Lab, LabClosed, LabError, NameTaken, NotReady, ProgramNotFound
from labkit.services import Service

Until = Callable[..., None]
Processes = Callable[[object], dict[int, str]]

PYTHON = [sys.executable, "-I", "-S", "-c"]
# Answers each connection with the text in the file "answer", at the address that it is given as "ip:port".
SERVER = """
import socket, sys
ip, port = sys.argv[1].split(":")
listener = socket.create_server((ip, int(port)))
print("it listens now", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(open("answer", "rb").read())
    connection.close()
"""
WORDS = [*PYTHON, SERVER, "server.lab:8080"]
FILES = {"answer": "hello"}


@pytest.fixture(scope="module", params=["", "loopback"])
def shared(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One lab for tests that leave nothing on it, on the best tier and on the lowest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_TIER", request.param)
        lab = Lab(rtt_ms=1)
    with lab:
        yield lab


def answer(lab: Lab, port: int = 8080) -> bytes:
    with lab.client, socket.create_connection((lab.server.ip, port), timeout=10) as connection:
        return connection.makefile("rb").read()


PROBES: dict[str, Any] = {
    "port": 8080,
    "line": r"^it listens \w+$",
    "command": [*PYTHON, "import socket, sys; ip, port = sys.argv[1].split(':'); socket.create_connection((ip, port))"],
    "function": lambda service: service.address.port == 8080 and "listens" in service.log,
}
PROBES["command"].append("server.lab:8080")


@pytest.mark.parametrize("probe", PROBES)
def test_it_is_ready_when_the_probe_says_so(shared: Lab, probe: str) -> None:
    with Service(shared.server, WORDS, ready=PROBES[probe], files=FILES) as service:
        if probe != "port":  # which is known a moment before the line is in the log
            assert service.log.startswith("it listens now\n")
        assert answer(shared) == b"hello"
        assert service.ports == (8080,)
        assert service.address == (shared.server.ip, 8080)
        assert service.running
        assert service.ready() is service
    assert not service.running
    with pytest.raises(OSError, match="refused"):
        answer(shared)


def test_one_line_says_what_it_is_and_how_it_is(shared: Lab) -> None:
    service = Service(shared.server, WORDS, ready=8080, files=FILES)
    assert repr(service).startswith("<Service server.lab:8080, ready after ")
    service.close()
    assert repr(service) == "<Service server.lab:8080, closed>"
    assert "it listens now" in service.log
    with pytest.raises(LabClosed, match="run the cell"):
        service.ready()
    service.close()


def test_its_directory_is_its_own_and_goes_with_it(shared: Lab) -> None:
    files = {"answer": "hello", "folder/server.conf": "listen server.lab:8080; proxy client.lab:90; name server.lab;"}
    with Service(shared.server, WORDS, ready=8080, files=files) as service:
        assert service.directory.parent == shared.directory
        assert stat.S_IMODE(service.directory.stat().st_mode) == 0o700
        text = (service.directory / "folder/server.conf").read_text()
        at, to = shared.server.bound(8080), shared.server.door(shared.client, 90)
        assert text == f"listen {at}; proxy {to}; name server.lab;"
        if shared.can("kernel"):
            assert (at, to) == ((shared.server.ip, 8080), (shared.client.ip, 90))
        else:
            assert at.ip == to.ip == "127.0.0.1"
    assert not service.directory.exists()


def test_certificates_and_the_key_log_lie_beside_a_file_that_names_them(shared: Lab) -> None:
    with Service(
        shared.server, ["sleep", "100"], ready=lambda _: True, ports=[9], files={"a": "cert certificate.pem"}
    ) as service:
        names = {path.name for path in service.directory.iterdir()}
        assert names == {"a", "certificate.pem", "key.pem", "both.pem", "authority.pem"}
        assert (service.directory / "authority.pem").read_bytes() == shared.authority.ca_pem
    with Service(
        shared.server, ["sleep", "100"], ready=lambda _: True, ports=[9], files={"a": "log keylog.txt"}
    ) as service:
        assert {path.name for path in service.directory.iterdir()} == {"a", "keylog.txt"}
        assert (service.directory / "keylog.txt").resolve() == shared.keylog_path.resolve()


def left(lab: Lab, processes_of: Processes) -> list[str]:
    return list(processes_of(lab.directory).values())


def test_one_that_ends_at_once_says_why(shared: Lab, processes_of: Processes, until: Until) -> None:
    words = ["sh", "-c", "sleep 654321 & echo to the log; echo what is wrong >&2; exit 3"]
    with pytest.raises(LabError, match=r"Service on server ended with 3 before it was ready.*\nto the log\nwhat is wr"):
        Service(shared.server, words, ready=8080, ports=[8080])
    until(lambda: not any("sleep 654321" in words for words in left(shared, processes_of)))


def test_a_deadline_ends_it_with_its_last_lines(shared: Lab, processes_of: Processes, until: Until) -> None:
    words = ["sh", "-c", "echo waiting; sleep 765432"]
    with pytest.raises(NotReady, match=r"after 0\.3 s, for which port 8080 has to accept a connection.*\nwaiting"):
        Service(shared.server, words, ready=8080, ports=[8080], timeout_s=0.3)
    until(lambda: not any("sleep 765432" in words for words in left(shared, processes_of)))


def test_a_probe_that_fails_is_told(shared: Lab) -> None:
    with pytest.raises(NotReady, match="'false' has to answer 0"):
        Service(shared.server, ["sleep", "100"], ready=["false"], ports=[9], timeout_s=0.2)
    with pytest.raises(NotReady, match="its log has to match 'never'"):
        Service(shared.server, ["sleep", "100"], ready="never", ports=[9], timeout_s=0.2)

    def broken(_: Service) -> bool:
        raise ZeroDivisionError("in the probe")

    with pytest.raises(ZeroDivisionError, match="in the probe"):
        Service(shared.server, ["sleep", "100"], ready=broken, ports=[9])


def test_in_the_background_the_first_use_waits(shared: Lab) -> None:
    go = threading.Event()
    with Service(shared.server, WORDS, ready=lambda s: go.is_set(), files=FILES, background=True) as service:
        assert repr(service) == "<Service server.lab:8080, starting>"
        assert not service.running
        go.set()
        assert service.address == (shared.server.ip, 8080)
        assert service.ready_s > 0


def test_what_fails_in_the_background_is_raised_by_the_first_use(shared: Lab) -> None:
    service = Service(shared.server, ["sh", "-c", "echo no licence; exit 1"], ready=8080, ports=[8080], background=True)
    for _ in range(2):
        with pytest.raises(LabError, match=r"ended with 1 before it was ready.*\nno licence"):
            service.ready()
    assert repr(service) == "<Service server.lab:8080, failed>"
    service.close()


def test_one_that_ends_later_says_so_when_it_is_used(shared: Lab, until: Until) -> None:
    script = "echo up; until test -e end; do sleep 0.01; done; exit 4"
    with Service(shared.server, ["sh", "-c", script], ready="up", ports=[9]) as service:
        service.ready()
        (service.directory / "end").touch()
        until(lambda: not service.running)
        assert repr(service) == "<Service server.lab:9, ended with 4>"
        with pytest.raises(LabError, match=r"ended by itself, with 4. Its last lines:\nup"):
            service.ready()


@pytest.mark.parametrize(("stop", "heard"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_it_is_asked_to_end_by_its_signal(shared: Lab, stop: int, heard: str) -> None:
    script = "trap 'echo INT; exit' INT; trap 'echo TERM; exit' TERM; echo up; while :; do sleep 0.01; done"
    with Service(shared.server, ["sh", "-c", script], ready="up", ports=[9], stop=stop) as service:
        pass
    assert {"INT", "TERM"} & set(service.log.split()) == {heard}


def test_patience_has_an_end(shared: Lab, processes_of: Processes) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    Service(shared.server, ["sh", "-c", script], ready="up", ports=[9], patience_s=0.2).close()
    assert not any(script in words for words in left(shared, processes_of))


def test_run_twice_the_first_one_ends(shared: Lab) -> None:
    first = Service(shared.server, WORDS, ready=8080, files={"answer": "first"})
    second = Service(shared.server, WORDS, ready=8080, files={"answer": "second"})
    assert first.closed
    assert answer(shared) == b"second"
    named = Service(shared.server, ["sleep", "100"], ready=lambda _: True, ports=[9], name="sleeper")
    Service(shared.server, ["sleep", "100"], ready=lambda _: True, ports=[9], name="sleeper").close()
    assert named.closed
    second.close()


def test_run_twice_while_the_first_one_starts(shared: Lab) -> None:
    first = Service(shared.server, WORDS, ready="never", files=FILES, background=True)
    with Service(shared.server, WORDS, ready=8080, files=FILES):
        assert first.closed
        with pytest.raises(LabClosed):
            first.ready()


def test_a_port_that_is_taken(shared: Lab) -> None:
    with shared.server, socket.create_server((shared.server.ip, 8080)):
        with pytest.raises(NameTaken, match="port 8080/tcp on server is taken"):
            Service(shared.server, WORDS, ready=8080, files=FILES)


def test_memory_is_named_by_program(shared: Lab, processes_of: Processes, until: Until) -> None:
    words = ["sh", "-c", "sleep 100 & setsid sleep 100 & echo up; wait"]
    with Service(shared.server, words, ready="up", ports=[9]) as service:
        until(lambda: service.memory.by_name.keys() == {"sh", "sleep"})  # setsid becomes sleep
        memory = service.memory
        assert memory.total_bytes == sum(memory.by_name.values()) > 0
        assert f"MiB {memory.kind}: " in repr(memory)
    assert service.memory.by_name == {}
    assert not any("sleep 100" in words for words in left(shared, processes_of))  # also that in a session of its own


BAD: dict[str, dict[str, Any]] = {
    "args=.sleep 1.: give a list": {"args": "sleep 1"},
    "args=\\[\\]: give the program": {"args": []},
    "ready=None": {"ready": None},
    "no regular expression": {"ready": "("},
    "ready=70000": {"ready": 70000},
    "timeout_s='long'": {"timeout_s": "long"},
    "patience_s=-1": {"patience_s": -1},
    "ports='web'": {"ports": ["web"]},
    "below the service's own directory": {"files": {"../keylog.txt": "x"}},
    "files=.*both texts": {"files": {"a": b"bytes"}},
    "files=.a.: give a dictionary": {"files": "a"},
    "value of 'PORT' is no text": {"env": {"PORT": 80}},
    "background=1: give True or False": {"background": 1},
    "stop='TERM': give a whole number": {"stop": "TERM"},
    "name=5: give a text": {"name": 5},
    "ports=80: give a list of ports": {"ports": 80},
}


@pytest.mark.parametrize("message", BAD)
def test_arguments_that_cannot_be(shared: Lab, processes_of: Processes, message: str) -> None:
    before, directories = processes_of(shared.directory), sorted(shared.directory.iterdir())
    with pytest.raises(InvalidValue, match=message):
        Service(shared.server, **{"args": ["sleep", "100"], "ready": 80, **BAD[message]})
    assert processes_of(shared.directory).keys() <= before.keys()  # an earlier one's keeper may end meanwhile
    assert sorted(shared.directory.iterdir()) == directories


def test_a_host_is_no_name() -> None:
    with pytest.raises(InvalidValue, match="host='server': give a host of the lab"):
        Service("server", ["sleep", "1"], ready=80)  # type: ignore[arg-type]


def test_a_program_that_is_missing(shared: Lab) -> None:
    with pytest.raises(ProgramNotFound, match="no-such-program"):
        Service(shared.server, ["no-such-program"], ready=80)


@pytest.mark.parametrize("tier", ["", "loopback"])
def test_closing_the_lab_while_it_starts(processes_of: Processes, monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    monkeypatch.setenv("LABKIT_TIER", tier)
    lab = Lab(rtt_ms=0)
    service = Service(lab.server, ["sleep", "100"], ready=lambda _: False, ports=[9], background=True)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            service.ready()
        except LabClosed as exc:
            failed.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    lab.close()
    waiting.join(10)
    assert len(failed) == 1
    assert service.closed
    assert processes_of(lab.directory) == {}
    assert not lab.directory.exists()
    assert [thread.name for thread in threading.enumerate() if "Service" in thread.name] == []
    with pytest.raises(LabClosed):
        Service(lab.server, ["sleep", "100"], ready=80)


def test_what_was_killed_starts_again_where_its_data_lie(shared: Lab) -> None:
    with Service(shared.server, WORDS, ready=8080, files=FILES) as service:
        with pytest.raises(LabError, match="still runs: kill"):
            service.start_again()
        (service.directory / "answer").write_text("written by itself")
        service.kill()
        assert not service.running
        with pytest.raises(LabError, match="ended by itself, with -9"):
            service.ready()
        assert service.start_again() is service
        assert service.running
        assert answer(shared) == b"written by itself"
        service.kill()
    with pytest.raises(LabClosed):
        service.start_again()


def test_what_did_not_start_again_can_be_started_again(shared: Lab) -> None:
    """It lets go of its port, although its program runs when the start fails."""

    def listens(service: Service) -> bool:
        if "it listens" in service.log and (service.directory / "broken").exists():
            raise ZeroDivisionError("in the probe")
        return "it listens" in service.log

    with Service(shared.server, WORDS, ready=listens, files=FILES) as service:
        service.kill()
        (service.directory / "broken").touch()
        with pytest.raises(ZeroDivisionError):
            service.start_again()
        assert not service.running
        (service.directory / "broken").unlink()
        service.start_again()
        assert answer(shared) == b"hello"


INTERRUPTED = """
import sys, threading
from labkit import Lab
from labkit.services import Service
with Lab(rtt_ms=0) as lab:
    try:
        Service(lab.server, ["sh", "-c", "sleep 100 & sleep 100"], ready=lambda s: print("starting", flush=True),
                ports=[9])
    except KeyboardInterrupt:
        print("interrupted", lab.directory, flush=True)
    sys.stdin.readline()
    with Service(lab.server, ["sleep", "100"], ready=lambda _: True, ports=[9]) as service:
        print(service.running, [thread.name for thread in threading.enumerate()], flush=True)
"""


@pytest.mark.parametrize("tier", ["", "loopback"])
def test_an_interrupted_start_leaves_nothing(
    python: Callable[..., subprocess.Popen[str]], processes_of: Processes, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    monkeypatch.setenv("LABKIT_TIER", tier)
    process = python(INTERRUPTED)
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGINT)
    line = next(line for line in process.stdout if line != "starting\n")
    word, directory = line.split()
    assert word == "interrupted"
    assert not any("sleep" in words for words in processes_of(directory).values())
    assert [path for path in Path(directory).iterdir() if path.is_dir()] == []
    out, err = process.communicate("go on\n", timeout=30)
    assert out == "True ['MainThread']\n", err
    assert os.path.exists(directory) is False
