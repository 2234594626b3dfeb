"""Libraries whose sockets are opened in C, and so on no host: inside ``with host:`` their entrances are closed.

They would ask this module's neighbours for ``server.lab``, be told its address, and connect on the machine's own
network. A Unix socket belongs to no network, and stays allowed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from labkit.errors import OutsideTheLab
from labkit.network.children import settled, ways_in
from labkit.network.inside import current_host
from labkit.network.patches import LateLayers


def _refused(library: str, where: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap an entrance. `where` says from its arguments whom it would talk to; None for nobody on a network."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def entrance(*arguments: Any, **options: Any) -> Any:
            host = current_host()
            target = None if host is None or settled(host) else where(*arguments, **options)
            if host is None or target is None:
                return original(*arguments, **options)
            raise OutsideTheLab(
                f"{library} opens its own sockets, which `with lab.{host.name}:` does not reach: {target!r} would be "
                f"looked for on this machine's network. Run what uses {library} as a program: {ways_in(host)}"
            )

        return entrance

    return wrap


def _grpc(self: Any, target: Any, *_: Any, **__: Any) -> Any:
    text = target.decode(errors="replace") if isinstance(target, bytes) else str(target)
    return None if text.startswith(("unix:", "unix-abstract:")) else text


def _zmq(self: Any, address: Any, *_: Any, **__: Any) -> Any:
    text = address.decode(errors="replace") if isinstance(address, bytes) else str(address)
    return None if text.startswith(("inproc:", "ipc:")) else text


def _libpq(conninfo: Any = "", *_: Any, **__: Any) -> Any:
    found = sys.modules["psycopg.conninfo"].conninfo_to_dict(conninfo)
    machine = os.environ._data  # type: ignore[attr-defined]
    names = (b"PGHOSTADDR", b"PGHOST", b"PGSERVICE")  # which libpq reads, whatever os.environ shows
    defaults = (os.fsdecode(machine[name]) for name in names if name in machine)
    host = found.get("hostaddr") or found.get("host") or found.get("service") or next(defaults, None)
    return None if not host or str(host).startswith(("/", "@")) else host


def _curl(*_: Any, **__: Any) -> Any:
    return "its URL"


def _uvloop(self: Any, *arguments: Any, **options: Any) -> Any:
    if options.get("sock") is not None:
        return None
    named = [options.get(name) for name in ("host", "port", "remote_addr", "local_addr")]
    return [each for each in (*named, *arguments) if isinstance(each, (str, bytes, int, tuple))]


_LOOP_METHODS = (
    *("create_connection", "create_server", "create_datagram_endpoint", "getaddrinfo", "getnameinfo"),
    *("subprocess_exec", "subprocess_shell"),
)
_GRPC, _ZMQ, _UVLOOP = _refused("grpcio", _grpc), _refused("pyzmq", _zmq), _refused("uvloop", _uvloop)

LATE: LateLayers = {
    "grpc._channel": [("Channel", "__init__", _GRPC)],
    "grpc._server": [("_Server", "add_insecure_port", _GRPC), ("_Server", "add_secure_port", _GRPC)],
    "grpc.aio._channel": [("Channel", "__init__", _GRPC)],
    "grpc.aio._server": [("Server", "add_insecure_port", _GRPC), ("Server", "add_secure_port", _GRPC)],
    "psycopg.generators": [("", "connect", _refused("psycopg (libpq)", _libpq))],
    "pycurl": [("", "Curl", _refused("pycurl", _curl)), ("", "CurlMulti", _refused("pycurl", _curl))],
    "uvloop": [("Loop", name, _UVLOOP) for name in _LOOP_METHODS],
    "zmq.sugar.socket": [("Socket", "connect", _ZMQ), ("Socket", "bind", _ZMQ)],
}
