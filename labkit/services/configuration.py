"""What a program reads: its files, and in them the lab's addresses as the program can use them on this tier.

In a configuration stands ``server.lab:8080``, as people write it. Where `server` is the host on which the program runs,
that is where it listens, and ``host.bound(8080)`` is put there; else it is whom the program connects to, and
``host.door(server, 8080)`` is put there. With a kernel's network both are the hosts' own addresses. Names without a
port stay: a certificate's name, a Host field.

Beside the files lie, as soon as one of them is named, ``certificate.pem`` (the host's, by the lab's authority, with its
chain), ``key.pem``, ``both.pem`` (key and certificate in one file), ``authority.pem`` (whom the lab trusts) and
``keylog.txt`` (the session's key log, to which a program may append its TLS secrets).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from labkit.errors import InvalidValue
from labkit.network.engine import SocketAddress
from labkit.network.environment import search_path
from labkit.network.host import Host

TLS_FILES = ("certificate.pem", "key.pem", "both.pem", "authority.pem", "keylog.txt")
# How people write an address: server.lab:80, server.lab@53 (Unbound), and Envoy's pair of fields.
_FORMS = (
    r"(?P<before>(?<![\w.-]))(?P<host>{names})\.lab(?P<between>[:@])(?P<port>\d{{1,5}})(?![\w.])",
    r'(?P<before>\baddress"?:\s*"?)(?P<host>{names})\.lab(?P<between>"?\s*,?\s*"?port_value"?:\s*)(?P<port>\d{{1,5}})\b',
)


def find_program(program: str) -> str | None:
    """The path of a program, also of one that only root has on PATH; None where there is none."""
    return shutil.which(program, path=search_path())


def own_ports(host: Host, texts: Iterable[str]) -> list[int]:
    """The ports of this host that are named in texts, in their order."""
    found = [match for text in texts for form in _forms(host) for match in form.finditer(text)]
    return [int(match["port"]) for match in found if match["host"] == host.name]


def addressed(host: Host, text: str) -> tuple[str, list[SocketAddress]]:
    """A text with what a program of `host` can use in place of the lab's addresses, and those."""
    used = []

    def use(match: re.Match[str]) -> str:
        port = int(match["port"])
        other = cast(Host, host.lab.hosts[match["host"]])
        address = host.bound(port) if other is host else host.door(other, port)
        used.append(address)
        return f"{match['before']}{address.ip}{match['between']}{address.port}"

    for form in _forms(host):
        text = form.sub(use, text)
    return text, used


def _forms(host: Host) -> list[re.Pattern[str]]:
    names = "|".join(map(re.escape, host.lab.hosts))
    return [re.compile(form.format(names=names)) for form in _FORMS]


def write_files(host: Host, directory: Path, files: Mapping[str, str], changed: Callable[[str], str]) -> None:
    """Write a program's files into its directory, each changed, and those of TLS that they name.

    Raises:
        InvalidValue: a name that leaves the directory.
    """
    for name, text in files.items():
        path = directory / name
        if not name or not path.resolve().is_relative_to(directory.resolve()):
            raise InvalidValue(f"files={{{name!r}: …}}: give a name below the service's own directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed(text), encoding="utf-8")
    wanted = {name for name in TLS_FILES if any(name in text for text in files.values())} - files.keys()
    if wanted - {"keylog.txt"}:
        _write_certificate(host, directory)
    if "keylog.txt" in wanted:
        (directory / "keylog.txt").symlink_to(host.lab.program_environment["SSLKEYLOGFILE"])


def _write_certificate(host: Host, directory: Path) -> None:
    authority = cast(Any, host.lab).authority
    leaf = authority.certificate_for(host.fqdn, host.name, host.ip)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    key = leaf.private_key_pem.bytes()
    contents = {"certificate.pem": chain, "key.pem": key, "both.pem": key + chain, "authority.pem": authority.ca_pem}
    for name, data in contents.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)  # PostgreSQL takes no key that others may read
