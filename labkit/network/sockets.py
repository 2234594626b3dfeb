"""Inside ``with host:`` Python's new sockets come from that host. This module is how.

A context variable names the host, so each thread and each task has its own, and blocks nest. While a lab is open,
these functions of the standard library look at that variable first; when the last lab closes, the originals are
put back:

- ``socket.socket(...)`` asks the lab for a descriptor of that host (AF_INET, AF_INET6, AF_PACKET, AF_NETLINK);
- ``socket.getaddrinfo``, ``gethostbyname``, ``gethostbyaddr`` and a socket's ``bind``, ``connect``, ``connect_ex`` and
  ``sendto`` know ``server.lab`` and ``server``;
- ``threading.Thread.start`` and ``ThreadPoolExecutor.submit`` carry the host over to the new thread, as tasks do
  by themselves.

Outside a block they behave as ever. Libraries with sockets of their own in C (grpcio, libpq, uvloop) are not
reached: run them as programs on a host. scapy looks at interfaces and routes once, when it is imported, so in a
block it needs ``conf.ifaces.reload()`` and ``conf.route.resync()``; and, as a lab has no ARP to ask,
``conf.L3socket = L3RawSocket`` for ``send`` and ``sr1``, which leaves routing to the host's kernel.
"""

from __future__ import annotations

import contextvars
import functools
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from labkit.network.engine import Named, OnHost

FAMILIES = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_PACKET", -2), getattr(socket, "AF_NETLINK", -3)}

# The hosts of the blocks this context is in, innermost last.
_blocks: contextvars.ContextVar[tuple[OnHost, ...]] = contextvars.ContextVar("labkit_blocks", default=())

# What is replaced while a lab is open: owner, name, what wraps the function that was there.
Layer = tuple[tuple[Any, str, Callable[[Any], Any]], ...]

_lock = threading.RLock()  # the collector may end a forgotten lab in the middle of opening another
_labs_open: dict[Layer, int] = {}  # by what they need replaced, the lowest layer first
_originals: dict[tuple[Any, str], tuple[Any, Any]] = {}  # what the owner itself had (None: inherited), what it did


def current_host() -> OnHost | None:
    """The host of the innermost ``with host:`` block that this thread or task is in."""
    blocks = _blocks.get()
    return blocks[-1] if blocks else None


def enter(host: OnHost) -> None:
    _blocks.set((*_blocks.get(), host))


def leave() -> None:
    _blocks.set(_blocks.get()[:-1])


def install(layer: Layer | None = None) -> None:
    """Count one lab more that needs a layer, by default this module's; with the first one, put it in place."""
    _count(layer or LAYER, 1)


def uninstall(layer: Layer | None = None) -> None:
    """Count one lab less; with the last one, put back what was there."""
    _count(layer or LAYER, -1)


