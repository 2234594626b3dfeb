"""However a lab ends, nothing of it is left: no process, namespace, directory, descriptor or thread."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import Lab, LabClosed
from labkit.network import patches

Start = Callable[..., "subprocess.Popen[str]"]
Processes = Callable[[object], dict[int, str]]
Until = Callable[..., None]


def gone(pids: list[int], deadline_s: float = 10.0) -> bool:
    """Whether all of these processes end before the deadline. Their pidfds say so, not a sleep."""
    waiting = {}
    for pid in pids:
        try:
            waiting[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            continue
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        ended = poll.poll(deadline_s * 1000)
        if not ended:
            break
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            os.close(descriptor)
            del waiting[descriptor]
    for descriptor in waiting:
        os.close(descriptor)
    return not waiting


MANY = """
import gc, json, os, socket, sys, tempfile, threading
tempfile.tempdir = tempfile.mkdtemp()
from labkit import Lab

def once(number):
    with Lab(rtt_ms=0) as lab:
        if number % 5 == 0:
            with lab.capture(), lab.server, socket.create_server(("", 80)) as listener:
                threading.Thread(target=lambda: listener.accept()[0].close()).start()
                with lab.client, socket.create_connection(("server.lab", 80)) as sock:
                    sock.recv(1)
        if number % 5 == 1:
            lab.client.run(["true"])
            lab.client.start(["sleep", "1000"])
            lab.server.start(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000"])
            lab.capture(at=lab.server)

def census():
    gc.collect()
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    return [len(os.listdir("/proc/self/fd")), threading.active_count(), children, os.listdir(tempfile.tempdir)]

once(0), once(1)
before = census()
for number in range(50):
    once(number)
print(json.dumps([before, census()]))
os.rmdir(tempfile.tempdir)
"""


def test_fifty_labs_leave_nothing(python: Start, processes_of: Processes) -> None:
    """Each lab takes three network namespaces of a stock of 60 (the kernel gives them back a moment later): if any
    stayed, the kernel would refuse the later ones. Each takes one user and one PID namespace of a stock of 20."""
    few = "for kind in net:60 user:20 pid:20; do echo ${kind#*:} > /proc/sys/user/max_${kind%:*}_namespaces; done; "
    process = python(MANY, prefix=("unshare", "-Ur", "sh", "-c", few + 'exec "$@"', "sh"))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert err == ""
    before, after = json.loads(out)
    assert before == after
    assert after[1:] == [1, [], []]


BUSY = """
import json, os, socket, subprocess, sys, threading
from labkit import Lab
lab = Lab(rtt_ms=5)
capture = lab.capture()
with lab.server:
    listener = socket.create_server(("", 80))
threading.Thread(target=lambda: [listener.accept() for _ in range(9)], daemon=True).start()
with lab.client:
    connections = [socket.create_connection(("server.lab", 80)) for _ in range(3)]
program = lab.client.start(["sleep", "1000"])
shell = lab.client.start(["sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1000; done"])
daemons = lab.server.start(["sh", "-c", "setsid sh -c 'setsid sleep 1000 & sleep 1000' & echo started; sleep 1000"])
while daemons.stdout != "started\\n":
    pass
"""
REPORT = "print(json.dumps([str(lab.directory), lab.engine.helper_pid, lab.engine.first_pid]), flush=True)\n"


def start_busy(python: Start, then: str = "sys.stdin.read()") -> tuple[subprocess.Popen[str], Path, int, int]:
    process = python(BUSY + REPORT + then)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    directory, helper, guardian = json.loads(line)
    return process, Path(directory), helper, guardian


@pytest.mark.parametrize("how", ["process", "process group"])
def test_a_killed_notebook_leaves_nothing(python: Start, processes_of: Processes, until: Until, how: str) -> None:
    process, directory, *_ = start_busy(python)
    until(lambda: len(processes_of(directory)) >= 9)
    pids = [pid for pid in processes_of(directory) if pid != process.pid]
    namespaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
    assert len(namespaces) == 3
    (os.kill if how == "process" else os.killpg)(process.pid, signal.SIGKILL)
    assert gone([process.pid, *pids]), processes_of(directory)
    until(lambda: not directory.exists())
    assert processes_of(directory) == {}


MEASURING = """
import json, socket, sys, threading
from labkit import Lab
from labkit.load.load import load
from labkit.load.server_process import ServerProcess
from labkit.waiting import wait_until

def serve(address):
    listener = socket.create_server(address)
    while True:
        connection, _ = listener.accept()
        while connection.recv(4096):
            connection.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1\\r\\n\\r\\nx")

lab = Lab(rtt_ms=0)
capture = lab.capture()
server = ServerProcess(lab.server, 8080, serve)
watch = lab.watch(8080, connections=True)
lab.add_network("outside")
nat = lab.add_router("router", ["lab", "outside"]).nat()
asked = {"clients": 1, "seconds": 60}
threading.Thread(target=load, args=(lab.client, lab.server, 8080), kwargs=asked, daemon=True).start()
wait_until(lambda: capture.frames and watch.so_far().connections)
"""


def test_a_notebook_that_is_killed_while_it_measures_says_nothing(python: Start) -> None:
    """What it started has its standard error, and none of it complains that nobody listens any more."""
    process = python(MEASURING + REPORT + "sys.stdin.read()")
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()
    process.kill()
    assert process.communicate(timeout=20) == ("", "")  # at the end of the pipes, so all of it has gone


def test_an_end_without_close_is_clean(python: Start, processes_of: Processes) -> None:
    process, directory, *_ = start_busy(python, then="sys.exit(0)")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert not directory.exists()
    assert processes_of(directory) == {}


def test_an_end_by_an_error_shows_that_error_alone(python: Start, processes_of: Processes) -> None:
    process, directory, *_ = start_busy(python, then="with lab.client: 1 / 0")
    _, err = process.communicate(timeout=20)
    assert err.count("Traceback") == 1
    assert err.strip().endswith("ZeroDivisionError: division by zero")
    assert not directory.exists()
    assert processes_of(directory) == {}


SURVIVOR = """
import multiprocessing, time
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
child.start()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_surviving_child_of_the_notebook_keeps_nothing_alive(
    python: Start, processes_of: Processes, until: Until
) -> None:
    process, directory, *_ = start_busy(python, then=SURVIVOR)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    pids = [pid for pid in processes_of(directory) if pid not in (process.pid, child)]
    try:
        os.kill(process.pid, signal.SIGKILL)
        assert gone(pids), processes_of(directory)
        until(lambda: not directory.exists())
        assert not gone([child], 0)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["helper", "guardian", "wire"])
