"""What is started inside ``with host:``: children of this process as anywhere, on the host, and gone with the lab."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit import Lab, NotAvailableHere, OutsideTheLab

Start = Callable[..., "subprocess.Popen[str]"]
Processes = Callable[[object], dict[int, str]]


def name_of(*_: object) -> str:
    return subprocess.check_output(["hostname"], text=True).strip()


def test_a_child_is_as_anywhere(lab: Lab, tmp_path: Path) -> None:
    """Output, status, directory, environment, descriptors, session and signals are what Popen was asked for."""
    (tmp_path / "inner").mkdir()
    read, write = os.pipe()
    script = "cat; pwd; echo $MINE; echo there >/dev/fd/$WRITE; cut -d' ' -f6 /proc/$$/stat; echo $$; exit 5"
    with lab.client:
        child = subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path / "inner",
            env={"MINE": "too", "WRITE": str(write), "PATH": os.environ["PATH"]},
            pass_fds=[write],
            start_new_session=True,
            text=True,
        )
        out, _ = child.communicate("in\n")
    os.close(write)
    assert os.read(read, 100) == b"there\n"
    os.close(read)
    pid = str(child.pid)
    assert (child.returncode, out.split()) == (5, ["in", str(tmp_path / "inner"), "too", pid, pid])
    with lab.client:
        child = subprocess.Popen(["sleep", "100"])
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM
    for look in (["grep", "SigIgn", "/proc/self/status"], ["ls", "/proc/self/fd"]):
        for options in ({}, {"close_fds": False}, {"restore_signals": False}):
            with lab.client:
                seen = subprocess.check_output(look, **options)  # type: ignore[call-overload]
            assert seen == subprocess.check_output(look, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["no-such-program"], {}),
        (["/no/such/program"], {}),
        (["/etc/passwd"], {}),
        (["/etc/passwd/program"], {}),
        (["true"], {"cwd": "/no/such/directory"}),
    ],
)
def test_what_cannot_be_started_fails_as_anywhere(lab: Lab, args: list[str], options: dict[str, Any]) -> None:
    def failure() -> tuple[object, ...]:
        with pytest.raises(OSError, match=r"Errno") as caught:
            subprocess.run(args, **options)
        return type(caught.value), caught.value.errno, caught.value.filename

    expected = failure()
    with lab.client:
        assert failure() == expected
        assert subprocess.check_output(["hostname"]) == b"client\n"


def test_a_closed_directory_on_the_path_is_passed_by(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user's PATH may name folders of others, and files in it that are no programs."""
    (tmp_path / "hostname").touch(mode=0o600)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with lab.client:
        assert subprocess.check_output(["hostname"]) == b"client\n"
        child = os.posix_spawnp("hostname", ["hostname"], os.environ)
        assert os.waitpid(child, 0)[1] == 0
        (tmp_path / "no-program").touch(mode=0o600)
        with pytest.raises(PermissionError):
            subprocess.run(["no-program"])


def test_posix_spawn_and_system_fail_as_anywhere(lab: Lab) -> None:
    with lab.client:
        for path in ("/no/such/program", "/etc/passwd"):
            with pytest.raises(OSError, match=path) as caught:
                os.posix_spawn(path, [path], {})
            assert caught.value.filename == path
        assert os.waitstatus_to_exitcode(os.system("exit 3")) == 3
        assert os.waitstatus_to_exitcode(os.system("kill -9 $$")) == -signal.SIGKILL


def test_threads_and_tasks_do_not_mix(lab: Lab) -> None:
    """Each child is where the block of its own thread is; outside a block it is on the machine."""
    names: dict[str, str] = {}

    def run(host: Any) -> None:
        with host:
            names[host.name] = name_of()

    threads = [threading.Thread(target=run, args=[host]) for host in (lab.client, lab.server)]
    with lab.server:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert names == {"client": "client", "server": "server"}
    assert name_of() == socket.gethostname() not in lab.hosts


def test_one_that_closes_all_descriptors_is_on_the_host(lab: Lab) -> None:
    """As pexpect does between fork and exec, by which IPython runs ``!program``."""
    read, write = os.pipe()
    with lab.client:
        child = os.fork()
        if child == 0:
            os.dup2(write, 1)
            os.closerange(3, 1024)
            os.execvp("hostname", ["hostname"])
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        assert file.read() == "client\n"


