"""The prompt: which line is for the lab, which runs on a host."""

from __future__ import annotations

import cmd
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.capture.capture import Capture
from labkit.errors import InvalidValue, LabError, NotReady
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.network.link import Link, Rule
from labkit.network.tiers import KERNEL, LOOPBACK, TIERS
from labkit.network.wire_control import RuleHandle
from labkit.shell import complete
from labkit.shell.jobs import Job, PlainJob, TerminalJob
from labkit.shell.words import CHOICES, choice, names_of, split, values, words_of
from labkit.waiting import happens

LISTEN, UNCONNECTED = "0A", "07"  # of TCP and of UDP, in /proc/net (net/tcp_states.h)
WAIT_S = 10.0


class Failed(LabError):
    """A line of a script that failed."""


class Console(cmd.Cmd):
    """Takes lines, and does what they say.

    Args:
        lab: where.
        terminal: whether programs get the learner's terminal; else they write to `screens`, and read nothing.
        screens: descriptors of standard output and error.
    """

    def __init__(self, lab: Lab, *, terminal: bool, screens: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.lab, self.terminal, self._screens = lab, terminal, screens
        self.capture: Capture | None = None
        self._named: Host | None = None  # the host before this line's command
        self._rules: list[RuleHandle] = []
        self._jobs: list[Job] = []
        self._folders: dict[str, str] = {}
        self.status = 0
        self._leaving, self._exit_status = False, 0
        self._typed = b""  # ahead, while a program was in front
        self._go_to(lab.client)

    # What a line is.

    def interact(self) -> int:
        """Read lines from the learner until the end. Returns the exit status, 0 or that of `exit`."""
        self.say(start_text(self.lab))
        with _history(self._insert_typed):
            while not self._leaving:
                try:
                    self.cmdloop(intro="")
                except KeyboardInterrupt:
                    self.say("^C")
        return self._exit_status

    def _insert_typed(self) -> None:
        import readline

        if self._typed:
            readline.insert_text(self._typed.decode("utf-8", "replace"))
            readline.redisplay()
            self._typed = b""

    def follow(self, lines: Iterable[str], what: str = "line {}") -> int:
        """Do what the lines of a script say, up to the first that fails.

        Returns:
            exit status, 0 or that of `exit`. Raises Failed, with the line's place and what it said.
        """
        for number, line in enumerate(lines, 1):
            self.status = 0
            try:
                self.perform(line)
            except (LabError, OSError) as exc:
                raise Failed(f"{what.format(number)}: {exc}") from None
            if self.status:
                raise Failed(f"{what.format(number)}: {line.strip()!r} ended with {self.status}")
            if self._leaving:
                break
        return self._exit_status

    def onecmd(self, line: str) -> bool:
        try:
            self.perform(line)
        except (LabError, OSError) as exc:
            print(f"labkit: {exc}", file=sys.stderr)
        for job in [job for job in self._jobs if job.ended]:
            self._end(job)
            self.say(f"{job} ended with {job.program.returncode}")
        if b"\n" in self._typed:
            next_line, _, self._typed = self._typed.partition(b"\n")
            self.cmdqueue.append(next_line.decode("utf-8", "replace"))
        return self._leaving

    def perform(self, line: str) -> None:
        """Do what a line says. Raises LabError or OSError; a program's exit status is ``status``."""
        line = line.strip()
        self._named = None
        if not line or line.startswith("#"):
            return
        word, _, rest = line.partition(" ")
        if word in self.lab.hosts:
            rest = rest.strip()
            if not rest:
                self._go_to(self.lab[word])
                return
            self._named, line = self.lab[word], rest
            word, _, rest = line.partition(" ")
        handler = getattr(self, f"do_{word}", None)
        if handler is None or (word == "kill" and "%" not in rest):
            self._run(self._named or self.host, line)
        else:
            handler(rest.strip())

    def _go_to(self, host: Host) -> None:
        self.host = host
        self.prompt = f"{host.name}$ "

    def close(self) -> None:
        """End what still runs behind."""
        for job in self._jobs:
            job.hang_up()
        self._jobs.clear()

    def say(self, text: object) -> None:
        """Print it where programs print, too, in order with theirs."""
        os.write(self._screens[0], f"{text}\n".encode())

    # Programs.

    def _run(self, host: Host, line: str) -> None:
        behind = line.endswith("&") and not line.endswith(("&&", "\\&"))
        number = max((job.number for job in self._jobs), default=0) + 1
        line, cwd = line.removesuffix("&").rstrip() if behind else line, self._folder(host)
        job: Job
        if self.terminal:
            job = TerminalJob(number, host, line, cwd=cwd, keyboard=0, screen=self._screens[0])
        else:
            job = PlainJob(number, host, line, cwd=cwd, screens=self._screens)
        self._jobs.append(job)
        if behind:
            if self.terminal:
                self.say(job)
        else:
            self._attend(job)

    def _attend(self, job: Job) -> None:
        ahead, self._typed = self._typed, b""
        if job.attend(ahead):
            self.say(f"\n{job} goes on: fg brings it back")
            return
        self.status = job.program.wait(0)
        self._typed = job.typed_ahead()
        self._end(job)

    def _end(self, job: Job) -> None:
        job.close()
        self._jobs.remove(job)

    def _job(self, rest: str) -> Job:
        wanted = rest.strip().removeprefix("%")
        for job in reversed(self._jobs):
            if wanted in ("", str(job.number)):
                return job
        raise InvalidValue(f"no job {rest or 'runs behind'}: jobs lists them")

    def _folder(self, host: Host) -> str:
        return self._folders.get(host.name) or os.getcwd()

    def do_jobs(self, rest: str) -> None:
        """jobs: what runs behind. A line that ends in & does."""
        for job in self._jobs:
            self.say(job)

    def do_fg(self, rest: str) -> None:
        """fg [%N]: bring a job to the front; Ctrl-Z lets one go on behind."""
        job = self._job(rest)
        self.say(job)
        self._attend(job)

    def do_kill(self, rest: str) -> None:
        """kill %N: end a job."""
        self._end(self._job(rest))

    def do_cd(self, rest: str) -> None:
        """cd [FOLDER]: where this host's programs run from now on."""
        host = self._named or self.host
        words = split(rest) or ["~"]
        folder = os.path.normpath(os.path.join(self._folder(host), os.path.expanduser(words[0])))
        if not os.path.isdir(folder):
            raise InvalidValue(f"{words[0]!r} is no folder here")
        self._folders[host.name] = folder

    def do_wait(self, rest: str) -> None:
        """wait PORT: until a program listens there on this host, at most ten seconds: after a line with &."""
        host = self._named or self.host
        port = _port(rest)
        if not happens(lambda: listens(host, port), WAIT_S):
            raise NotReady(f"nothing listens on {host.fqdn}:{rest} after {WAIT_S:g} s: start it with & at its end")

    def do_bound(self, rest: str) -> None:
        """bound PORT: where a program has to listen so that others find it at this host's port, on every tier."""
        address, port = (self._named or self.host).bound(_port(rest))
        self.say(f"{address} {port}")

    def do_door(self, rest: str) -> None:
        """door HOST PORT: where a program on this host has to connect to reach that port, on every tier."""
        words = split(rest)
        if len(words) != 2:
            raise InvalidValue(f"door {rest}: give a host and a port, door server 8000")
        address, port = (self._named or self.host).door(self.lab[words[0]], _port(words[1]))
        self.say(f"{address} {port}")

    def do_exit(self, rest: str) -> None:
        """exit [STATUS], or Ctrl-D: end the lab and all that runs in it."""
        if rest and not rest.isdigit():
            raise InvalidValue(f"exit {rest!r}: give a status, a number")
        self._exit_status, self._leaving = int(rest or 0) & 0xFF, True

    def do_EOF(self, rest: str) -> None:
        """What cmd calls Ctrl-D."""
        self.say("")
        self._leaving = True

    # The wire.

    def do_hosts(self, rest: str) -> None:
        """hosts: names, addresses and links. A host's name alone changes to it; before a line it runs there."""
        width = max(len(host.fqdn) for host in self.lab.hosts.values())
        for host in self.lab.hosts.values():
            link = words_of(host.link) or "no delay of its own"
            self.say(f"{host.fqdn:<{width}}  {host.ip}  {host.ip6 or 'no IPv6'}  {link}")

    def do_set(self, rest: str) -> None:
        """set [HOST] rtt_ms 100 [loss 0.01 …]: change a link, the client's if no host is named."""
        words = split(rest)
        host = self._host_of(words)
        if words:
            host.set_link(**values(Link, words))
        self.say(f"{host.name}: {words_of(host.link) or 'no delay of its own'}")

    def do_drop(self, rest: str) -> None:
        """drop [source=server tcp_flags=SA count=1 …]: lose the packets that match."""
        self._rule("drop", split(rest))

    def do_delay(self, rest: str) -> None:
        """delay MS [source=… …]: hold the packets that match for so many milliseconds more."""
        words = split(rest)
        if words and "=" not in words[0]:
            words[0] = f"delay_ms={words[0]}"
        self._rule("delay", words)

    def do_duplicate(self, rest: str) -> None:
        """duplicate [source=… …]: deliver the packets that match twice."""
        self._rule("duplicate", split(rest))

    def _rule(self, action: str, words: list[str]) -> None:
        self._rules.append(self.lab.wire.add(Rule(action, **values(Rule, words))))
        self._show_rule(len(self._rules), self._rules[-1])

    def _show_rule(self, number: int, rule: RuleHandle) -> None:
        what = f"{rule.rule.action} {words_of(rule.rule)}".strip()
        self.say(f"{number}  {what}: {rule.matched} matched, {rule.acted} acted on")

    def do_cut(self, rest: str) -> None:
        """cut [HOST] [up | down]: its link carries nothing from now on, the client's if no host is named."""
        words = split(rest)
        host = self._host_of(words)
        host.cut(*words[:1])
        self.say(f"{host.name}: cut{' ' + words[0] if words else ''}, until mend")

    def do_mend(self, rest: str) -> None:
        """mend [HOST]: its link carries again, or those of all hosts."""
        words = split(rest)
        for host in [self._host_of(words)] if words or self._named else list(self.lab.hosts.values()):
            host.mend()

    def _host_of(self, words: list[str]) -> Host:
        """The host a command is for: the first word behind it, which is taken, the one before it, or the client."""
        if words and words[0] in self.lab.hosts:
            return self.lab[words.pop(0)]
        return self._named or self.lab.client

    def do_rules(self, rest: str) -> None:
        """rules: those of drop, delay and duplicate, and what they did."""
        for number, rule in enumerate(self._rules, 1):
            self._show_rule(number, rule)

    def do_remove(self, rest: str) -> None:
        """remove N | all: take a rule away."""
        if rest != "all" and not (rest.isdigit() and 0 < int(rest) <= len(self._rules)):
            raise InvalidValue(f"no rule {rest!r}: rules lists them, and remove all takes all")
        gone = list(self._rules) if rest == "all" else [self._rules[int(rest) - 1]]
        for rule in gone:
            rule.remove()
            self._rules.remove(rule)

    def do_counts(self, rest: str) -> None:
        """counts: what the wire carried and lost; up is what the host sent."""
        for host, ways in self.lab.wire.counts.items():
            for way, counts in ways.items():
                told = " ".join(f"{name}={count}" for name, count in vars(counts).items() if count)
                self.say(f"{host:<8} {way:<4} {told or 'nothing'}")

    # Captures.

    def do_capture(self, rest: str) -> None:
        """capture on [HOST] | off: keep the packets, of the wire or of a host, for ladder, table and save."""
        words = split(rest)
        if words and words[0] == "on" and len(words) <= 2:
            self._stop_capture()
            self.capture = self.lab.capture(*words[1:])
        elif words == ["off"]:
            self._stop_capture()
        elif words:
            raise InvalidValue(f"capture {rest}: on, off, or on and a host")
        self.say(self.capture or "nothing is captured: capture on")

    def _stop_capture(self) -> None:
        if self.capture is not None and not self.capture.closed:
            with self.capture:
                pass  # its end waits for what is still on the wire

    def _captured(self) -> Capture:
        if self.capture is None:
            raise InvalidValue("nothing was captured: first capture on, then the lines to look at")
        if not self.capture.closed:
            self.lab.wire.settle()
        return self.capture

    def do_ladder(self, rest: str) -> None:
        """ladder [acks] [connection=8000 stream=1 between=0,100 hosts=client,server]: the packets as a diagram."""
        words = split(rest)
        acks = "acks" in words
        self.say(self._captured().ladder(acks=acks, **choice([word for word in words if word != "acks"])))

    def do_table(self, rest: str) -> None:
        """table [connection=… stream=… between=… hosts=…]: the captured packets, a line each."""
        wanted = choice(split(rest))
        self.say(self._captured().table(**wanted))

    def do_save(self, rest: str) -> None:
        """save FILE.pcapng: the captured packets and the secrets of TLS and QUIC, for Wireshark."""
        words = split(rest)
        if len(words) != 1:
            raise InvalidValue(f"save {rest!r}: give a file, x.pcapng")
        path = os.path.join(self._folder(self.host), os.path.expanduser(words[0]))
        capture = self._captured()
        self.say(f"{len(capture.transits)} packets in {capture.save(path)}")

    # Help and completion.

    def do_help(self, rest: str) -> None:
        """help [COMMAND]: this list."""
        if rest and not hasattr(self, f"do_{rest}"):
            raise InvalidValue(f"{rest!r} is no command of labkit's: help lists them; {rest} --help asks a program")
        if not rest:
            self.say("A line runs on the host of the prompt, in bash or sh. What labkit itself knows:")
        for name in [rest] if rest else COMMANDS:
            self.say(f"  {getattr(self, f'do_{name}').__doc__}")

    def emptyline(self) -> bool:
        return False

    def complete(self, text: str, state: int) -> str | None:  # type: ignore[override]
        import readline

        if state == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            hosts = list(self.lab.hosts)
            links, rules = [*hosts, *names_of(Link)], [f"{name}=" for name in names_of(Rule)]

            def after_rule(line: str) -> Sequence[str]:
                return hosts if line.endswith(("source=", "destination=")) else rules

            offers: dict[str, Any] = dict.fromkeys(COMMANDS, lambda _: [])
            offers |= {"set": lambda _: links, "cd": None, "save": None, "help": lambda _: COMMANDS}
            offers |= dict.fromkeys(("drop", "delay", "duplicate"), after_rule)
            offers |= dict.fromkeys(("cut", "mend", "door"), lambda _: hosts)
            offers |= {"capture": lambda _: ["on", "off", *hosts], "ladder": lambda _: ["acks", *CHOICES]}
            offers |= {"table": lambda _: CHOICES}
            offers |= dict.fromkeys(("fg", "kill"), lambda _: [f"%{job.number}" for job in self._jobs])
            self.completion_matches = complete.candidates(
                before, text, cwd=self._folder(self.host), hosts=hosts, commands=offers
            )
        found = self.completion_matches or []
        return found[state] if state < len(found) else None


# In the order in which help lists them.
COMMANDS = ["hosts", "set", "drop", "delay", "duplicate", "rules", "remove", "cut", "mend", "counts"]
COMMANDS += ["capture", "ladder", "table", "save", "jobs", "fg", "kill", "wait", "bound", "door", "cd", "help", "exit"]


def start_text(lab: Lab) -> str:
    """What the shell says first: what is there, what is not, how to leave."""
    hosts = ", ".join(f"{host.fqdn} {host.ip}" for host in lab.hosts.values())
    lines = [f"{hosts}. Tier: {lab.tier}. The client's link: {words_of(lab.client.link) or 'no delay'}."]
    if lab.tier != KERNEL:
        lines.append(f"On this tier {TIERS[lab.tier]}.")
    lines += [f"No higher one: {lab.why_lower}"] if lab.why_lower else []
    if lab.tier == LOOPBACK:
        lines.append("Programs have this machine's network: bound and door say where one has to listen and to connect.")
    lines.append("A line runs on the host of the prompt; a host's name changes to it. help lists what else there is.")
    lines.append("exit or Ctrl-D ends the lab and all that runs in it.")
    return "\n".join(lines)


def _port(word: str) -> int:
    if not word.isdigit() or not 0 < int(word) < 65536:
        raise InvalidValue(f"{word!r}: give a port, 8000")
    return int(word)


def listens(host: Host, port: int) -> bool:
    """Whether something listens on a host's port, TCP or UDP, by the kernel's own list (proc(5), /proc/net/tcp)."""
    real = host.bound(port)[1]  # on the tier "loopback" a port of this machine's
    for name, state in (("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            path = f"/proc/net/{name}"
            local = host.engine.tier == LOOPBACK
            text = Path(path).read_text() if local else host.engine.read_file(host.name, path)
            for line in text.splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and int(fields[1].rpartition(":")[2], 16) == real:
                    return True
    return False


@contextlib.contextmanager
def _history(before_each: Callable[[], None]) -> Any:
    """Lines of former days, where there is a readline and a home to keep them in.

    Args:
        before_each: called when a prompt has appeared.
    """
    try:
        import readline
    except ImportError:  # a Python that was built without it: lines are read all the same
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "labkit")
    path = folder / "shell_history"
    readline.set_completer_delims(complete.DELIMITERS)
    readline.set_history_length(1000)
    readline.set_pre_input_hook(before_each)
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_pre_input_hook(None)
        with contextlib.suppress(OSError):  # a home that cannot be written to
            folder.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