def test_a_lab_whose_process_is_killed_says_so(processes_of: Processes, victim: str) -> None:
    lab = Lab(rtt_ms=0)
    program = lab.client.start(["sleep", "1000"])
    capture = lab.capture()
    pids = processes_of(lab.directory)
    (wire,) = {pid for pid, words in pids.items() if "sleep" not in words} - {
        lab.engine.helper_pid,
        lab.engine.first_pid,
    }
    os.kill({"helper": lab.engine.helper_pid, "guardian": lab.engine.first_pid, "wire": wire}[victim], signal.SIGKILL)
    assert gone([lab.engine.helper_pid])
    uses: list[Callable[[], object]] = [
        lab.client.socket,
        lambda: lab.client.run(["true"]),
        lambda: lab.wire.counts,
        lambda: lab.set_link(rtt_ms=5),
        lambda: lab.client.counters,
        lab.capture,
    ]
    for use in uses:
        with pytest.raises(LabClosed, match=r"open the lab again|closed"):
            use()
    assert program.wait(10) == -signal.SIGKILL
    lab.close()
    assert capture.closed
    assert not lab.directory.exists()
    assert gone(list(pids))
    assert not any(patches._labs_open.values())


def test_somebody_else_waits_for_the_guardian() -> None:
    """A library that reaps every child, as some process managers do."""
    lab = Lab(rtt_ms=0)
    os.kill(lab.engine.first_pid, signal.SIGKILL)
    os.waitpid(lab.engine.first_pid, 0)
    lab.close()
    assert not lab.directory.exists()


@pytest.mark.parametrize("with_capture", [False, True])
def test_a_dropped_lab_is_ended_by_the_collector(processes_of: Processes, with_capture: bool, until: Until) -> None:
    lab = Lab(rtt_ms=0)
    if with_capture:
        lab.capture()
    lab.client.start(["sleep", "1000"])
    directory, pids, reference = lab.directory, list(processes_of(lab.directory)), weakref.ref(lab)
    threads = threading.active_count()
    del lab
    until(lambda: gc.collect() >= 0 and reference() is None, 5)
    assert gone(pids)
    assert not directory.exists()
    assert not any(patches._labs_open.values())
    until(lambda: threading.active_count() == threads - with_capture, 5)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child that ends as a script does, with its exit functions. Returns its status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            gc.collect()
            weakref.finalize._exitfunc()  # type: ignore[attr-defined]  # what atexit calls
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_cannot_end_its_parents_lab(lab: Lab) -> None:
    program = lab.client.start(["sleep", "1000"])

    def use() -> None:
        with lab.client:
            socket.socket().close()
        assert lab.client.run(["echo", "from the child"]).stdout == "from the child\n"

    assert fork(use) == 0
    assert fork(lab.close) == 0
    assert fork(lambda: None) == 0
    process = multiprocessing.get_context("fork").Process(target=use)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    use()
    assert program.returncode is None
    with pytest.raises(Exception, match="did not end"):
        program.wait(0)


