"""What every test may use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import processes_of as find_processes

from labkit import Lab
from labkit.services.configuration import find_program

ROOT = Path(__file__).resolve().parent.parent
JUPYTER_S = 60


@pytest.fixture(scope="session")
def apt_programs() -> dict[str, str]:
    """The programs that tests may need, from tests/apt.txt: program -> Debian package."""
    lines = (ROOT / "tests/apt.txt").read_text().splitlines()
    fields = [line.split(maxsplit=3) for line in lines if line.strip() and not line.startswith("#")]
    return {program.rstrip(":"): package for package, _, program, _ in fields}


@pytest.fixture(scope="session")
def require_program(apt_programs: dict[str, str]) -> Callable[[str], str]:
    """``require_program("tshark")`` is tshark's path; without it the test is skipped, and fails in CI."""

    def require(program: str) -> str:
        package = apt_programs[program]  # KeyError: add the program to tests/apt.txt
        path = program if Path(program).is_absolute() and Path(program).exists() else find_program(program)
        if path is None:
            reason = f"{program} is not installed; on Debian: apt-get install {package}"
            if os.environ.get("CI"):
                pytest.fail(f"{reason} (in CI no test is left out)")
            pytest.skip(reason)
        return path

    return require


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab whose two hosts are 10 ms apart."""
    with Lab(rtt_ms=10) as lab:
        yield lab


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``python(source, *words)`` starts a Python of its own that can import labkit, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *words: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", source, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(lambda: …)`` waits for what no event announces, and fails at the deadline."""

    def wait(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, "it did not come about before the deadline"
            time.sleep(0.005)

    return wait


@pytest.fixture
def processes_of() -> Callable[[object], dict[int, str]]:
    """``processes_of(lab.directory)``: the lab's processes, programs and daemons on this machine, by pid."""
    return find_processes


@contextlib.contextmanager
def _jupyterlab(home: Path, *words: str, **variables: str) -> Iterator[dict[str, Any]]:
    places = {"RUNTIME_DIR": "runtime", "CONFIG_DIR": "config"}
    lab_places = {"SETTINGS_DIR": "settings", "WORKSPACES_DIR": "workspaces"}
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}": str(home / folder) for name, folder in places.items()},
        **{f"JUPYTERLAB_{name}": str(home / folder) for name, folder in lab_places.items()},
        "IPYTHONDIR": str(home / "ipython"),
        "LABKIT_HOME": str(home / "progress"),
        **variables,
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--ServerApp.port=0"]
    command += ["--allow-root", f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True", *words]
    log = home / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        # It writes its address and token to a file when it listens.
        about, deadline = home / f"runtime/jpserver-{process.pid}.json", time.monotonic() + JUPYTER_S
        while not (about.exists() and about.read_text().endswith("}")):
            said = log.read_text()[-2000:]
            assert time.monotonic() < deadline and process.poll() is None, f"JupyterLab did not start: {said}"
            time.sleep(0.05)
        yield {**json.loads(about.read_text()), "log": str(log)}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="session")
def jupyterlab_in() -> Callable[..., contextlib.AbstractContextManager[dict[str, Any]]]:
    """``with jupyterlab_in(home, *words, **variables) as about:`` runs a JupyterLab; what it says of itself."""
    return _jupyterlab


@pytest.fixture(scope="module")
def chromium(require_program: Callable[[str], str]) -> Iterator[Any]:
    """Debian's Chromium, headless."""
    path = require_program("chromium")  # before Playwright, whose own error would hide that the test is left out
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet + sandbox)
        yield browser
        browser.close()
