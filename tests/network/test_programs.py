"""Programs on hosts: output, ends, deadlines, daemons, names, rights."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import InvalidValue, Lab, LabClosed, LabError, NotReady, ProgramNotFound

Until = Callable[..., None]
Processes = Callable[[object], dict[int, str]]


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def test_output_and_exit_status(lab: Lab) -> None:
    done = lab.client.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(LabError, match=r"ended with 3: err"):
        done.check()
    assert lab.client.run(["true"]).check().returncode == 0
    assert lab.client.run(["sh", "-c", "kill -9 $$"]).returncode == -signal.SIGKILL


def test_stdin_cwd_and_environment(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_THE_NOTEBOOK", "kept")
    done = lab.client.run(
        ["sh", "-c", "cat; pwd; echo $FROM_THE_NOTEBOOK $MINE"], stdin=b"in\n", cwd=str(tmp_path), env={"MINE": "too"}
    )
    assert done.stdout == f"in\n{tmp_path}\nkept too\n"
    assert lab.client.run(["pwd"], cwd=tmp_path).stdout == f"{tmp_path}\n"  # type: ignore[arg-type]
    assert lab.client.run(["pwd"]).stdout == f"{os.getcwd()}\n"
    assert lab.client.run(["cat"]).stdout == ""


def test_a_notebooks_colours_are_not_for_what_is_read_as_text(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """ipykernel sets FORCE_COLOR, by which Python 3.13 and later colour a traceback that goes to a file."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    failed = lab.server.run([sys.executable, "-c", "1/0"])
    assert failed.stderr.endswith("\nZeroDivisionError: division by zero\n")
    chosen = lab.server.run(
        [sys.executable, "-c", "import os; print(os.environ['FORCE_COLOR'])"], env={"FORCE_COLOR": "2"}
    )
    assert chosen.stdout == "2\n"


def test_big_output_blocks_nobody(lab: Lab) -> None:
    done = lab.client.run([sys.executable, "-c", "import sys; sys.stdout.write('x' * 9_000_000)"])
    assert len(done.check().stdout) == 9_000_000


def test_output_can_be_read_while_it_runs(lab: Lab, until: Until) -> None:
    program = lab.client.start(["sh", "-c", "echo ready; exec sleep 100"])
    until(lambda: program.stdout == "ready\n")
    assert "running" in repr(program)
    with pytest.raises(NotReady):
        program.wait(0)
    program.close()
    assert program.returncode == -signal.SIGTERM
    program.close()
    assert program.stdout == "ready\n"


def test_the_deadline_ends_the_program_and_its_children(lab: Lab, processes_of: Processes, until: Until) -> None:
    stubborn = "trap '' TERM; sleep 654321 & (trap '' TERM; while :; do sleep 1; done) & trap - TERM; wait"
    with pytest.raises(NotReady, match=r"did not end in 0\.3 s"):
        lab.client.run(["sh", "-c", stubborn], timeout_s=0.3)
    until(lambda: not any("sleep" in words or "trap" in words for words in processes_of(lab.directory).values()))


def test_a_program_that_ignores_sigterm_is_killed(lab: Lab, until: Until) -> None:
    program = lab.client.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    until(lambda: program.stdout == "ready\n")
    program.close(timeout_s=0.2)
    assert program.returncode == -signal.SIGKILL


@pytest.mark.parametrize("words", [["no-such-program"], ["/no/such/program"], ["/etc/passwd/program"]])
def test_a_program_that_is_missing_leaves_nothing(lab: Lab, processes_of: Processes, words: list[str]) -> None:
    lab.client.run(["true"])
    gc.collect()
    before, processes = descriptors(), processes_of(lab.directory)
    for start in (lab.client.run, lab.client.start):
        with pytest.raises(ProgramNotFound, match=words[0]):
            start(words)
    gc.collect()
    assert descriptors() == before
    assert processes_of(lab.directory) == processes
    assert lab.client.run(["echo", "still here"]).stdout == "still here\n"


