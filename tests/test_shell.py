"""``labkit shell`` as a learner has it in a terminal, and as a script has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import NotAvailableHere
from labkit.network.terminal import set_size
from labkit.shell.complete import candidates

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 30.0


def _at_a_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may run under nohup, which a terminal does not


class Learner:
    """A labkit shell in a terminal of 30 rows: what is typed, what stands on the screen."""

    def __init__(self, *words: str, home: Path) -> None:
        self.master, slave = os.openpty()
        set_size(slave, (30, 120))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home), "XDG_STATE_HOME": str(home)}
        environment |= {"TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "labkit", "shell", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=home,
            start_new_session=True,
            preexec_fn=_at_a_terminal,
        )
        os.close(slave)
        self.screen = ""

    def sees(self, pattern: str) -> str:
        """Wait until it stands on the screen, and take what stands up to its end."""
        deadline = time.monotonic() + DEADLINE_S
        while (match := re.search(pattern, self.screen)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} does not come: {self.screen!r}"
            try:
                self.screen += os.read(self.master, 65536).decode()
            except OSError:  # it has ended
                raise AssertionError(f"{pattern!r} did not come: {self.screen!r}") from None
        taken, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return taken

    def types(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def learner(
    tmp_path: Path, processes_of: Callable[[object], dict[int, str]], until: Callable[..., None]
) -> Iterator[Callable[..., Learner]]:
    """``learner("--rtt-ms", "5")`` sits before a shell. After its end nothing may be left."""
    home = tmp_path / "h"
    home.mkdir()
    started = []

    def start(*words: str) -> Learner:
        started.append(Learner(*words, home=home))
        return started[-1]

    yield start
    for each in started:
        each.close()
    until(lambda: not processes_of(home) and not [name for name in os.listdir(home) if name.startswith("labkit-")])


@pytest.fixture
def script(tmp_path: Path, processes_of: Callable[[object], dict[int, str]]) -> Callable[..., Any]:
    """``script("client ss", "--rtt-ms", "5")`` gives the lines to a shell as its standard input."""

    def run(lines: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "h"
        home.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "labkit", "shell", *words],
            input=lines,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home), **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert os.listdir(home) == []
        assert processes_of(home) == {}
        return done

    return run


def test_a_learner_at_two_hosts(learner: Callable[..., Learner], require_program: Callable[[str], str]) -> None:
    """A server behind, a client in front, the wire's knobs and a capture, and the way out."""
    require_program("curl")
    at = learner("--rtt-ms", "4", "--host", "proxy")
    said = at.sees(r"client\$ ")
    assert "client.lab" in said and "proxy.lab" in said and "Tier:" in said and "Ctrl-D" in said
    at.types(f"server {sys.executable} -m http.server 8000 &\n")
    at.sees(r"\[1\] server\$ .*\n")
    at.types("server wait 8000\n")
    at.sees(r"client\$ ")
    at.types("capture on\n")
    at.sees("running")
    at.types("curl -sS -o /dev/null -w 'got %{http_code} from %{remote_port}\\n' http://server.lab:8000/ | cat\n")
    at.sees("got 200 from 8000")
    at.types("ladder\n")
    assert "SYN-ACK" in at.sees("acknowledgments not shown")
    at.types("set loss 0.5 rtt_ms 6\n")
    at.sees(r"client: rtt_ms=6 loss=0.5")
    at.types("drop source=server tcp_flags=SA count=1\n")
    at.sees("1  drop source=server tcp_flags=SA count=1: 0 matched, 0 acted on")
    at.types("set loss much\n")
    at.sees(r"labkit: loss='much': give a number\r\n")
    at.types("server\n")
    at.sees(r"server\$ ")
    at.types("exit\n")
    assert at.process.wait(DEADLINE_S) == 0


