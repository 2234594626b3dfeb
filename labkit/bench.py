"""How fast the lab is on this machine: ``labkit bench``.

Each figure is measured here and now. docs/performance.md says what each means and what it should reach.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from labkit.lab import Lab
from labkit.network.network import Network

RTT_MS = 40.0
CONNECTS = 150
STREAM_S = 4.0
DATAGRAMS = 60_000
DATAGRAMS_PER_S = 30_000

# What is measured, in words, and what it should reach on two cores.
MEANING = {
    "import_ms": ("import labkit and its Lab, in a fresh interpreter", "< 200"),
    "lab_up_ms": ("Lab() with two hosts, until it can be used", "< 150"),
    "lab_close_ms": ("close(), until the kernel has ended every process of the lab", "< 50"),
    "connect_rtts_p50": (f"TCP connect at {RTT_MS:g} ms, median, in round trips", "0.98–1.02"),
    "connect_rtts_p99": (f"TCP connect at {RTT_MS:g} ms, 99th percentile, in round trips", "< 1.1"),
    "wire_mbps": (f"one TCP stream at {RTT_MS:g} ms, payload, Mbit/s", "≥ 800"),
    "wire_dropped": ("frames that the wire dropped in that stream", "0"),
    "capture_pps": ("packets a second that crossed the wire while it was captured", "≥ 20000"),
    "capture_dropped": ("of those, packets missing from the capture", "0"),
    "rss_mib": ("memory of the lab's own processes together (helper and wire), MiB", "< 80"),
}

_FLOOD = """
import socket, sys, time
count, rate = int(sys.argv[1]), int(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("10.77.0.2", 9))
data, start = bytes(100), time.monotonic()
for number in range(count):
    while time.monotonic() - start < number / rate:
        pass
    sock.send(data)
"""


def bench() -> dict[str, float]:
    """Measure everything; takes about half a minute.

    Returns:
        the figures by name, see MEANING. On the tier "loopback" those of the capture are left out: they take a program
        that runs on a host.
    """
    figures: dict[str, float] = {"import_ms": _import_ms()}
    figures["lab_up_ms"], figures["lab_close_ms"] = _open_and_close()
    with Lab(rtt_ms=RTT_MS) as lab:
        figures |= _connects(lab)
        figures |= _stream(lab)
        figures["rss_mib"] = resident_mib(lab)
    with Lab(rtt_ms=RTT_MS) as lab:
        if lab.can("kernel"):
            figures |= _captured(lab)
    return {name: round(figures[name], 3) for name in MEANING if name in figures}


def as_table(figures: dict[str, float]) -> str:
    """The figures beside what they should reach."""
    lines = [f"{'figure':<18}{'here':>10}  {'should be':<11}what"]
    for name, value in figures.items():
        what, goal = MEANING[name]
        lines.append(f"{name:<18}{value:>10g}  {goal:<11}{what}")
    return "\n".join(lines)


def _import_ms() -> float:
    code = "import time; t = time.perf_counter(); import labkit; labkit.Lab; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5)]
    return statistics.median(times) * 1000


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


def _captured(lab: Lab) -> dict[str, float]:
    """Datagrams at a steady rate from a process of their own, captured at both ends of the wire."""
    with lab["server"].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, lab.capture() as capture:
        sink.bind((lab["server"].ip, 9))
        lab["client"].run([sys.executable, "-c", _FLOOD, str(DATAGRAMS), str(DATAGRAMS_PER_S)]).check()
    stamps = [frame.time_ns for frame in capture.frames if frame.sent and frame.host == "client"]
    missing = DATAGRAMS - len(stamps) + capture.dropped
    return {"capture_pps": len(stamps) / ((stamps[-1] - stamps[0]) / 1e9), "capture_dropped": missing}


def resident_mib(lab: Network) -> float:
    """Resident memory of the lab's own processes, MiB: the guardian, the helper and the wire."""
    kib, processes = 0, [lab.engine.first_pid]
    while processes:
        pid = processes.pop()
        status = Path(f"/proc/{pid}/status").read_text()
        kib += int(status.split("VmRSS:")[1].split()[0])
        processes += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return kib / 1024
