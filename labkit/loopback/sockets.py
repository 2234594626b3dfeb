"""How Python's sockets become a lab's on 127.0.0.1: addresses are translated, and opening a connection is the relay's.

A socket of a host is an ordinary socket of this machine. It binds to a free port of 127.0.0.1, and the engine remembers
which endpoint of the lab that port stands for. While such a lab is open, the methods of ``socket.socket`` at the end of
this module, and asyncio's ``loop.sock_connect``, look whether the socket is a lab's; else they behave as ever.
``connect`` waits for the lab's round trip also where the socket does not block, because no kernel holds the connection
half open; asyncio does not wait there, but in its loop.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import errno
import os
import socket
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable
from typing import Any

from labkit.loopback.bindings import Address, Bindings, RelayClient
from labkit.loopback.frames import Endpoint
from labkit.loopback.ports import LOOPBACK_ADDRESS, taken
from labkit.network import addresses
from labkit.network.patches import Layer
from labkit.network.sockets import find, unknown

OPEN_TIMEOUT_S = 127.0  # as long as Linux sends SYNs, with net.ipv4.tcp_syn_retries as it is
TCP_FASTOPEN_CONNECT = 30  # linux/tcp.h; the socket module has no name for it
ANY = ("", "0.0.0.0")


class Place:
    """Whose a socket is. It belongs to the descriptor, which outlives the object where TLS wraps it."""

    def __init__(self, bindings: Bindings, number: int, kind: int, inode: int) -> None:
        self._bindings = weakref.ref(bindings)
        self.number, self.kind, self.inode = number, kind, inode
        self.endpoint: Endpoint | None = None  # what it is bound to
        self.address: Address | None = None  # the same as it was given
        self.real_port = 0
        self.peer: Address | None = None

    @property
    def bindings(self) -> Bindings:
        bindings = self._bindings()
        if bindings is None:
            raise OSError(errno.ENETDOWN, "the lab of this socket is closed")
        return bindings

    @property
    def ip(self) -> str:
        return addresses.ipv4(self.number)


_places: dict[int, Place] = {}  # by descriptor


def open_on(bindings: Bindings, number: int, family: int, kind: int, protocol: int) -> int:
    """A new socket of a host, as a bare descriptor. Raises OSError for what a host here does not have."""
    if family != socket.AF_INET:
        raise OSError(errno.EAFNOSUPPORT, f"{os.strerror(errno.EAFNOSUPPORT)}: this tier has IPv4 only")
    base = kind & ~(getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0))
    if base not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        raise OSError(errno.EPERM, f"{os.strerror(errno.EPERM)}: this tier has TCP and UDP only")
    descriptor = _socket.socket(family, kind, protocol).detach()
    _places[descriptor] = Place(bindings, number, base, os.fstat(descriptor).st_ino)
    return descriptor


def place_of(sock: socket.socket) -> Place | None:
    """Whose it is; None where it is no lab's."""
    place = _places.get(sock.fileno())
    # The descriptor may have been closed behind our back and be another socket's by now.
    if place is None or os.fstat(sock.fileno()).st_ino != place.inode:
        return None
    return place


def _resolve(place: Place, address: Any) -> Endpoint | Address:
    """An endpoint of another host, or an address of this machine for what is the host's own."""
    name, port = address[0], address[1]
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    hosts = place.bindings.hosts
    name = find(hosts, name, socket.AF_INET) or name
    if not name.replace(".", "").isdigit() and name not in ANY and name != "localhost":
        raise unknown(hosts, name)
    if name in ANY or name == "localhost" or name.startswith("127.") or name == place.ip:
        return LOOPBACK_ADDRESS, port
    number = addresses.number_of(name)
    if number is None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    if not 1 <= number <= len(hosts):
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    return Endpoint(number, port)


def _own_port(place: Place, port: int) -> int:
    """The real port of what is bound on the same host; 0, which nobody listens on, for none."""
    return place.bindings.real_port(place.kind, Endpoint(place.number, port))


# The methods. Each takes the one that it replaces, and calls that for sockets that are no lab's.


def _bind(original: Callable[..., Any]) -> Callable[..., Any]:
    def bind(self: socket.socket, address: Any) -> None:
        place = place_of(self)
        if place is None:
            original(self, address)
            return
        if isinstance(_resolve(place, address), Endpoint):  # another host's
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        _bind_to(self, place, address[0], address[1])

    return bind


