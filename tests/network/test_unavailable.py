"""Machines that give no namespaces, or not all of what belongs to them, rehearsed on this one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
from processes import FIXED

Start = Callable[..., "subprocess.Popen[str]"]

TRY = """
import ctypes, gc, glob, json, os, sys, tempfile, threading
ctypes.CFUNCTYPE(None)(print)  # from here on libffi may keep its own file open
tempfile.tempdir = tempfile.mkdtemp()
before = sorted(os.listdir("/proc/self/fd"))
from labkit import Lab, LabUnavailable
from labkit.network import patches
report = {}
try:
    lab = Lab(rtt_ms=0)
    with lab:
        report["refused"], report["tier"], report["why_lower"] = lab.refused, lab.tier, lab.why_lower
        with lab.server:
            import socket
            server = socket.create_server(("", 8080))
        with lab.client:
            socket.create_connection(("server.lab", 8080)).close()
        server.close()
        if lab.can("kernel"):
            report["ran"] = lab.client.run(["echo", "ran"]).stdout
except LabUnavailable as exc:
    report["unavailable"] = str(exc)
    exc.__traceback__ = None
lab = None
gc.collect()
report["left"] = glob.glob(tempfile.tempdir + "/*") + open("/proc/self/task/%d/children" % os.getpid()).read().split()
report["threads"], report["labs"] = threading.active_count(), sum(patches._labs_open.values())
report["descriptors"] = [n for n in sorted(os.listdir("/proc/self/fd")) if n not in before]
os.rmdir(tempfile.tempdir)
print(json.dumps(report))
"""


def rehearse(python: Start, *prefix: str) -> dict[str, object]:
    process = python(TRY, prefix=prefix)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    report: dict[str, object] = json.loads(out)
    assert (report["left"], report["threads"], report["labs"], report["descriptors"]) == ([], 1, 0, [])
    return report


@pytest.fixture(autouse=True)
def needs_user_namespaces() -> None:
    done = subprocess.run(["unshare", "-Ur", "true"], capture_output=True)
    if done.returncode != 0:
        pytest.skip("the rehearsal itself needs user namespaces")


def test_no_user_namespaces(python: Start) -> None:
    off = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    report = rehearse(python, "unshare", "-Ur", "sh", "-c", off, "sh")
    assert report["tier"] == "loopback"
    said = str(report["why_lower"])
    assert "user.max_user_namespaces is 0" in said
    assert "sudo sysctl -w user.max_user_namespaces=" in said


def test_too_few_network_namespaces(python: Start) -> None:
    few = 'echo 2 > /proc/sys/user/max_net_namespaces; exec "$@"'
    said = str(rehearse(python, "unshare", "-Ur", "sh", "-c", few, "sh")["why_lower"])
    assert "No space left on device" in said
    assert "close other labs" in said


def test_a_tier_that_this_machine_does_not_give(python: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """LABKIT_TIER=kernel asks for it: then a lower one in silence would be wrong."""
    monkeypatch.setenv("LABKIT_TIER", "kernel")
    off = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    said = str(rehearse(python, "unshare", "-Ur", "sh", "-c", off, "sh")["unavailable"])
    assert "user.max_user_namespaces is 0" in said
    said = str(rehearse(python, *FIXED)["unavailable"])
    assert "LABKIT_TIER asks for 'kernel', and this machine refuses net." in said


def test_fixed_sysctls(python: Start) -> None:
    report = rehearse(python, *FIXED)
    refused = report["refused"]
    assert isinstance(refused, dict)
    assert refused["net.ipv4.tcp_fastopen"] == "Read-only file system"
    assert set(refused) <= {name for name in refused if name.startswith("net.")}
    assert report["tier"] == "kernel, fixed sysctls"
    assert report["ran"] == "ran\n"
