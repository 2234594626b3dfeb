"""How fast the lab is on this machine: ``labkit bench``.

Each figure is measured here and now. docs/performance.md says what each means and what it should reach.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from labkit.capture.dissect import dissect
from labkit.capture.keylog import KeyLog
from labkit.capture.ladder import build_ladder
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.load.load import load
from labkit.made_captures import download, http2
from labkit.network.host import Host
from labkit.network.network import Network
from labkit.services.startup import PROGRAMS, startups

RTT_MS = 40.0
CONNECTS = 150
STREAM_S = 4.0
DATAGRAMS = 60_000
DATAGRAMS_PER_S = 30_000
TRANSFER_BYTES = 100_000_000
WATCH_S = 1.5
WATCHED = 100
LOAD_CONNECTIONS = 16
LOAD_ROUNDS = 3

# What is measured, in words, and what it should reach on two cores.
MEANING = {
    "import_ms": ("import labkit and its Lab, in a fresh interpreter", "< 200"),
    "lab_up_ms": ("Lab() with two hosts, until it can be used", "< 100"),
    "first_lab_ms": ("import and Lab() together, in a fresh interpreter", "< 120"),
    "lab_close_ms": ("close(), until the kernel has ended every process of the lab", "< 40"),
    "connect_rtts_p50": (f"TCP connect at {RTT_MS:g} ms, median, in round trips", "0.98–1.02"),
    "connect_rtts_p99": (f"TCP connect at {RTT_MS:g} ms, 99th percentile, in round trips", "< 1.1"),
    "wire_mbps": (f"one TCP stream at {RTT_MS:g} ms, payload, Mbit/s", "≥ 800"),
    "wire_dropped": ("frames that the wire dropped in that stream", "0"),
    "capture_pps": ("packets a second that crossed the wire while it was captured", "≥ 20000"),
    "capture_dropped": ("of those, packets missing from the capture", "0"),
    "transfer_mbps": (f"{TRANSFER_BYTES // 10**6} MB at full speed under capture, payload, Mbit/s", "≥ 400"),
    "transfer_dropped": ("of that transfer's frames, those missing from the capture", "0"),
    "dissect_us_5000": ("to name a packet and draw its row, in a capture of 5,000 packets, µs", "< 100"),
    "dissect_us_50000": ("the same in a capture of 50,000 packets: as much for each", "< 100"),
    "http2_s": ("to name the messages of 10,000 requests of HTTP/2, seconds", "< 4"),
    "rss_mib": ("memory of the lab's own processes together (helper and wire), MiB", "< 80"),
    "watch_hz": ("looks a second at a listener's queues that is asked for 1000", "≥ 950"),
    "watch_cpu": ("CPU time of those looks, as a share of one processor", "< 0.25"),
    "watch_cpu_100": ("the same while each look takes in 100 connections", "< 0.8"),
    "load_rps": ("requests a second of labkit's load on a Python server of one loop, best of 3", "≥ 20000"),
    "load_busy": ("share of that time in which the load generator computed; near 1 it may be the limit", "≤ 1"),
    "wrk_rps": ("requests a second of wrk on the same server, in between", "≥ 20000"),
    "wrk_ratio": ("load_rps / wrk_rps", "≥ 0.9"),
    "wrk_ratio_threads": ("the same ratio on a Python server with a thread for each connection", "≥ 0.9"),
}
for _name, (_kind, _seconds, _mib) in PROGRAMS.items():
    MEANING |= {
        f"{_name}_ready_s": (f"{_kind.__name__} on a host, from its start until it is ready, seconds", f"< {_seconds}"),
        f"{_name}_mib": ("memory of its processes then, MiB", f"< {_mib}"),
    }

_FLOOD = """
import socket, sys, time
count, rate = int(sys.argv[1]), int(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[3], 9))
data, start = bytes(100), time.monotonic()
for number in range(count):
    while time.monotonic() - start < number / rate:
        pass
    sock.send(data)
"""

# Two servers that do as little as a Python server can: what is measured is not to be their work.
_ANSWER = """
import select, socket, sys, threading
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 13\\r\\n\\r\\nHello, world!"
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print("ready", flush=True)
"""
LOOP_SERVER = (
    _ANSWER
    + """
epoll, connections = select.epoll(), {}
epoll.register(listener, select.EPOLLIN)
while True:
    for number, _ in epoll.poll():
        if number == listener.fileno():
            connection, _ = listener.accept()
            connections[connection.fileno()] = connection
            epoll.register(connection, select.EPOLLIN)
            continue
        try:
            if connections[number].recv(4096):
                connections[number].send(ANSWER)
                continue
        except ConnectionError:
            pass
        connections.pop(number).close()
"""
)
THREADS_SERVER = (
    _ANSWER
    + """