def test_keys_go_to_the_program_in_front(learner: Callable[..., Learner]) -> None:
    """Ctrl-C ends it and not the shell, its input is the keyboard, its size that of the window; Ctrl-Z leaves it."""
    at = learner("--rtt-ms", "0")
    at.sees(r"client\$ ")
    at.types("echo ready; sleep 600\n")
    at.sees(r"ready\r+\n")
    at.types("\x03")
    at.sees(r"client\$ ")
    at.types("sed -u s/typed/read/\n")
    at.types("typed early\n")
    at.sees("read early")
    at.types("\x04")
    at.sees(r"client\$ ")
    at.types("stty size\n")
    at.sees(r"30 120\r+\n")
    at.types("sed -u s/typed/read/\n")  # while another line may still be in front
    at.types("typed ahead\n")
    at.sees("read ahead")
    at.types("\x1a")
    at.sees(r"\[1\] client\$ sed .* goes on: fg brings it back")
    at.types("fg\n")
    at.types("typed again\n")
    at.sees("read again")
    at.types("\x04")
    at.sees(r"client\$ ")
    at.types("PS1='inner# ' sh -i\n")  # a shell with jobs of its own keeps Ctrl-Z
    at.sees("\ninner# ")
    at.types("sed -u s/typed/read/\n")
    at.types("typed inside\n")
    at.sees("read inside")
    at.types("\x1a")
    at.sees(r"Stopped")
    at.types("exit 0\n")
    at.sees("stopped jobs")
    at.types("exit 0\n")
    at.sees(r"client\$ ")
    at.types("\x04")
    assert at.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_the_shell(
    learner: Callable[..., Learner], until: Callable[..., None], processes_of: Any, number: int, tmp_path: Path
) -> None:
    at = learner()
    at.sees(r"client\$ ")
    at.types("sleep 600 &\n")
    at.sees(r"\[1\]")
    at.types("echo here; sleep 601\n")
    at.sees(r"here\r+\n")
    at.process.send_signal(number)
    at.process.wait(DEADLINE_S)
    until(lambda: not processes_of(tmp_path / "h"))
    until(lambda: not [name for name in os.listdir(tmp_path / "h") if name.startswith("labkit-")])


def test_tab_completes_in_the_terminal(learner: Callable[..., Learner]) -> None:
    at = learner()
    at.sees(r"client\$ ")
    at.types("server dela\t5 sou\tcli\tcou\t1\n")
    at.sees("1  delay source=client count=1 delay_ms=5:")
    at.types("drop sou\tcli\tcou\t1\n")
    at.sees(r"2  drop source=client count=1:.*\s+client\$ ")
    at.types("\x04")
    assert at.process.wait(DEADLINE_S) == 0


def test_a_script_ends_at_the_first_line_that_fails(script: Callable[..., Any]) -> None:
    done = script("# a comment\n\nserver echo \"a  b\" | tr a c\nclient\nsh -c 'exit 7'\necho not reached\n")
    assert (done.returncode, done.stdout) == (1, "c  b\n")
    assert done.stderr == "labkit shell: line 5: \"sh -c 'exit 7'\" ended with 7\n"
    done = script("exit 4\necho not reached\n")
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "")


