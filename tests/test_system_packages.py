"""tools/system-packages: what it finds, what it installs, and that no daemon starts because of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import ORDINARY

ROOT = Path(__file__).resolve().parent.parent
# An apt-get that notes what it is asked for, and what the machine would say to a daemon that wants to start.
APT = """#!/bin/sh
[ "$1" = install ] || exit 0
for package; do :; done
code=0; /usr/sbin/policy-rc.d "$package" start || code=$?
echo "$package $code" >>"$NOTES"
"""
SYSTEMCTL = """#!/bin/sh
case $1 in
list-unit-files) echo "ssh.service enabled enabled"; [ ! -e "$NOTES" ] || echo "nginx.service enabled enabled" ;;
*) echo "$*" >>"$NOTES" ;;
esac
"""


def test_an_ordinary_user_is_not_told_to_install_what_is_in_sbin() -> None:
    found = [program for program in ("nginx", "haproxy", "unbound") if Path(f"/usr/sbin/{program}").exists()]
    if not found:
        pytest.skip("nginx is not installed; on Debian: apt-get install nginx-light")
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([*ORDINARY, "sh", ROOT / "tools/system-packages"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not any(program.encode() in done.stdout for program in found)


def test_nothing_starts_while_it_installs(tmp_path: Path) -> None:
    """In namespaces of its own, as root of them: with an empty /usr/sbin, and an apt-get that installs nothing."""
    for name, text in (("tools/system-packages", None), ("tests/apt.txt", "nginx-light  # no-such-nginx: a test\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text((ROOT / name).read_text() if text is None else text)
    for name, text in (("apt-get", APT), ("systemctl", SYSTEMCTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = f"mount -t tmpfs none /usr/sbin && sh {tmp_path}/tools/system-packages; ls /usr/sbin"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NOTES": str(tmp_path / "notes")}
    unshare = shutil.which("unshare") or "unshare"
    done = subprocess.run([unshare, "-Urm", "sh", "-c", script], capture_output=True, text=True, env=environment)
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["nginx-light 101", "disable --quiet nginx.service"], done.stderr
    assert done.stdout.splitlines()[-1].startswith("    sudo apt-get install"), "no policy is left"