# Interrupts.

INTERRUPTED = """
import faulthandler, gc, os, signal, socket, sys, threading, time
faulthandler.dump_traceback_later(60, exit=True)
from labkit import Lab, LabClosed
from labkit.network import patches
print("ready", flush=True)
sys.stdin.readline()
lab, reopened, interrupted, pending = None, 0, 0, False

def interrupt(number, frame):
    # A KeyboardInterrupt wherever work() is; what comes outside of it waits for it to begin.
    global pending
    while frame is not None:
        if frame.f_code is work.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back
    pending = True

def work():
    global lab, reopened, pending
    if pending:
        pending = False
        raise KeyboardInterrupt
    if lab is None or lab.closed:
        lab, reopened = Lab(rtt_ms=1, name="the lab"), reopened + 1
    if "listener" not in vars(lab):
        with lab.server:
            lab.listener = socket.create_server(("", 80))
    with lab.capture():
        with lab.client, socket.create_connection(("server.lab", 80), timeout=10):
            lab.listener.accept()[0].close()
    lab.client.run(["true"]).check()
    lab.set_link(rtt_ms=1)
    lab.client.counters
    assert lab.wire.counts
    if reopened % 2:
        lab.close()

rounds = int(sys.argv[1])
signal.signal(signal.SIGINT, interrupt)
while interrupted < rounds:
    try:
        work()
    except KeyboardInterrupt:
        interrupted += 1
        print("interrupted", flush=True)
        sys.stdin.readline()  # until it was read: two lines read at once would hide one from select
    except LabClosed as exc:
        assert "open" in str(exc), exc
        lab = None
# At the end of it all a lab is usable, or says that it is closed.
signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    lab.client.run(["true"]).check()
    with lab.client:
        socket.socket().close()
    print("usable", flush=True)
except (LabClosed, AttributeError):
    print("closed", flush=True)
lab = None
with Lab(rtt_ms=0, name="the lab") as last:
    last.client.run(["true"]).check()
# One collection ends a lab that nobody closed, and then the threads of its captures end, too. An interrupted start()
# leaves its thread listed for ever.
gc.collect()
deadline = time.monotonic() + 30
while True:
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and thread.ident]
    if not left or time.monotonic() > deadline:
        break
    left[0].join(0.2)
print("done", os.listdir(sys.argv[2]), [thread.name for thread in left], flush=True)
"""


@pytest.mark.parametrize("group", [False, True])
def test_interrupts_at_any_point(python: Start, tmp_path: Path, group: bool) -> None:
    """As Jupyter interrupts: SIGINT to the process, or to its whole group, at random moments."""
    moments = random.Random(f"interrupts {group}")
    rounds = 25
    process = python("import tempfile, sys; tempfile.tempdir = sys.argv[2]\n" + INTERRUPTED, str(rounds), str(tmp_path))
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(rounds):
        select.select([process.stdout], [], [], moments.random() ** 2 * 0.3)  # a moment, and not a wait for anything
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        while not select.select([process.stdout], [], [], 2)[0]:
            os.kill(process.pid, signal.SIGINT)  # Python had it in a weakref's callback, where exceptions are ignored
        line = process.stdout.readline()
        assert line == "interrupted\n", line + process.communicate()[1]
        process.stdin.write("go on\n")
        process.stdin.flush()
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[0] in ("usable", "closed"), err
    assert out.splitlines()[-1] == "done [] []", out + err
    assert process.returncode == 0, err
    assert "Traceback" not in err or "Exception ignored" in err, err


def test_nothing_of_all_this_is_left() -> None:
    """Runs last in this file."""
    gc.collect()
    assert not any(patches._labs_open.values())
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("labkit")] == []
    assert sys.modules["socket"].socket.__init__.__module__ == "socket"