def serve(connection):
    try:
        while connection.recv(4096):
            connection.send(ANSWER)
    except ConnectionError:
        pass
    connection.close()
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"""
)


def bench() -> dict[str, float | None]:
    """Measure everything; takes about a minute.

    Returns:
        the figures by name, see MEANING. Those of a program that is not installed are None. On the tier
        "loopback" those of the capture and the load are left out: they take a program that runs on a host.
    """
    figures: dict[str, float | None] = _first_lab()
    figures["lab_up_ms"], figures["lab_close_ms"] = _open_and_close()
    figures |= _named()
    with Lab(rtt_ms=RTT_MS) as lab:
        figures |= _connects(lab)
        figures |= _stream(lab)
        figures["rss_mib"] = resident_mib(lab)
    with Lab(rtt_ms=RTT_MS) as lab:
        if lab.can("kernel"):
            figures |= _captured(lab)
            figures |= _transfer(lab)
            figures |= _watched(lab)
            figures |= _loads(lab)
    with Lab(rtt_ms=0) as lab:
        figures |= startups(lab["server"])
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {name: rounded[name] for name in MEANING if name in rounded}


def as_table(figures: Mapping[str, float | None]) -> str:
    """The figures beside what they should reach."""
    lines = [f"{'figure':<18}{'here':>10}  {'should be':<11}what"]
    for name, value in figures.items():
        what, goal = MEANING[name]
        here = f"no {name.split('_')[0]}" if value is None else f"{value:g}"
        lines.append(f"{name:<18}{here:>10}  {goal:<11}{what}")
    return "\n".join(lines)


_FIRST = """
import time
start = time.perf_counter()
import labkit
labkit.Lab
imported = time.perf_counter()
lab = labkit.Lab()
up = time.perf_counter()
lab.close()
print(imported - start, up - start)
"""


def _first_lab() -> dict[str, float | None]:
    command = [sys.executable, "-c", _FIRST]
    runs = [map(float, subprocess.check_output(command, text=True).split()) for _ in range(5)]
    imports, labs = (statistics.median(times) * 1000 for times in zip(*runs, strict=True))
    return {"import_ms": imports, "first_lab_ms": labs}


def _open_and_close() -> tuple[float, float]:
    ups, closes = [], []
    for _ in range(11):
        start = time.perf_counter()
        lab = Lab(rtt_ms=RTT_MS)
        up = time.perf_counter()
        lab.close()
        ups.append(up - start)
        closes.append(time.perf_counter() - up)
    return statistics.median(ups[1:]) * 1000, statistics.median(closes[1:]) * 1000


def _named() -> dict[str, float]:
    """Processor time of naming and drawing, so that what else runs on the machine does not count."""
    figures = {}
    for packets in (5_000, 50_000):
        transits = download(packets)
        begin_s = time.process_time()
        str(build_ladder(dissect(transits, KeyLog()), ()))
        figures[f"dissect_us_{packets}"] = (time.process_time() - begin_s) / len(transits) * 1e6
    transits = http2(10_000)
    begin_s = time.process_time()
    dissect(transits, KeyLog())
    return {**figures, "http2_s": time.process_time() - begin_s}


def _connects(lab: Lab) -> dict[str, float]:
    server = lab["server"]
    with server:
        listener = socket.create_server((server.ip, 80), backlog=1024)
    times = []
    with listener:
        for _ in range(CONNECTS):
            with lab["client"].socket() as sock:
                start = time.perf_counter()
                sock.connect((server.ip, 80))
                times.append((time.perf_counter() - start) * 1000 / RTT_MS)
    times.sort()
    return {"connect_rtts_p50": statistics.median(times), "connect_rtts_p99": times[int(len(times) * 0.99)]}


def _stream(lab: Lab) -> dict[str, float]:
    """One connection as fast as it goes. Slow start is over after the first second, which is not counted."""
    server = lab["server"]
    with server:
        listener = socket.create_server((server.ip, 81))
    received = 0

    def drain() -> None:
        nonlocal received
        connection, _ = listener.accept()
        buffer = bytearray(1 << 20)
        with connection:
            while size := connection.recv_into(buffer):
                received += size

    reader = threading.Thread(target=drain)
    reader.start()
    before = _dropped(lab)
    with listener, lab["client"].socket() as sock:
        sock.connect((server.ip, 81))
        data = memoryview(bytes(1 << 18))
        start = time.monotonic()
        mark, seen = start, 0
        while (now := time.monotonic()) < start + 1 + STREAM_S:
            if mark == start and now > start + 1:
                mark, seen = now, received
            sock.send(data)
        elapsed, size = time.monotonic() - mark, received - seen
        sock.shutdown(socket.SHUT_WR)
        reader.join()
    return {"wire_mbps": size * 8 / elapsed / 1e6, "wire_dropped": _dropped(lab) - before}


def _dropped(lab: Lab) -> int:
    directions = [counts for ways in lab.wire.counts.values() for counts in ways.values()]
    return sum(c.missed + c.lost + c.overflowed + c.ruled_out for c in directions)


def _watched(lab: Lab) -> dict[str, float]:
    """What it takes to look at queues a thousand times a second."""
    server = lab["server"]
    with contextlib.ExitStack() as stack:
        with server:
            listener = stack.enter_context(socket.create_server((server.ip, 82), backlog=WATCHED))
        with lab.watch(82) as listener_only:
            time.sleep(WATCH_S)
        for _ in range(WATCHED):
            stack.enter_context(lab["client"].socket()).connect((server.ip, 82))
            stack.enter_context(listener.accept()[0])
        with lab.watch(82, connections=True) as all_of_them:
            time.sleep(WATCH_S)
    one, hundred = listener_only.history, all_of_them.history
    return {
        "watch_hz": one.rate_hz,
        "watch_cpu": one.cpu_s / one.duration_s,
        "watch_cpu_100": hundred.cpu_s / hundred.duration_s,
    }


def _captured(lab: Lab) -> dict[str, float]:
    """Datagrams at a steady rate from a process of their own, captured at both ends of the wire."""
    with lab["server"].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, lab.capture() as capture:
        sink.bind((lab["server"].ip, 9))
        lab["client"].run(
            [sys.executable, "-c", _FLOOD, str(DATAGRAMS), str(DATAGRAMS_PER_S), lab["server"].ip]
        ).check()
    stamps = [frame.time_ns for frame in capture.frames if frame.sent and frame.host == "client"]
    missing = DATAGRAMS - len(stamps) + capture.dropped
    return {"capture_pps": len(stamps) / ((stamps[-1] - stamps[0]) / 1e9), "capture_dropped": missing}


def _transfer(lab: Lab) -> dict[str, float]:
    """One connection as fast as it goes, sent and received by this process, which has to empty the capture, too."""
    with lab.server:
        listener = socket.create_server((lab.server.ip, 83))

    def drain() -> None:
        connection, _ = listener.accept()
        buffer = bytearray(1 << 20)
        with connection:
            while connection.recv_into(buffer):
                pass

    before = _frames(lab)
    reader = threading.Thread(target=drain)
    reader.start()
    with lab.capture() as capture:
        start = time.monotonic()
        with listener, lab.client.socket() as sock:
            sock.connect((lab.server.ip, 83))
            sock.sendall(bytes(TRANSFER_BYTES))
            sock.shutdown(socket.SHUT_WR)
            reader.join()
        elapsed = time.monotonic() - start
    missing = _frames(lab) - before - len(capture.frames)
    return {"transfer_mbps": TRANSFER_BYTES * 8 / elapsed / 1e6, "transfer_dropped": missing}


def _frames(lab: Lab) -> int:
    """Frames that a capture on the wire has to have: what hosts have sent, and what was handed to them."""
    return sum(counts["up"].frames + counts["down"].delivered for counts in lab.wire.counts.values())


def beside_wrk(host: Host, server: str, port: int, *, rounds: int = LOAD_ROUNDS) -> tuple[float, float, float | None]:
    """labkit's load and wrk in turn, on the same server and from the same host as it: no wire is in between.

    Args:
        host: for server, load and wrk.
        server: source of a Python program that takes address and port, and says "ready".
        port: for it.
        rounds: how often each is run, for one second; the best of each counts.

    Returns:
        requests a second of labkit's load, how busy its generator was then, requests a second of wrk. None without wrk.

    Raises:
        MeasurementFailed: the server did not start, or requests failed.
    """
    wrk = shutil.which("wrk")
    loads, others = [], []
    with host.start([sys.executable, "-c", server, host.ip, str(port)]) as program:
        deadline = time.monotonic() + 10
        while program.stdout != "ready\n":
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"the server to be loaded did not start on port {port}: {program.stderr}")
            time.sleep(0.005)
        for _ in range(rounds):
            loads.append(load(host, host, port, clients=LOAD_CONNECTIONS, seconds=1))
            if wrk:
                words = [wrk, "-t1", f"-c{LOAD_CONNECTIONS}", "-d1s", f"http://{host.ip}:{port}/"]
                told = host.run(words).check().stdout
                if (
                    "Non-2xx" in told
                    or "Socket errors" in told
                    or not (rate := re.search(r"Requests/sec: +(\S+)", told))
                ):
                    raise MeasurementFailed(f"wrk on port {port} says: {told}")
                others.append(float(rate[1]))
    if failed := [one for one in loads if one.errors or one.unfinished]:
        raise MeasurementFailed(f"requests failed: {failed[0]}")
    best = max(loads, key=lambda one: one.throughput)
    return best.throughput, best.busy, max(others, default=None)


def _loads(lab: Lab) -> dict[str, float | None]:
    rps, busy, wrk = beside_wrk(lab["server"], LOOP_SERVER, 8001)
    threads_rps, _, threads_wrk = beside_wrk(lab["server"], THREADS_SERVER, 8002)
    figures: dict[str, float | None] = {"load_rps": rps, "load_busy": busy, "wrk_rps": wrk}
    figures["wrk_ratio"] = rps / wrk if wrk else None
    figures["wrk_ratio_threads"] = threads_rps / threads_wrk if threads_wrk else None
    return figures


def resident_mib(lab: Network) -> float:
    """Resident memory of the lab's own processes, MiB: the guardian, the helper and the wire."""
    kib, processes = 0, [lab.engine.first_pid]
    while processes:
        pid = processes.pop()
        status = Path(f"/proc/{pid}/status").read_text()
        kib += int(status.split("VmRSS:")[1].split()[0])
        processes += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return kib / 1024