def test_a_script_that_does_what_it_says(
    script: Callable[..., Any], tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    require_program("ping")
    (tmp_path / "folder").mkdir()
    lines = "capture on\ncd folder\nping -c 1 -W 5 server.lab > ping\nsave x.pcapng\ncapture off\n"
    lines += "proxy set rtt_ms=6\ndelay 5 contains='GET /'\nremove all\nrules\nset proxy loss 0.25\ncounts\n"
    done = script(lines, "--rtt-ms", "3", "--host", "proxy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 received" in (tmp_path / "folder/ping").read_text()
    assert (tmp_path / "folder/x.pcapng").read_bytes()[:4] == b"\n\r\r\n"
    assert "proxy: rtt_ms=6 loss=0.25\n" in done.stdout
    assert "1  delay contains='GET /' delay_ms=5: 0 matched, 0 acted on\n" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("drop foo=1", "'foo': there is source, destination"),
        ("drop count=1.5", "count='1.5': give a whole number"),
        ("drop payload=perhaps", "payload='perhaps': give yes or no"),
        ("drop source=nobody", "no host 'nobody' in this lab"),
        ("set rtt_ms", "rtt_ms: give a value"),
        ("set rtt_ms -1", "rtt_ms=-1.0: give a number from 0 to 60000"),
        ("set 'rtt_ms", "No closing quotation"),
        ("remove 1", "no rule '1'"),
        ("ladder", "nothing was captured"),
        ("capture of", "capture of: on, off"),
        ("capture on nowhere", "no host 'nowhere'"),
        ("save", "give a file"),
        ("fg", "no job"),
        ("kill %3", "no job %3"),
        ("cd nowhere", "'nowhere' is no folder"),
        ("wait soon", "'soon': give a port"),
        ("door server", "door server: give a host and a port"),
        ("cut sideways", "sideways"),
        ("table connection", "'connection': there is connection= stream= between= hosts="),
        ("bound soon", "'soon': give a port"),
        ("ladder between=1", "nothing was captured"),
        ("exit now", "exit 'now': give a status"),
        ("help me", "'me' is no command of labkit's"),
    ],
)
def test_what_cannot_be_is_one_line(lab: Any, line: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    from labkit.shell.console import Console

    console = Console(lab, terminal=False)
    console.onecmd(line)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("labkit: ") and err.count("\n") == 1
    assert said in err


def test_what_cannot_be_asked_of_a_lab(script: Callable[..., Any]) -> None:
    done = script("", "--loss", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("labkit shell: loss=2.0: ")
    done = script("", "--host", "client")
    assert done.stderr.startswith("labkit shell: host 'client' is there already")


def test_on_loopback_it_says_what_is_left(script: Callable[..., Any]) -> None:
    done = script("hosts\nset rtt_ms 6\ncapture on\ncounts\ntable\n", LABKIT_TIER="loopback")
    assert (done.returncode, done.stderr) == (0, "")
    assert "client: rtt_ms=6\n" in done.stdout


def test_programs_on_loopback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """`bound` and `door` say where; what programs say to each other crosses the wire."""
    from labkit import Lab
    from labkit.shell.console import Console

    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=4) as lab, contextlib.closing(Console(lab, terminal=False)) as console:

        def said(line: str) -> str:
            console.perform(line)
            return capfd.readouterr().out.strip()

        said(f"server {sys.executable} -m http.server --bind {said('server bound 8000')} &")
        said("server wait 8000")
        address = said("door server 8000").replace(" ", ":")
        said("capture on")
        fetch = f"import urllib.request as r; print(r.urlopen('http://{address}/').status)"
        assert said(f'{sys.executable} -c "{fetch}"') == "200"
        assert "GET / HTTP/1.1" in said("table")
        with pytest.raises(NotAvailableHere, match="only with an address"):
            said("true")


def test_a_cut_link_and_a_narrowed_capture(script: Callable[..., Any], require_program: Callable[[str], str]) -> None:
    require_program("ping")
    lines = (
        "capture on\nping -c 1 -W 5 server.lab\nserver cut down\nping -c 1 -W 1 server.lab && exit 9 || true\nmend\n"
    )
    lines += "ping -c 1 -W 5 server.lab\ntable hosts=client,server between=0,1000000\nladder acks between=0,1000000\n"
    done = script(lines, "--rtt-ms", "2", "--host", "proxy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "server: cut down, until mend" in done.stdout
    assert done.stdout.count("1 received") == 2 and done.stdout.count("0 received") == 1


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder").mkdir()

    def offered(before: str, text: str) -> list[str]:
        commands = {"set": lambda _: ["rtt_ms", "server"], "cd": None}
        return candidates(before, text, cwd=str(tmp_path), hosts=["client", "server"], commands=commands)

    assert "server " in offered("", "ser")
    assert "set " in offered("client ", "set")
    assert "set " not in offered("cat x | ", "set")
    assert "sh " in offered("cat x | ", "sh")
    assert offered("server set ", "r") == ["rtt_ms "]
    assert offered("cat ", "f") == ["file.txt ", "folder/"]
    assert offered("cd ", str(tmp_path / "fo")) == [f"{tmp_path}/folder/"]
    assert offered("curl ", "serv") == ["server.lab "]
