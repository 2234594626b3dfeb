"""The doctor: what it says of this machine is so, and what is missing comes with what mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.doctor import PROGRAMS, Check, Report, doctor
from labkit.network.tiers import SHORT_NAMES, TIERS


@pytest.fixture(scope="module")
def report() -> Report:
    return doctor()


def test_what_it_says_of_this_machine(report: Report) -> None:
    assert report.tier in ("kernel", "kernel, fixed sysctls")
    assert report.live == TIERS[report.tier]
    checks = {check.name: check for check in report.checks}
    assert set(checks) == {
        "Python", "Python packages", "lab", "kernel settings", "names for programs", "users", "IPv6", "surroundings",
        "progress", *PROGRAMS
    }  # fmt: skip
    assert checks["Python"].found.startswith(".".join(map(str, sys.version_info[:3])))
    assert os.uname().release in checks["Python"].found
    assert checks["Python packages"].state == "ok"
    for program in PROGRAMS:
        path = shutil.which(program)
        assert (checks[program].state, checks[program].found == path) == (("ok", True) if path else ("optional", False))
    with labkit.Lab(rtt_ms=0) as lab:
        assert report.tier == lab.tier
        assert (checks["IPv6"].state == "ok") == bool(lab.client.ip6)
        resolves = lab.client.run(["getent", "hosts", "server.lab"]).stdout.split() == [
            lab.server.ip,
            "server.lab",
            "server",
        ]
        assert (checks["names for programs"].state == "ok") == resolves
    assert report.healthy


def test_what_is_missing_has_a_mend(report: Report) -> None:
    for check in report.checks:
        assert check.state in ("ok", "missing", "lower", "optional")
        assert bool(check.mend) == (check.state != "ok")
        assert check.found


def test_as_text_and_data(report: Report) -> None:
    text = str(report)
    assert repr(report) == text
    assert text.startswith(f"tier: {report.tier} — ")
    for check in report.checks:
        assert f"{check.name}: {check.found}" in text
    plain = report.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"tier", "live", "healthy", "checks"}
    assert all(set(check) == {"name", "state", "found", "mend"} for check in plain["checks"])


def test_health() -> None:
    ok, optional = Check("a", "ok", "here"), Check("b", "optional", "not found", "get b")
    missing = Check("c", "missing", "not found", "get c")
    assert Report("kernel", "", (ok, optional)).healthy
    unwell = Report("kernel", "", (ok, optional, missing))
    assert not unwell.healthy
    assert "MISSING  c: not found\n           → get c" in str(unwell)
    assert "without  b: not found\n           → get b" in str(unwell)


@pytest.mark.parametrize("tier", ["fixed-sysctls", "loopback"])
def test_a_lower_tier_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    monkeypatch.setenv("LABKIT_TIER", tier)
    report = doctor()
    assert report.tier == SHORT_NAMES[tier]
    (lower,) = [check for check in report.checks if check.state == "lower"]
    assert lower.mend == "unset LABKIT_TIER"
    assert report.healthy
    assert "LOWER" in str(report)


def test_a_tier_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "best")
    with pytest.raises(labkit.InvalidValue, match="LABKIT_TIER='best': one of kernel, fixed-sysctls, loopback"):
        labkit.Lab()


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").touch()  # no folder, which stops root, too
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home/labkit"))
    (check,) = [check for check in doctor().checks if check.name == "progress"]
    assert check.state == "optional"
    assert check.found.startswith(f"cannot be kept in {tmp_path}/home/labkit (Not a directory)")
    assert check.mend == "set LABKIT_HOME to a folder that can be written"
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "new/labkit"))
    (check,) = [check for check in doctor().checks if check.name == "progress"]
    assert (check.state, check.found) == ("ok", f"kept in {tmp_path}/new/labkit")
    assert not (tmp_path / "new").exists()


def test_a_path_without_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of the programs are optional."""
    (tmp_path / "openssl").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = doctor()
    states = {check.name: check.state for check in report.checks if check.name in PROGRAMS}
    assert states == {"curl": "optional", "openssl": "ok", "tshark": "optional"}
    assert {check.mend for check in report.checks if check.name == "curl"} == {"sudo apt-get install curl"}
    assert report.healthy


def test_a_package_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.__globals__["version"]

    def version(name: str) -> Any:
        if name == "aioquic":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setitem(doctor.__globals__, "version", version)
    report = doctor()
    assert not report.healthy
    (missing,) = [check for check in report.checks if check.state == "missing"]
    assert (missing.name, missing.found, missing.mend) == ("Python packages", "not installed: aioquic", "make env")


def test_from_a_folder_without_its_packages(tmp_path: Path) -> None:
    """`python -I -S`: no site-packages, so neither labkit's metadata nor anything it depends on."""
    folder = str(Path(labkit.__file__).parent.parent)
    source = "import sys; sys.path.insert(0, sys.argv.pop()); from labkit.cli import main; sys.exit(main())"
    command = [sys.executable, "-I", "-S", "-c", source, "doctor", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "MISSING  Python packages: labkit runs from its folder" in done.stdout
    assert "→ make env" in done.stdout
    assert done.stderr == ""


def test_it_names_what_is_kept_from_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    (tmp_path / "matplotlibrc").touch()
    (kept,) = (check for check in doctor().checks if check.name == "surroundings")
    assert kept.state == "ok"
    assert "https_proxy" in kept.found
    assert str(tmp_path / "matplotlibrc") in kept.found