def test_a_closed_directory_on_path_does_not_hide_that_a_program_is_missing(lab: Lab, tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with pytest.raises(ProgramNotFound):
        lab.client.run(["no-such-program"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    tmp_path.chmod(0o700)


def test_a_missing_directory_is_named(lab: Lab) -> None:
    with pytest.raises(ProgramNotFound, match="directory '/no/such'"):
        lab.client.run(["true"], cwd="/no/such")


def test_the_kernels_refusal_keeps_its_number(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a program")
    with pytest.raises(PermissionError):
        lab.client.run([str(tmp_path / "data")])
    with pytest.raises(InvalidValue, match="null"):
        lab.client.run(["echo", "a\0b"])


@pytest.mark.parametrize("words", ["ls -l", [], [1], b"ls", ["ls", Path("/")]])
def test_arguments_that_cannot_be(lab: Lab, words: list[str]) -> None:
    with pytest.raises(InvalidValue, match=r"args=.* list of texts"):
        lab.client.run(words)


def test_environment_values_are_strings(lab: Lab) -> None:
    with pytest.raises(InvalidValue, match="PORT"):
        lab.client.run(["true"], env={"PORT": 80})  # type: ignore[dict-item]


def test_a_program_has_nothing_of_the_labs_but_its_own(lab: Lab) -> None:
    """Neither the control sockets nor the notebook's pidfd reach it; 3 is ls's own."""
    names = lab.client.run(["ls", "/proc/self/fd"]).check().stdout.split()
    assert names == ["0", "1", "2", "3"]


def test_programs_find_hosts_by_name(lab: Lab) -> None:
    served = threading.Event()
    with lab.server:
        listener = socket.create_server(("", 80))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nfor curl")
        served.set()

    thread = threading.Thread(target=serve)
    thread.start()
    source = "import urllib.request; print(urllib.request.urlopen('http://server.lab/', timeout=20).read().decode())"
    with listener:
        assert lab.client.run([sys.executable, "-c", source]).check().stdout == "for curl\n"
        thread.join(10)
    assert served.is_set()


def test_curl_by_name(lab: Lab, require_program: Callable[[str], str]) -> None:
    curl = require_program("curl")
    with lab.server:
        listener = socket.create_server(("", 80))
    with listener:
        program = lab.client.start([curl, "-sS", "http://server.lab/"])
        listener.settimeout(20)
        connection, peer = listener.accept()
        with connection:
            assert peer[0] == lab.client.ip
            assert b"Host: server.lab" in connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nfor curl")
        assert program.wait(20) == 0
    assert program.stdout == "for curl"


def test_a_program_is_the_ordinary_user_and_runs_its_hosts_network(
    lab: Lab, require_program: Callable[[str], str]
) -> None:
    ip = require_program("ip")  # and ss, of the same package
    assert lab.client.run(["id", "-u"]).check().stdout.strip() == str(os.geteuid())
    assert lab.client.ip in lab.client.run([ip, "-br", "address", "show", "eth0"]).check().stdout
    lab.client.run([ip, "address", "add", "10.99.0.1/32", "dev", "eth0"]).check()
    assert "10.99.0.1" in lab.client.run([ip, "address"]).check().stdout
    assert "10.99.0.1" not in lab.server.run([ip, "address"]).check().stdout
    with lab.server, socket.create_server(("", 8080)):
        assert ":8080" in lab.server.run(["ss", "-ltn"]).check().stdout
        assert ":8080" not in lab.client.run(["ss", "-ltn"]).check().stdout


def test_signals_reach_the_program(lab: Lab, until: Until) -> None:
    program = lab.client.start(["sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done"])
    until(lambda: program.stdout)
    program.send_signal(signal.SIGUSR1)
    assert program.wait(10) == 7
    program.send_signal(signal.SIGUSR1)  # nobody is there any more


DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
print(os.getpid(), flush=True)
time.sleep(1000)
"""


def test_a_daemon_ends_with_the_lab(processes_of: Processes, until: Until) -> None:
    with Lab(rtt_ms=0) as lab:
        program = lab.server.start([sys.executable, "-c", DAEMON, str(lab.directory)])
        assert program.wait(20) == 0
        until(lambda: program.stdout)
        (daemon,) = [pid for pid, words in processes_of(lab.directory).items() if "time.sleep" in words]
        pidfd = os.pidfd_open(daemon)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    assert processes_of(lab.directory) == {}
    with pytest.raises(LabClosed):
        lab.server.run(["true"])


def test_closing_the_lab_ends_a_wait(until: Until) -> None:
    lab = Lab(rtt_ms=0)
    program = lab.client.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    until(lambda: program.stdout)
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(program.wait(60)))
    thread.start()
    os.kill(lab.engine.helper_pid, signal.SIGKILL)
    thread.join(10)
    assert status == [-signal.SIGKILL]
    lab.close()


def test_many_programs_at_once(lab: Lab) -> None:
    programs = [lab.client.start(["sh", "-c", f"exit {number}"]) for number in range(30)]
    assert [program.wait(20) for program in programs] == list(range(30))


IGNORING = """
import signal, time
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from labkit import Lab
with Lab(rtt_ms=0) as lab:
    status = lab.client.run(["grep", "^Sig[BI]", "/proc/self/status"]).check().stdout
print(status)
"""


def test_a_program_ignores_no_signal_by_inheritance(python: Callable[..., subprocess.Popen[str]]) -> None:
    """A notebook in the background of a script ignores SIGINT, and under nohup SIGHUP."""
    out, err = python(IGNORING).communicate(timeout=60)
    masks = {name: int(mask, 16) for name, mask in (line.split(":") for line in out.splitlines() if line)}
    assert set(masks) == {"SigBlk", "SigIgn"}, err
    # Of those that a program can set: 32 and 33 are the C library's own, and whoever has them ignored hands that on.
    ours = sum(1 << (number - 1) for number in signal.valid_signals())
    assert {name: mask & ours for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}, err


def test_a_program_that_ended_by_itself_says_so(lab: Lab, until: Until) -> None:
    program = lab.server.start(["sh", "-c", "sleep 0.2; exit 3"])
    assert repr(program) == "<Program 'sh -c sleep 0.2; exit 3' on server, running>"
    until(lambda: program.returncode is not None)
    assert (program.returncode, program.wait(0)) == (3, 3)
    assert repr(program).endswith("on server, ended with 3>")


def test_its_state_can_be_asked_for_while_somebody_waits(lab: Lab) -> None:
    program = lab.server.start(["sleep", "1"])
    waiting = threading.Thread(target=program.wait)
    waiting.start()
    assert program.returncode is None
    program.send_signal(signal.SIGTERM)
    waiting.join(10)
    assert program.returncode == -signal.SIGTERM


def test_a_host_knows_its_own_name(lab: Lab) -> None:
    """As outside: Erlang, Java and sudo ask for the address of the machine's name."""
    code = "import socket; name = socket.gethostname(); print(name, socket.gethostbyname(name), socket.getfqdn())"
    for host in (lab.client, lab.server):
        assert host.run([sys.executable, "-c", code]).check().stdout.split() == [host.name, host.ip, host.fqdn]
    assert socket.gethostname() not in lab.hosts


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's programs cannot change their user anywhere")
def test_programs_of_root_may_change_their_user(lab: Lab) -> None:
    """As nginx, sshd and postgres do. They still know the lab's names, whatever the umask."""
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    assert lab.server.run([*nobody, "id", "-u"]).check().stdout == "65534\n"
    assert lab.server.run([*nobody, "getent", "hosts", "client.lab"]).check().stdout.split()[0] == lab.client.ip
    assert lab.server.run(["id", "-u"]).stdout == "0\n"
