"""What the prompt knows of the wire: hosts, links, rules, counts."""

from __future__ import annotations

import cmd

from labkit.errors import InvalidValue
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.network.link import Link, Rule
from labkit.network.wire_control import RuleHandle
from labkit.shell.words import split, values, words_of


class WireCommands(cmd.Cmd):
    """Commands for the wire.

    Args:
        lab: whose.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab
        self.named: Host | None = None  # the host before this line's command
        self.rules: list[RuleHandle] = []

    def say(self, text: object) -> None:
        """Print it where programs print, too."""
        raise NotImplementedError

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
        self.rules.append(self.lab.wire.add(Rule(action, **values(Rule, words))))
        self._show_rule(len(self.rules), self.rules[-1])

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
        for host in [self._host_of(words)] if words or self.named else list(self.lab.hosts.values()):
            host.mend()

    def _host_of(self, words: list[str]) -> Host:
        """The host a command is for: the first word behind it, which is taken, the one before it, or the client."""
        if words and words[0] in self.lab.hosts:
            return self.lab[words.pop(0)]
        return self.named or self.lab.client

    def do_rules(self, rest: str) -> None:
        """rules: those of drop, delay and duplicate, and what they did."""
        for number, rule in enumerate(self.rules, 1):
            self._show_rule(number, rule)

    def do_remove(self, rest: str) -> None:
        """remove N | all: take a rule away."""
        if rest != "all" and not (rest.isdigit() and 0 < int(rest) <= len(self.rules)):
            raise InvalidValue(f"no rule {rest!r}: rules lists them, and remove all takes all")
        gone = list(self.rules) if rest == "all" else [self.rules[int(rest) - 1]]
        for rule in gone:
            rule.remove()
            self.rules.remove(rule)

    def do_counts(self, rest: str) -> None:
        """counts: what the wire carried and lost; up is what the host sent."""
        for host, ways in self.lab.wire.counts.items():
            for way, counts in ways.items():
                told = " ".join(f"{name}={count}" for name, count in vars(counts).items() if count)
                self.say(f"{host:<8} {way:<4} {told or 'nothing'}")
