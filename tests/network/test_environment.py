"""The machine's environment stays outside: proxies, databases and name servers of it reach nobody on a host."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import requests

from labkit import Lab
from labkit.network import environment
from labkit.servers import HttpServer, Response

NOBODY = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
SHOW = [
    sys.executable,
    "-c",
    "import os; print(sorted(name for name in os.environ if name.lower().endswith('_proxy')))",
]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in PROXIES:
        monkeypatch.setenv(name, "10.0.0.0/8" if name.lower() == "no_proxy" else NOBODY)
    monkeypatch.setenv("PGHOST", "production.example")
    monkeypatch.setattr(urllib.request, "_opener", None)
    yield
    environment._chosen.clear()


@pytest.fixture(params=["kernel", "loopback"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setenv("LABKIT_TIER", request.param)
    with Lab(rtt_ms=0) as lab, HttpServer(lab.server, lambda _: Response(200, body=b"hello"), port=80) as server:
        yield server


def urlopen(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


ASK: dict[str, Callable[[str], str]] = {
    "urllib": urlopen,
    "requests": lambda url: requests.get(url, timeout=10).text,
    "httpx": lambda url: httpx.get(url, timeout=10).text,
}


@pytest.mark.parametrize("library", ASK)
def test_pythons_clients_reach_the_lab(server: HttpServer, library: str) -> None:
    outside = (OSError, httpx.ConnectError)  # the proxy refuses
    with pytest.raises(outside):
        ASK[library]("http://server.lab/")
    lab = server.host.lab
    with lab.client:
        for url in ("http://server.lab/", f"http://{lab.server.ip}/"):
            assert ASK[library](url) == "hello"
    with pytest.raises(outside):
        ASK[library]("http://server.lab/")


def test_a_sessions_pool_of_threads_reaches_it(server: HttpServer) -> None:
    with requests.Session() as session, concurrent.futures.ThreadPoolExecutor(1) as pool, server.host.lab.client:
        assert pool.submit(session.get, "http://server.lab/", timeout=10).result().text == "hello"


def test_programs_reach_it(lab: Lab, require_program: Callable[[str], str]) -> None:
    """Those that a host starts, and those that are started in a block."""
    curl = [require_program("curl"), "-sS", "--max-time", "10", "http://server.lab/"]
    with HttpServer(lab.server, lambda _: Response(200, body=b"hello"), port=80):
        assert lab.client.run(curl).check().stdout == "hello"
        with lab.client:
            assert subprocess.check_output(curl, text=True) == "hello"
    assert lab.client.run(SHOW).check().stdout == "[]\n"
    chosen = lab.client.run(SHOW, env={"http_proxy": "http://server.lab:3128"})
    assert chosen.stdout == "['http_proxy']\n"


def test_a_users_curlrc_does_not_count(
    lab: Lab, require_program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".curlrc").write_text(f"proxy = {NOBODY}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CURL_HOME", raising=False)
    with HttpServer(lab.server, lambda _: Response(200, body=b"hello"), port=80):
        assert lab.client.run([require_program("curl"), "-sS", "http://server.lab/"]).check().stdout == "hello"
    assert str(tmp_path / ".curlrc") in environment.overridden()


def test_what_a_block_shows_of_the_environment(lab: Lab) -> None:
    """Reading, counting and copying agree, in text and in bytes; what the lab says is there."""
    outside = dict(os.environ)
    assert {"http_proxy", "PGHOST"} <= outside.keys() and "SSLKEYLOGFILE" not in outside
    with lab.client:
        assert "http_proxy" not in os.environ and os.getenv("PGHOST") is None
        assert os.environ["SSLKEYLOGFILE"] == str(lab.keylog_path)
        assert os.environb[b"SSLKEYLOGFILE"] == os.fsencode(lab.keylog_path)
        inside = dict(os.environ)
        assert len(os.environ) == len(inside) == len(list(os.environ)) == len(os.environb)
        assert {os.fsdecode(name) for name in os.environb} == inside.keys()
        assert subprocess.check_output(["env", "-0"]).count(b"\0") == len(inside)
    hidden = {name for name in outside if environment.stays_outside(name)}
    assert inside == {name: value for name, value in outside.items() if name not in hidden} | lab.program_environment
    assert dict(os.environ) == outside


def test_what_a_cell_sets_in_a_block_is_its_own_choice(lab: Lab) -> None:
    with lab.client:
        os.environ["http_proxy"] = "http://server.lab:3128"
        assert os.environ["http_proxy"] == urllib.request.getproxies()["http"] == "http://server.lab:3128"
        assert "https_proxy" not in os.environ
        with pytest.raises(KeyError):
            del os.environ["https_proxy"]
        assert os.environ.pop("SSLKEYLOGFILE") == str(lab.keylog_path)
        assert "SSLKEYLOGFILE" not in os.environ
    assert os.environ["https_proxy"] == NOBODY


def test_a_forked_process_has_it_for_what_it_executes(lab: Lab) -> None:
    read, write = os.pipe()
    with lab.client:
        child = os.fork()
        if child == 0:
            os.dup2(write, 1)
            os.execv(SHOW[0], SHOW)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        assert file.read() == "[]\n"


def test_doctor_names_what_is_overridden() -> None:
    assert environment.overridden()[:2] == ["ALL_PROXY", "HTTPS_PROXY"]
    assert "PGHOST" in environment.overridden()