def test_a_forked_process_goes_from_host_to_host(lab: Lab) -> None:
    read, write = os.pipe()
    with lab.client:
        child = os.fork()
        if child == 0:
            try:
                words = [socket.gethostname(), os.uname().nodename, name_of()]
                with lab.server:
                    words.append(name_of())
                    grandchild = os.fork()
                    if grandchild == 0:
                        os.write(write, f"{os.uname().nodename}\n".encode())
                        os._exit(0)
                    os.waitpid(grandchild, 0)
                words.append(name_of())
                os.write(write, json.dumps(words).encode())
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        told = file.read().splitlines()
    assert told[0] == "server"
    assert json.loads(told[1]) == ["client", "client", "client", "server", "client"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessings_own_servers_are_on_no_host(lab: Lab, method: str) -> None:
    """They serve all blocks, and would end with the first lab."""
    import multiprocessing
    from multiprocessing import resource_tracker

    context = multiprocessing.get_context(method)
    for host in (lab.client, lab.server):
        with host, concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(name_of).result(20) == host.name
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    assert os.readlink(f"/proc/{tracker}/ns/net") == os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize("kind", ["executor", "pool", "threads"])
def test_a_pool_works_where_its_workers_are(lab: Lab, kind: str) -> None:
    import multiprocessing.pool

    def pool() -> Any:
        if kind == "executor":
            return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        return multiprocessing.pool.ThreadPool(1) if kind == "threads" else multiprocessing.get_context("fork").Pool(1)

    def ask(pool: Any) -> str:
        return str(pool.submit(name_of).result(20) if kind == "executor" else pool.apply(name_of))

    with pool() as outside:
        assert ask(outside) == socket.gethostname()
        with lab.client:
            with pytest.raises(
                OutsideTheLab, match=r"workers on no host, and not on client: make one inside `with lab\.cl"
            ):
                ask(outside)
            with pool() as inside:
                assert ask(inside) == "client"
                with lab.server, pytest.raises(OutsideTheLab, match="workers on client, and not on server"):
                    ask(inside)
        assert ask(outside) == socket.gethostname()


LEFT = """
import multiprocessing, os, signal, subprocess, sys, time
from labkit import Lab

def sleep():
    signal.pause()

if __name__ == "__main__":
    lab = Lab(rtt_ms=0)
    before = set(os.listdir("/proc"))
    pids = []
    with lab.client:
        daemon = "setsid sh -c 'setsid sleep 1000 & echo $!; sleep 1000' & sleep 1000"
        child = subprocess.Popen(["sh", "-c", daemon], stdout=subprocess.PIPE, text=True, start_new_session=True)
        pids += [child.pid, int(child.stdout.readline())]
        pids.append(os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ))
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.pause()
        pids.append(child)
        for method in ("fork", "spawn", "forkserver"):
            process = multiprocessing.get_context(method).Process(target=sleep)
            process.start()
            pids.append(process.pid)
    print(lab.directory, *pids, flush=True)
    sys.stdin.read(1)
    lab.close()
    os._exit(0)
"""


@pytest.mark.parametrize("how", ["closed", "SIGKILL"])
def test_all_of_them_end_with_the_lab(python: Start, processes_of: Processes, how: str, tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    process = python("import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", str(tmp_path / "left.py"))
    assert process.stdin is not None and process.stdout is not None
    directory, *numbers = process.stdout.readline().split()
    handles = [os.pidfd_open(int(number)) for number in numbers]
    assert len(handles) == 7
    if how == "closed":
        process.stdin.write("x")
        process.stdin.flush()
    else:
        process.kill()
    for handle in handles:
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)
    process.wait(10)
    for number, words in processes_of(directory).items():  # the guardian, a moment
        with open(os.pidfd_open(number), "rb", buffering=0) as handle:
            assert select.select([handle], [], [], 10)[0], words
    assert not Path(directory).exists()


class TestOnLoopback:
    """Where no process can be on a host."""

    @pytest.fixture
    def lab(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("LABKIT_TIER", "loopback")
        with Lab(rtt_ms=0) as lab:
            yield lab

    def test_programs_are_refused(self, lab: Lab) -> None:
        with lab.client:
            for start in (
                lambda: subprocess.run(["curl", "http://server.lab/"]),
                lambda: subprocess.getoutput("curl http://server.lab/"),
                lambda: os.posix_spawn("/usr/bin/curl", ["curl"], {}),
                lambda: os.system("curl http://server.lab/"),
                lambda: subprocess.run(["git", "fetch"]),
                lambda: subprocess.run(["git", "remote", "show", "origin"]),
            ):
                with pytest.raises(NotAvailableHere, match=r"lab\.client\.run"):
                    start()
            with pytest.raises(OSError, match="would use this machine's network"):
                os.execv("/usr/bin/curl", ["curl"])
        assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3

    def test_what_looks_at_the_machine_is_not(self, lab: Lab) -> None:
        import ctypes.util
        import platform

        expected = ctypes.util.find_library("c"), platform.architecture()
        with lab.client:
            assert (ctypes.util.find_library("c"), platform.architecture()) == expected
            subprocess.run(["uname", "-a"], check=True, capture_output=True)
            subprocess.run(["uname"], check=True, capture_output=True)
            for words in (["--version"], ["-C", os.sep, "--no-pager", "status"]):
                with contextlib.suppress(FileNotFoundError):  # a machine without git
                    subprocess.run(["git", *words], capture_output=True)
            child = os.fork()
            if child == 0:
                os.execv("/bin/true", ["true"])
            assert os.waitpid(child, 0)[1] == 0
