"""Other processes of this user's at a running lab: `labkit attach`, `labkit capture -w -`, a terminal of JupyterLab."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit import Lab
from labkit.errors import LabClosed, LabError
from labkit.handshakes import TlsClient
from labkit.network import attach
from labkit.servers import HttpServer

ROOT = Path(__file__).resolve().parent.parent
LABKIT = [sys.executable, "-m", "labkit"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def open_lab() -> Any:
    with Lab(rtt_ms=4) as lab:
        lab.open_door()
        yield lab


def labkit(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **options.pop("variables", {})}
    return subprocess.run([*LABKIT, *words], env=environment, capture_output=True, text=True, timeout=60, **options)


def test_a_shell_on_a_host_of_a_running_lab(open_lab: Lab) -> None:
    """By the lab's directory, and by its name; the exit status is the program's."""
    lines = "echo on $LABKIT_HOST\ngetent hosts $(hostname)\nexit 3\n"
    done = labkit("attach", "--lab", str(open_lab.directory), "server", input=lines)
    assert done.returncode == 3, done.stderr
    assert "on server" in done.stdout and open_lab.server.ip in done.stdout
    done = labkit("attach", "--lab", open_lab.directory.name, "client", "sh", "-c", "tty && exit 4", input="")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.startswith("/dev/pts/")


def test_what_cannot_be_attached_to(open_lab: Lab, tmp_path: Path) -> None:
    nowhere = {"TMPDIR": str(tmp_path)}
    cases = [
        (["attach", "server"], "no lab that can be attached to: start `labkit shell`"),
        (["attach", "--lab", "mine", "server"], "no lab 'mine' that can be attached to"),
        (["attach", "--lab", str(tmp_path), "server"], f"no running lab in {tmp_path}"),
        (["attach", "--lab", str(open_lab.directory), "proxy"], "no host 'proxy' in this lab"),
        (["attach", "--lab", str(open_lab.directory), "server", "nonesuch"], "no program 'nonesuch' on server"),
        (["capture", "-w", "-"], "no lab that can be attached to"),
        (["capture", "-w", "nowhere/x.pcapng"], "No such file or directory"),
    ]
    for words, said in cases:
        done = labkit(*words, variables=nowhere, input="", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_it_ends_with_the_lab_at_once(processes_of: Callable[[object], dict[int, str]]) -> None:
    """A shell ignores SIGTERM, and the lab does not wait for it."""
    with Lab(rtt_ms=0) as lab:
        lab.open_door()
        words = [*LABKIT, "attach", "--lab", str(lab.directory), "server", "sh", "-c"]
        words += ["trap '' TERM; echo there; cat"]
        there = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        assert there.stdout is not None
        assert there.stdout.readline() == b"there\r\n"
    _, said = there.communicate(timeout=20)
    assert (there.returncode, said) == (1, b"labkit attach: the lab has ended\n")
    assert processes_of(lab.directory) == {}
    with pytest.raises(LabClosed, match="no running lab in"):
        attach.attach(lab.directory, "server")


def test_who_goes_away_ends_the_program(open_lab: Lab, until: Callable[..., None]) -> None:
    """SIGKILL of the attached terminal: its program gets the hang-up."""
    words = [*LABKIT, "attach", "--lab", str(open_lab.directory), "server"]
    there = subprocess.Popen(
        [*words, "sh", "-c", "echo there; cat; nc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert there.stdout is not None and there.stdin is not None
    assert there.stdout.readline() == b"there\r\n"

    def inside() -> bool:
        found = open_lab.server.run(["sh", "-c", "grep -l '^echo there' /proc/*/cmdline 2>/dev/null"])
        return "proc" in found.stdout

    assert inside()
    there.kill()
    there.communicate()
    until(lambda: not inside())


def test_another_user_is_not_let_in(open_lab: Lab) -> None:
    """Not by the directory's mode, and not by a socket that was handed to it: the kernel says who it is."""
    assert os.stat(open_lab.directory).st_mode & 0o777 == 0o700
    if os.geteuid() != 0:
        pytest.skip("to become another user takes root")
    # Opened by root, connected by another: the credentials are those at connect(2).
    source = f"""
import os, socket, sys
folder = os.open({str(open_lab.directory)!r}, os.O_PATH)
os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    try:
        sock.connect(f"/proc/self/fd/{{folder}}/attach")
        sock.send(b'{{"op": "about"}}')
        print("answered", sock.recv(100))
    except OSError as exc:
        print("refused", exc.errno)
"""
    os.chmod(open_lab.directory / "attach", 0o777)
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20).stdout
    assert said.startswith(("refused", "answered b''"))
    os.chmod(open_lab.directory, 0o711)
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20).stdout
    assert said.startswith(("refused", "answered b''"))


