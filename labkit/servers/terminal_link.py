"""``lab.server.terminal()``: a link that opens a terminal of JupyterLab on a lab's host.

The notebook server starts a terminal whose program is `labkit attach` (its REST API: POST /api/terminals; a
``shell_command`` there is an option of terminado's). The link is a command of JupyterLab's own, "terminal:open".
"""

from __future__ import annotations

import contextvars
import html
import http.client
import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from labkit import child
from labkit.servers.jupyter import about_server

ANSWER_S = 5.0


class TerminalLink:
    """A terminal on a host of the lab. As a cell's last line it is a link that opens it.

    Args:
        host, fqdn: the host's names.
        directory: of the lab.

    Attributes:
        command: what opens one in any terminal of this machine, for a shell.
        name: of JupyterLab's terminal; None where no notebook server made one.
    """

    def __init__(self, host: str, fqdn: str, directory: Path) -> None:
        self.host, self.fqdn = host, fqdn
        words = "attach", "--lab", str(directory), host
        script = Path(sys.executable).with_name("labkit")
        ours = [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "labkit"]
        self.command = shlex.join([*ours, *words])
        # Outside of the blocks that this thread may be in: the notebook server is this machine's.
        self.name = contextvars.Context().run(_start, host, child.command("labkit.cli", *words))

    def __repr__(self) -> str:
        where = f"terminal {self.name!r} of JupyterLab, or " if self.name else ""
        return f"A terminal on {self.fqdn}: {where}in a terminal of this machine\n{self.command}"

    def _repr_html_(self) -> str:
        command = f"<code>{html.escape(self.command)}</code>"
        if not self.name:
            return f"A terminal on {self.fqdn}: in a terminal of this machine, {command}"
        arguments = html.escape(json.dumps({"name": self.name}))
        link = f'<a href="#" data-commandlinker-command="terminal:open" data-commandlinker-args="{arguments}">'
        return f"{link}Open a terminal on {self.fqdn}</a><br>or, in a terminal of this machine: {command}"


def _start(host: str, command: list[str]) -> str | None:
    """Let the notebook server start a terminal. Returns its name; None where there is none that does."""
    about = about_server()
    token = os.environ.get("JUPYTERHUB_API_TOKEN") or about.get("token")
    url = urlsplit(str(about.get("url", "")))
    if not token or url.scheme != "http" or url.hostname is None:
        return None
    name = f"{host}_{secrets.token_hex(2)}"
    body = json.dumps({"name": name, "cwd": os.getcwd(), "shell_command": command})
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", url.port or 80, timeout=ANSWER_S)
    try:
        connection.request("POST", f"{url.path}api/terminals", body, headers)
        answer = connection.getresponse()
        return str(json.loads(answer.read())["name"]) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, KeyError):  # it does not listen here, or has no terminals
        return None
    finally:
        connection.close()
