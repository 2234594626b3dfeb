"""Inside ``with host:`` Python's new sockets come from that host. This module is how.

While a lab is open, these functions of the standard library look first which block they are in (labkit.network.inside);
when the last lab closes, the originals are put back:

- ``socket.socket(...)`` asks the lab for a descriptor of that host (AF_INET, AF_INET6, AF_PACKET, AF_NETLINK);
- ``socket.getaddrinfo``, ``gethostbyname``, ``gethostbyaddr``, ``getnameinfo`` and a socket's ``bind``, ``connect``,
  ``connect_ex``, ``sendto`` and ``sendmsg`` know ``server.lab`` and ``server``, and ask no name server;
- ``threading.Thread.start`` and ``ThreadPoolExecutor.submit`` carry the host over to the new thread, as tasks do
  by themselves.

Outside a block they behave as ever. Processes that are started in a block are the affair of labkit.network.children,
libraries with sockets of their own in C (grpcio, libpq) that of labkit.network.libraries.

scapy looks at interfaces and routes once, when it is imported, so in a block it needs ``conf.ifaces.reload()`` and
``conf.route.resync()``; and, as a lab has no ARP to ask, ``conf.L3socket = L3RawSocket`` for ``send`` and ``sr1``,
which leaves routing to the host's kernel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from labkit.network import patches
from labkit.network.engine import Named, OnHost
from labkit.network.inside import being, current_host, entered

HOST_NOT_FOUND = 1  # netdb.h
FAMILIES = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_PACKET", -2), getattr(socket, "AF_NETLINK", -3)}


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


def _gethostbyname_ex(original: Callable[[str], Any]) -> Callable[[str], Any]:
    def gethostbyname_ex(hostname: str) -> Any:
        here = current_host()
        known = None if here is None else _host_of(here, hostname)
        if known is not None:
            return known.fqdn, [known.name], [known.ip]
        return original(_lab_address(hostname, socket.AF_INET) or hostname)

    return gethostbyname_ex


def _gethostbyaddr(original: Callable[[str], Any]) -> Callable[[str], Any]:
    def gethostbyaddr(ip_address: str) -> tuple[str, list[str], list[str]]:
        here = current_host()
        if here is None:
            return original(ip_address)  # type: ignore[no-any-return]
        host = _host_of(here, ip_address)
        if host is not None:
            return host.fqdn, [host.name], [host.ip]
        if ip_address in ("localhost", "127.0.0.1", "::1"):
            return "localhost", [], ["::1" if ip_address == "::1" else "127.0.0.1"]
        raise socket.herror(HOST_NOT_FOUND, f"{ip_address!r} is no host of this lab")

    return gethostbyaddr


def _getnameinfo(original: Callable[..., Any]) -> Callable[..., Any]:
    def getnameinfo(sockaddr: Any, flags: int) -> tuple[str, str]:
        here = current_host()
        if here is None or flags & socket.NI_NUMERICHOST:
            return original(sockaddr, flags)  # type: ignore[no-any-return]
        number, service = original(sockaddr, (flags | socket.NI_NUMERICHOST) & ~socket.NI_NAMEREQD)
        host = _host_of(here, number)
        if host is None and flags & socket.NI_NAMEREQD:
            raise socket.gaierror(socket.EAI_NONAME, f"{number!r} is no host of this lab")
        return host.fqdn if host else number, service

    return getnameinfo


def _gethostname(original: Callable[[], str]) -> Callable[[], str]:
    def gethostname() -> str:
        host = current_host()
        return host.name if host else original()

    return gethostname


def _host_of(here: OnHost, text: str) -> OnHost | None:
    """The lab's host of a name or an address."""
    for host in here.lab.hosts.values():
        if text and text in (host.ip, host.ip6, host.fqdn, host.name):
            return host
    return None


def _lab_address(name: Any, family: int) -> str | None:
    """A lab host's address; None for what needs no name server, such as an address.

    Raises gaierror for every other name: a question to the machine's name server would leave the lab.
    """
    here = current_host()
    if here is None or not name or not isinstance(name, (str, bytes)):
        return None
    address = find(here.lab.hosts, name, family)
    if address is not None or _needs_no_server(name if isinstance(name, str) else name.decode("ascii", "replace")):
        return address
    if name in (os.uname().nodename, os.uname().nodename.encode()):  # the machine is the host now
        return find(here.lab.hosts, here.name, family)
    raise unknown(here.lab.hosts, name)


def _needs_no_server(name: str) -> bool:
    if name in ("localhost", "<broadcast>"):
        return True
    with contextlib.suppress(OSError):
        return bool(socket.inet_aton(name))  # 127.1, too
    with contextlib.suppress(OSError, ValueError):
        return bool(socket.inet_pton(socket.AF_INET6, name.partition("%")[0]))
    return False


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
            address = args[position] if -len(args) <= position < len(args) else None
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
        blocks, run = entered.get(), self.run
        if blocks:

            def run_on_host() -> None:
                del self.run
                entered.set(blocks)
                run()

            self.run = run_on_host  # type: ignore[method-assign]
        original(self)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # A pool's thread serves many callers: each call brings its own host, the thread itself has none.
        blocks = entered.get()
        if not blocks:
            return original(self, fn, *args, **kwargs)
        with being(()):
            return original(self, _call_on, blocks, fn, *args, **kwargs)

    return submit


def _call_on(blocks: tuple[OnHost, ...], fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with being(blocks):
        return fn(*args, **kwargs)


LAYER: patches.Layer = (
    (socket.socket, "__init__", _socket_init),
    (socket.socket, "bind", _with_address(0)),
    (socket.socket, "connect", _with_address(0)),
    (socket.socket, "connect_ex", _with_address(0)),
    (socket.socket, "sendto", _with_address(-1)),
    (socket.socket, "sendmsg", _with_address(3)),
    (socket, "getaddrinfo", _getaddrinfo),
    (socket, "gethostbyname", _gethostbyname),
    (socket, "gethostbyname_ex", _gethostbyname_ex),
    (socket, "gethostbyaddr", _gethostbyaddr),
    (socket, "getnameinfo", _getnameinfo),
    (socket, "gethostname", _gethostname),
    (threading.Thread, "start", _thread_start),
    (ThreadPoolExecutor, "submit", _submit),
)

patches.reserve(LAYER)
