"""Unbound on a host: a DNS server that knows the lab's names, and records of your choice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit import checks
from labkit.network.host import Host
from labkit.network.tiers import LOOPBACK
from labkit.services.packaged import Packaged

# What it needs to run as any user, in a directory of its own. The iterator alone: no keys to validate with.
FRAME = """\
server:
    directory: "{directory}"
    username: ""
    chroot: ""
    pidfile: "unbound.pid"
    use-syslog: no
    do-ip6: no
    num-threads: 1
    access-control: 0.0.0.0/0 allow
    module-config: "iterator"
    do-not-query-localhost: no
{stay}include: "server.conf"
"""
# Nobody else is asked: a name that stands nowhere does not exist (NXDOMAIN).
CONFIGURATION = """\
server:
    interface: {host}@53
    local-zone: "." static
    local-zone: "lab." transparent
auth-zone:
    name: "lab."
    zonefile: "lab.zone"
    for-upstream: no
"""
ZONE = """\
$ORIGIN lab.
$TTL 60
@ IN SOA {host}. hostmaster.{host}. 1 3600 600 86400 60
@ IN NS {host}.
"""


class Unbound(Packaged):
    """Unbound, authoritative for the lab's names.

    Args:
        host: where it runs.
        records: further lines for the zone "lab.", as zone files have them (RFC 1035, section 5):
            "www IN CNAME server", "mail 5 IN A 192.0.2.1".
        configuration: the text of a configuration of your own in place of this one: a clause ``server:`` with
            ``interface: server.lab@53``, and what else there is. The zone stands in lab.zone beside it.
        others: see Service, for instance ``background=True``.

    Raises:
        LabError: what ``unbound-checkconf`` says of a record or a configuration that is wrong. As Service.
    """

    program = "unbound"
    install = "sudo apt-get install unbound"

    def __init__(
        self, host: Host, records: Sequence[str] = (), *, configuration: str | None = None, **others: Any
    ) -> None:
        self.check_options(others)
        self._program = self.found(host)
        checks.texts("records", records, "www IN CNAME server")
        names = [f"{each.name} IN A {each.ip}" for each in host.lab.hosts.values()]
        self._zone = ZONE.format(host=host.fqdn) + "\n".join([*names, *records]) + "\n"
        self._configuration = CONFIGURATION.format(host=host.fqdn) if configuration is None else configuration
        ports = self.ports_in(host, self._configuration)
        super().__init__(host, [self._program, "-d", "-c", "unbound.conf"], ready=ports[0], ports=ports, **others)

    def _prepare(self) -> None:
        # On that tier it is on the machine's network: queries from 127.0.0.1 go nowhere else.
        stay = "    outgoing-interface: 127.0.0.1\n" if self.host.engine.tier == LOOPBACK else ""
        frame = FRAME.format(directory=self.directory, stay=stay)
        self._write({"unbound.conf": frame, "server.conf": self._configuration, "lab.zone": self._zone})
        # Where AppArmor is on, Debian's profile for /usr/sbin/unbound lets it read /etc/unbound alone. It goes by that
        # path, and a copy has none. (It cannot be run where the lab's directory is mounted noexec.)
        copy = shutil.copy(self._program, self.directory / "unbound")
        if os.access(copy, os.X_OK):
            self._args[0] = str(copy)
        self._run([str(Path(self._program).with_name("unbound-checkconf")), "unbound.conf"])