def _count(layer: Layer, change: int) -> None:
    with _lock:
        _labs_open.setdefault(LAYER, 0)  # always the lowest
        before = _labs_open.get(layer, 0)
        _labs_open[layer] = before + change
        if bool(before) == bool(before + change):
            return
        wraps: dict[tuple[Any, str], list[Callable[[Any], Any]]] = {key: [] for key in _originals}
        for each, labs in _labs_open.items():
            for owner, name, wrap in each if labs else ():
                wraps.setdefault((owner, name), []).append(wrap)
        for (owner, name), wanted in wraps.items():
            own, function = _originals.setdefault((owner, name), (vars(owner).get(name), getattr(owner, name)))
            for wrap in wanted:
                function = functools.wraps(function)(wrap(function))
            if wanted:
                setattr(owner, name, function)
                continue
            del _originals[owner, name]
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _socket_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(
        self: socket.socket, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        host = current_host()
        wanted = socket.AF_INET if family == -1 else family
        if host is None or fileno is not None or wanted not in FAMILIES:
            original(self, family, type, proto, fileno)
            return
        kind = socket.SOCK_STREAM if type == -1 else type
        protocol = 0 if proto == -1 else proto
        descriptor = host.open_descriptor(wanted, kind, protocol)
        original(self, wanted, kind, protocol, descriptor)

    return __init__


def _getaddrinfo(original: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(
        host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        address = _lab_address(host, family)
        return original(host if address is None else address, port, family, type, proto, flags)  # type: ignore[no-any-return]

    return getaddrinfo


def _gethostbyname(original: Callable[[str], str]) -> Callable[[str], str]:
    def gethostbyname(hostname: str) -> str:
        return _lab_address(hostname, socket.AF_INET) or original(hostname)

    return gethostbyname


def _gethostbyaddr(original: Callable[[str], Any]) -> Callable[[str], Any]:
    def gethostbyaddr(ip_address: str) -> tuple[str, list[str], list[str]]:
        here = current_host()
        for host in here.lab.hosts.values() if here else ():
            if ip_address in (host.ip, host.ip6, host.fqdn, host.name):
                return host.fqdn, [host.name], [host.ip]
        return original(ip_address)  # type: ignore[no-any-return]

    return gethostbyaddr


def _lab_address(name: Any, family: int) -> str | None:
    """A lab host's address, None for what is not a lab's name. Raises gaierror for a host this lab does not have."""
    here = current_host()
    if here is None or not isinstance(name, (str, bytes)):
        return None
    return find(here.lab.hosts, name, family)


def find(hosts: Mapping[str, Named], name: str | bytes, family: int) -> str | None:
    """The address of "server.lab" or "server"; None for what is no lab's name. Raises gaierror for a host not there."""
    text = (name if isinstance(name, str) else name.decode("ascii", "replace")).rstrip(".").lower()
    host = hosts.get(text.removesuffix(".lab"))
    if host is not None:
        if family == socket.AF_INET6 and not host.ip6:
            raise socket.gaierror(socket.EAI_NONAME, f"{name!r} has no IPv6 address: this kernel has no IPv6")
        return host.ip6 if family == socket.AF_INET6 else host.ip
    if text.endswith(".lab"):
        raise unknown(hosts, name)
    return None


def unknown(hosts: Mapping[str, object], name: str | bytes) -> socket.gaierror:
    """The error for a name that no host has."""
    known = ", ".join(f"{host}.lab" for host in hosts)
    return socket.gaierror(socket.EAI_NONAME, f"{name!r} is no host of this lab, which has {known}")


def _with_address(position: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a method of a socket whose address stands at `position`, counted from the end if negative."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: socket.socket, *args: Any) -> Any:
            address = args[position] if args else None
            # Only of the internet families: a packet socket's address names an interface.
            if isinstance(address, tuple) and address and self.family in (socket.AF_INET, socket.AF_INET6):
                changed = list(args)
                changed[position] = (_lab_address(address[0], self.family) or address[0], *address[1:])
                args = tuple(changed)
            return original(self, *args)

        return method

    return wrap


def _thread_start(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def start(self: threading.Thread) -> None:
        blocks, run = _blocks.get(), self.run
        if blocks:

            def run_on_host() -> None:
                del self.run
                _blocks.set(blocks)
                run()

            self.run = run_on_host  # type: ignore[method-assign]
        original(self)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # A pool's thread serves many callers: each call brings its own host, the thread itself has none.
        blocks = _blocks.get()
        if not blocks:
            return original(self, fn, *args, **kwargs)
        token = _blocks.set(())
        try:
            return original(self, _call_on, blocks, fn, *args, **kwargs)
        finally:
            _blocks.reset(token)

    return submit


def _call_on(blocks: tuple[OnHost, ...], fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = _blocks.set(blocks)
    try:
        return fn(*args, **kwargs)
    finally:
        _blocks.reset(token)


LAYER: Layer = (
    (socket.socket, "__init__", _socket_init),
    (socket.socket, "bind", _with_address(0)),
    (socket.socket, "connect", _with_address(0)),
    (socket.socket, "connect_ex", _with_address(0)),
    (socket.socket, "sendto", _with_address(-1)),
    (socket, "getaddrinfo", _getaddrinfo),
    (socket, "gethostbyname", _gethostbyname),
    (socket, "gethostbyaddr", _gethostbyaddr),
    (threading.Thread, "start", _thread_start),
    (ThreadPoolExecutor, "submit", _submit),
)
