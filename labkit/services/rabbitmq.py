"""RabbitMQ on a host: a broker for AMQP 0-9-1, with nothing in it.

Sources: rabbitmq.com/docs/configure (environment variables, rabbitmq.conf), epmd(1), erl(1).
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from labkit import checks
from labkit.network.host import Host
from labkit.network.tiers import LOOPBACK
from labkit.services.configuration import find_program
from labkit.services.packaged import Packaged
from labkit.services.readiness import accepts

AMQP_PORT, EPMD_PORT, DISTRIBUTION_PORT = 5672, 4369, 25672
# Memory as Erlang itself counts it: else the broker asks the machine's /proc about a process id of the lab's, and dies.
CONFIGURATION = """\
listeners.tcp.1 = {at}
loopback_users = none
default_user = {user}
default_pass = {password}
vm_memory_calculation_strategy = erlang
log.console = true
log.console.level = info
log.file = false
"""
# Few threads and no busy waiting: it starts a little quicker, and leaves the processors to the lesson.
ERLANG = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none +A 4 -start_epmd false"


class RabbitMQ(Packaged):
    """RabbitMQ. It takes four to eight seconds to start: ``background=True`` lets the reader go on meanwhile.

    Args:
        host: where it runs.
        configuration: further lines for rabbitmq.conf: "heartbeat = 5".
        port: on which it listens; what it needs for itself (epmd, Erlang's distribution) lies around it.
        others: see Service, for instance ``background=True``.

    Attributes:
        user, password: for clients. "guest" and "guest"; on the tier "loopback", where others on this machine could
            connect, a password of its own.

    Raises:
        As Service. LabError quotes what it says of a configuration that is wrong.
    """

    program = "rabbitmq-server"
    install = "sudo apt-get install rabbitmq-server"
    user = "guest"

    def __init__(self, host: Host, configuration: str = "", *, port: int = AMQP_PORT, **others: Any) -> None:
        self.check_options(others)
        server = self.found(host)
        checks.text("configuration", configuration, "heartbeat = 5")
        checks.whole("port", port, AMQP_PORT - EPMD_PORT + 1, 65535 - (DISTRIBUTION_PORT - AMQP_PORT))
        self.password = secrets.token_hex(8) if host.engine.tier == LOOPBACK else "guest"
        others = {"patience_s": 10.0, **others}
        self._epmd_port = port + EPMD_PORT - AMQP_PORT
        distribution = host.bound(port + DISTRIBUTION_PORT - AMQP_PORT).port
        frame = CONFIGURATION.format(at=host.bound(port), user=self.user, password=self.password)
        files = {"rabbitmq.conf": frame + configuration, "enabled_plugins": "[]."}
        env = {
            "RABBITMQ_NODENAME": f"rabbit{port}@localhost",
            "RABBITMQ_NODE_PORT": str(host.bound(port).port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_PORT": str(host.bound(self._epmd_port).port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{ERLANG} -kernel inet_dist_use_interface {{127,0,0,1}}",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "ERL_CRASH_DUMP_BYTES": "0",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes Erlang, and does not wait for it
        }
        super().__init__(host, [server], ready="Server startup complete", ports=[port], files=files, env=env, **others)

    @classmethod
    def path(cls) -> str | None:
        """Where Debian has the server itself, because its wrapper on PATH refuses ordinary users; else on PATH."""
        debian = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
        return str(debian[-1]) if debian else find_program(cls.program)

    @property
    def url(self) -> str:
        """For clients of the lab: "amqp://guest:guest@server.lab:5672/". Waits as ``ready`` does."""
        self.ready()
        return f"amqp://{self.user}:{self.password}@{self.host.fqdn}:{self.port}/"

    def control(self, *words: str) -> str:
        """What rabbitmqctl answers: ``broker.control("list_queues", "name", "messages")``. Takes about a second."""
        self.ready()
        return self._run([str(Path(self._args[0]).with_name("rabbitmqctl")), "--quiet", *words])

    def _last_words(self, log: str) -> str:
        """What it complains about stands at the beginning of its errors; what follows is Erlang's account of it."""
        errors = re.findall(r"\[error\] <[\d.]+> *(\S.*)", log.split("BOOT FAILED")[0])
        return "It said:\n" + "\n".join(errors) if errors else super()._last_words(log)

    def _prepare(self) -> None:
        folder = self.directory
        places = {"MNESIA_BASE": "data", "LOG_BASE": "logs", "PID_FILE": "pid", "CONFIG_FILE": "rabbitmq"}
        places["ENABLED_PLUGINS_FILE"] = "enabled_plugins"
        self._env |= {f"RABBITMQ_{name}": str(folder / place) for name, place in places.items()} | {"HOME": str(folder)}
        # Erlang's name server: started first, because the broker asks it, and so ended last.
        epmd = self._launch(["epmd", "-port", str(self.host.bound(self._epmd_port).port), "-address", "127.0.0.1"])
        self._wait(epmd, lambda: accepts(self.host, self._epmd_port, "127.0.0.1"), "Erlang's epmd has to listen")
