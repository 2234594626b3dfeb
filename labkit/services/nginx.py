"""nginx on a host: HTTP and, with its module for streams, TCP and UDP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from labkit.errors import ProgramNotFound
from labkit.network.host import Host
from labkit.services.packaged import Packaged

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
HTTP = """\
server {{
    listen {host}:80;
    location / {{ return 200 "Hello from nginx on {host}\\n"; }}
}}
"""
# What it needs to run as any user, in a directory of its own, and in the foreground.
FRAME = """\
daemon off;
pid nginx.pid;
error_log stderr;
{user}{module}
events {{ worker_connections 1024; }}
"""
HTTP_FRAME = """\
http {
    access_log /dev/stdout;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include http.conf;
}
"""


class Nginx(Packaged):
    """nginx, with what stands in its ``http`` block, its ``stream`` block, or both.

    Args:
        host: where it runs.
        http: what stands in the block ``http { … }``: servers and upstreams. By default one page on port 80.
        stream: what stands in the block ``stream { … }``; Debian has it in a package of its own.
        others: see Service, for instance ``background=True``.

    Raises:
        LabError: what ``nginx -t`` says of a configuration that is wrong. As Service.
    """

    program = "nginx"
    install = "sudo apt-get install nginx-light libnginx-mod-stream"

    def __init__(self, host: Host, http: str | None = None, *, stream: str | None = None, **others: Any) -> None:
        self.check_options(others)
        path = self.found(host)
        if http is None and stream is None:
            http = HTTP.format(host=host.fqdn)
        module = ""
        if stream is not None and STREAM_MODULE.parent.is_dir():  # else it is built in, if at all: nginx -t tells
            if not STREAM_MODULE.exists():
                raise ProgramNotFound(f"nginx here has no module for streams. Bring it by: {self.install}")
            module = f"load_module {STREAM_MODULE};"
        frame = FRAME.format(user="user root;\n" if os.geteuid() == 0 else "", module=module)
        files = {"nginx.conf": frame}
        if http is not None:
            files |= {"http.conf": http, "nginx.conf": files["nginx.conf"] + HTTP_FRAME}
        if stream is not None:
            files |= {"stream.conf": stream, "nginx.conf": files["nginx.conf"] + "stream { include stream.conf; }\n"}
        self._command = [path, "-p", "./", "-c", "nginx.conf", "-e", "stderr"]
        ports = self.ports_in(host, http, stream)
        super().__init__(host, self._command, ready=ports[0], ports=ports, files=files, **others)

    def _prepare(self) -> None:
        self._run([*self._command, "-t"])
