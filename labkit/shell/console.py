"""The prompt: which line is for the lab, which runs on a host."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from labkit.capture.capture import Capture
from labkit.errors import InvalidValue, LabError, NotReady
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.network.link import Link, Rule
from labkit.network.tiers import KERNEL, LOOPBACK, TIERS
from labkit.shell import complete
from labkit.shell.history import history
from labkit.shell.jobs import Job, PlainJob, TerminalJob
from labkit.shell.ports import listens, port_of
from labkit.shell.wire_commands import WireCommands
from labkit.shell.words import CHOICES, choice, names_of, split, words_of
from labkit.waiting import happens

WAIT_S = 10.0


class Failed(LabError):
    """A line of a script that failed."""


class Console(WireCommands):
    """Takes lines, and does what they say.

    Args:
        lab: where.
        terminal: whether programs get the learner's terminal; else they write to `screens`, and read nothing.
        screens: descriptors of standard output and error.
    """

    def __init__(self, lab: Lab, *, terminal: bool, screens: Sequence[int] = (1, 2)) -> None:
        super().__init__(lab)
        self.terminal, self._screens = terminal, screens
        self.capture: Capture | None = None
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
        with history(self._insert_typed):
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
        self.named = None
        if not line or line.startswith("#"):
            return
        word, _, rest = line.partition(" ")
        if word in self.lab.hosts:
            rest = rest.strip()
            if not rest:
                self._go_to(self.lab[word])
                return
            self.named, line = self.lab[word], rest
            word, _, rest = line.partition(" ")
        handler = getattr(self, f"do_{word}", None)
        if handler is None or (word == "kill" and "%" not in rest):
            self._run(self.named or self.host, line)
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
        host = self.named or self.host
        words = split(rest) or ["~"]
        folder = os.path.normpath(os.path.join(self._folder(host), os.path.expanduser(words[0])))
        if not os.path.isdir(folder):
            raise InvalidValue(f"{words[0]!r} is no folder here")
        self._folders[host.name] = folder

    def do_wait(self, rest: str) -> None:
        """wait PORT: until a program listens there on this host, at most ten seconds: after a line with &."""
        host = self.named or self.host
        port = port_of(rest)
        if not happens(lambda: listens(host, port), WAIT_S):
            raise NotReady(f"nothing listens on {host.fqdn}:{rest} after {WAIT_S:g} s: start it with & at its end")

    def do_bound(self, rest: str) -> None:
        """bound PORT: where a program has to listen so that others find it at this host's port, on every tier."""
        address, port = (self.named or self.host).bound(port_of(rest))
        self.say(f"{address} {port}")

    def do_door(self, rest: str) -> None:
        """door HOST PORT: where a program on this host has to connect to reach that port, on every tier."""
        words = split(rest)
        if len(words) != 2:
            raise InvalidValue(f"door {rest}: give a host and a port, door server 8000")
        address, port = (self.named or self.host).door(self.lab[words[0]], port_of(words[1]))
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