def test_a_bad_request_harms_nobody(open_lab: Lab) -> None:
    with attach._connect(open_lab.directory) as connection:
        connection.send(b'{"op": "terminal", "host": "nobody", "args": [], "term": "dumb", "cwd": "/", "size": [1, 1]}')
        with pytest.raises(LabError, match="no host 'nobody'"):
            attach._reply(connection)
    assert attach._ask(open_lab.directory, {"op": "about"})["hosts"] == ["client", "server"]


def tshark(path: str, program: str, wanted: str, *words: str, **options: Any) -> list[str]:
    command = [program, "-r", path, "-Y", wanted, "-T", "fields", *words]
    done = subprocess.run(command, capture_output=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split()


def test_a_running_labs_wire_as_a_stream(open_lab: Lab, require_program: Callable[[str], str]) -> None:
    """`| tshark -r -` opens TLS with the secrets that stand in the stream, before the packets that need them."""
    program = require_program("tshark")
    words = [*LABKIT, "capture", "--lab", str(open_lab.directory), "-w", "-"]
    source = subprocess.Popen(words, stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert source.stdout is not None
    first = os.read(source.stdout.fileno(), 8)  # it captures from now on
    with HttpServer(open_lab.server, tls="1.3") as server:
        TlsClient(open_lab.client, server, version="1.3").fetch()
    open_lab.wire.settle()
    open_lab.close()
    stream = first + source.stdout.read()
    assert source.wait(20) == 0
    source.stdout.close()
    fields = ["-e", "http.request.method", "-e", "http.response.code"]
    assert tshark("-", program, "http", *fields, input=stream) == ["GET", "200"]
    assert len(tshark("-", program, "tcp.flags.syn == 1", "-e", "frame.number", input=stream)) == 2  # each once


def test_lines_in_a_lab_of_its_own_as_a_stream(require_program: Callable[[str], str], tmp_path: Path) -> None:
    """What programs say goes elsewhere where standard output is the stream."""
    program = require_program("tshark")
    require_program("ping")
    words = [*LABKIT, "capture", "--rtt-ms", "4", "-w", "-", "ping -c 1 server.lab", "server", "echo $((6 * 7))"]
    done = subprocess.run(words, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"1 received" in done.stderr and b"42" in done.stderr
    assert tshark("-", program, "icmp", "-e", "icmp.type", input=done.stdout) == ["8", "0"]
    done = labkit("capture", "-w", "x.pcapng", "false", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "labkit capture: line 1: 'false' ended with 1\n")
    assert (tmp_path / "x.pcapng").read_bytes()[:4] == b"\n\r\r\n"


def test_a_reader_that_goes_away_ends_the_stream(open_lab: Lab) -> None:
    ours, theirs = socket.socketpair()
    done: list[bool] = []
    stream = open_lab.stream(theirs.fileno(), lambda: done.append(True))
    theirs.close()
    ours.close()
    with HttpServer(open_lab.server, port=80) as server:
        open_lab.client.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('{open_lab.server.ip}', {server.port}))"]
        )
    stream._thread.join(20)
    assert done == [True]
    stream.close()
