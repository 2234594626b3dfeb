"""HAProxy on a host: a balancer for TCP and HTTP."""

from __future__ import annotations

from typing import Any

from labkit.network.host import Host
from labkit.services.packaged import Packaged

CONFIGURATION = """\
frontend web
    bind {host}:80
    http-request return status 200 content-type text/plain string "Hello from HAProxy on {host}\\n"
"""
# What a configuration need not repeat; its own sections come after it.
FRAME = """\
global
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""


class HAProxy(Packaged):
    """HAProxy with a configuration: frontends, backends, and what else stands in its file.

    Args:
        host: where it runs.
        configuration: the text of haproxy.cfg; ``mode http`` and time-outs are the defaults before it. By default one
            page on port 80. Health checks (``check``) are connections, and stand in captures.
        others: see Service, for instance ``background=True``.

    Raises:
        LabError: what ``haproxy -c`` says of a configuration that is wrong. As Service.
    """

    program = "haproxy"
    install = "sudo apt-get install haproxy"

    def __init__(self, host: Host, configuration: str | None = None, **others: Any) -> None:
        self.check_options(others)
        program = self.found(host)
        text = CONFIGURATION.format(host=host.fqdn) if configuration is None else configuration
        ports = self.ports_in(host, text)
        self._command = [program, "-db", "-f", "frame.cfg", "-f", "haproxy.cfg"]
        files = {"frame.cfg": FRAME, "haproxy.cfg": text}
        super().__init__(host, self._command, ready=ports[0], ports=ports, files=files, **others)

    def _prepare(self) -> None:
        self._run([*self._command, "-c"])