def _bind_to(self: socket.socket, place: Place, name: str, port: int) -> None:
    real_port = _own_port(place, port) if port else 0
    if real_port:
        shared = hasattr(socket, "SO_REUSEPORT") and self.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        reuse = self.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        if not shared and taken(place.kind, real_port, reuse):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if not shared:
            real_port = 0
    _socket.socket.bind(self, (LOOPBACK_ADDRESS, real_port))
    real_port = _socket.socket.getsockname(self)[1]
    place.real_port = real_port
    place.endpoint = Endpoint(place.number, port or real_port)
    place.address = "0.0.0.0" if name in ANY else name if name.startswith("127.") else place.ip, place.endpoint.port
    seen = place.ip if name in ANY else place.address[0], place.endpoint.port
    place.bindings.bind(place.kind, place.endpoint, real_port, seen)


def _listen(original: Callable[..., Any]) -> Callable[..., Any]:
    def listen(self: socket.socket, *backlog: int) -> None:
        place = place_of(self)
        if place is not None and place.endpoint is None:
            _bind_to(self, place, "", 0)
        original(self, *backlog)
        if place is not None and place.endpoint is not None:
            place.bindings.listen(place.endpoint, place.real_port)

    return listen


def _connect(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> None:
        place = place_of(self)
        if place is None:
            original(self, address)
            return
        opening = _begin(self, place, address)
        if opening is None:
            return
        timeout_s = self.gettimeout()
        with contextlib.closing(opening):
            opening.settimeout(min(timeout_s or OPEN_TIMEOUT_S, OPEN_TIMEOUT_S))
            try:
                RelayClient.answer(opening)
            except TimeoutError:
                if timeout_s:
                    raise
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None

    return connect


def _connect_ex(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect_ex(self: socket.socket, address: Any) -> int:
        if place_of(self) is None:
            return original(self, address)  # type: ignore[no-any-return]
        try:
            self.connect(address)
        except OSError as exc:
            return exc.errno or errno.EAGAIN
        return 0

    return connect_ex


def _sock_connect(original: Callable[..., Any]) -> Callable[..., Any]:
    async def sock_connect(self: Any, sock: socket.socket, address: Any) -> None:
        place = place_of(sock) if isinstance(sock, socket.socket) else None
        if place is None:
            await original(self, sock, address)
            return
        opening = _begin(sock, place, address)
        if opening is None:
            return
        answered = self.create_future()
        opening.setblocking(False)
        self.add_reader(opening.fileno(), lambda: answered.done() or answered.set_result(None))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await answered
            opening.settimeout(1)  # it is there: a line of some ten bytes
            RelayClient.answer(opening)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        finally:
            self.remove_reader(opening.fileno())
            opening.close()

    return sock_connect


def _begin(self: socket.socket, place: Place, address: Any) -> Any:
    """Connect a datagram socket, or what is on the same host: None. Else the connection that tells the outcome."""
    target = _resolve(place, address)
    bindings = place.bindings
    if place.kind == socket.SOCK_DGRAM:
        if place.endpoint is None:
            _bind_to(self, place, "", 0)
        port = bindings.mouth(target) if isinstance(target, Endpoint) else _own_port(place, target[1])
        _socket.socket.connect(self, (LOOPBACK_ADDRESS, port))
    elif isinstance(target, Endpoint):
        _connect_to(self, bindings.stream_port)
    else:
        _connect_to(self, _own_port(place, target[1]) or 1)
    if place.endpoint is None:
        place.real_port = _socket.socket.getsockname(self)[1]
        place.endpoint = Endpoint(place.number, place.real_port)
        bindings.know(place.kind, place.real_port, (place.ip, place.real_port))
    place.address = place.ip, place.endpoint.port
    place.peer = (addresses.ipv4(target.number) if isinstance(target, Endpoint) else str(address[0])), address[1]
    if place.kind == socket.SOCK_DGRAM or not isinstance(target, Endpoint):
        return None
    return bindings.open(place.endpoint, target, place.real_port)


def _connect_to(self: socket.socket, port: int) -> None:
    """To a listener of this machine, which takes no time."""
    timeout_s = self.gettimeout()
    self.settimeout(5)
    try:
        _socket.socket.connect(self, (LOOPBACK_ADDRESS, port))
    finally:
        self.settimeout(timeout_s)


def _accept(original: Callable[..., Any]) -> Callable[..., Any]:
    def accept(self: socket.socket) -> tuple[socket.socket, Any]:
        connection, address = original(self)
        place = place_of(self)
        if place is None:
            return connection, address
        try:
            child = Place(place.bindings, place.number, place.kind, os.fstat(connection.fileno()).st_ino)
            child.endpoint, child.real_port = place.endpoint, 0  # the listener's port, which is not its own to close
            child.address = place.ip, place.endpoint.port if place.endpoint else 0
            child.peer = place.bindings.peer(place.kind, address)
        except BaseException:
            connection.close()
            raise
        _places[connection.fileno()] = child
        return connection, child.peer

    return accept


def _getsockname(original: Callable[..., Any]) -> Callable[..., Any]:
    def getsockname(self: socket.socket) -> Any:
        place = place_of(self)
        if place is None:
            return original(self)
        return place.address or ("0.0.0.0", 0)

    return getsockname


def _getpeername(original: Callable[..., Any]) -> Callable[..., Any]:
    def getpeername(self: socket.socket) -> Any:
        real = original(self)  # ENOTCONN is the kernel's to say
        place = place_of(self)
        return real if place is None else place.peer or real

    return getpeername


def _sendto(original: Callable[..., Any]) -> Callable[..., Any]:
    def sendto(self: socket.socket, data: Any, *args: Any) -> int:
        place = place_of(self)
        if place is None or place.kind != socket.SOCK_DGRAM:
            return original(self, data, *args)  # type: ignore[no-any-return]
        address = _datagram_address(self, place, args[-1])
        return _socket.socket.sendto(self, data, *args[:-1], address)  # type: ignore[no-any-return, call-overload]

    return sendto


def _sendmsg(original: Callable[..., Any]) -> Callable[..., Any]:
    def sendmsg(self: socket.socket, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        place = place_of(self)
        if place is None or address is None or place.kind != socket.SOCK_DGRAM:
            return original(self, buffers, ancdata, flags, *([] if address is None else [address]))  # type: ignore[no-any-return]
        return _socket.socket.sendmsg(self, buffers, ancdata, flags, _datagram_address(self, place, address))

    return sendmsg


def _datagram_address(self: socket.socket, place: Place, address: Any) -> Address:
    if place.endpoint is None:
        _bind_to(self, place, "", 0)
    target = _resolve(place, address)
    if isinstance(target, Endpoint):
        return LOOPBACK_ADDRESS, place.bindings.mouth(target)
    return LOOPBACK_ADDRESS, _own_port(place, target[1]) or 1


def _with_source(position: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a method of a socket that returns where a datagram came from."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: socket.socket, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            place = place_of(self)
            if place is None or place.kind != socket.SOCK_DGRAM:
                return result
            changed = list(result)
            changed[position] = place.bindings.source(place.kind, result[position])
            return tuple(changed)

        return method

    return wrap


def _setsockopt(original: Callable[..., Any]) -> Callable[..., Any]:
    def setsockopt(self: socket.socket, level: int, option: int, *value: Any) -> None:
        fast_open = (getattr(socket, "TCP_FASTOPEN", 23), TCP_FASTOPEN_CONNECT)
        if level == socket.IPPROTO_TCP and option in fast_open and place_of(self) is not None:
            words = "no Fast Open on the tier 'loopback', where the relay has no SYN that could carry data"
            raise OSError(errno.ENOPROTOOPT, f"{os.strerror(errno.ENOPROTOOPT)}: {words}")
        original(self, level, option, *value)

    return setsockopt


def _real_close(original: Callable[..., Any]) -> Callable[..., Any]:
    def _real_close(self: socket.socket, *args: Any, **kwargs: Any) -> None:
        place = place_of(self) if self.fileno() >= 0 else None
        if place is not None:
            del _places[self.fileno()]
        original(self, *args, **kwargs)
        if place is not None and place.endpoint is not None and place.real_port:
            _forget(place)

    return _real_close


def _forget(place: Place) -> None:
    """Its endpoint is free. Its lab may have gone before it."""
    bindings = place._bindings()
    assert place.endpoint is not None
    # With SO_REUSEPORT another listener may share the port, and goes on.
    shared = place.kind == socket.SOCK_STREAM and taken(place.kind, place.real_port, reuse=1)
    if bindings is not None and not shared:
        bindings.unbind(place.kind, place.endpoint, place.real_port)


# While a lab of this tier is open, above what every lab replaces.
LAYER: Layer = (
    (socket.socket, "bind", _bind),
    (socket.socket, "listen", _listen),
    (socket.socket, "connect", _connect),
    (socket.socket, "connect_ex", _connect_ex),
    (socket.socket, "accept", _accept),
    (socket.socket, "getsockname", _getsockname),
    (socket.socket, "getpeername", _getpeername),
    (socket.socket, "sendto", _sendto),
    (socket.socket, "sendmsg", _sendmsg),
    (socket.socket, "recvfrom", _with_source(1)),
    (socket.socket, "recvfrom_into", _with_source(1)),
    (socket.socket, "recvmsg", _with_source(3)),
    (socket.socket, "setsockopt", _setsockopt),
    (socket.socket, "_real_close", _real_close),
    (BaseSelectorEventLoop, "sock_connect", _sock_connect),
)
