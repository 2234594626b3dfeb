"""What the kernel says of a host's TCP sockets: messages of sock_diag, built and read. No I/O, standard library only.

Sources: sock_diag(7), linux/inet_diag.h, linux/tcp.h (struct tcp_info).

The question is inet_diag's first one (TCPDIAG_GETSOCK), not the newer SOCK_DIAG_BY_FAMILY: that asks for one family, so
that IPv4 and IPv6 take two walks through the kernel's table of connections; this is answered with both in one walk
(inet_diag_dump_compat() of net/ipv4/inet_diag.c). A listener on ``::`` that takes IPv4 clients, too, is an IPv6 socket,
and so are the connections that it accepts.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
TCPDIAG_GETSOCK = 18
NLM_F_REQUEST, NLM_F_DUMP = 0x001, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2
RECEIVE_BYTES = 1 << 18
# States of a socket, as linux/net/tcp_states.h numbers them.
ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, LISTEN = 1, 3, 4, 5, 8, 9, 10
LISTENERS = 1 << LISTEN | 1 << SYN_RECV
# Those that may hold bytes: also when one side has said that it is done.
CONNECTIONS = 1 << ESTABLISHED | 1 << FIN_WAIT1 | 1 << FIN_WAIT2 | 1 << CLOSE_WAIT | 1 << LAST_ACK

_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr
# struct inet_diag_req: family, lengths of addresses, extensions, struct inet_diag_sockid, states, 0.
_REQUEST = struct.Struct("=BBBBHH16s16sIIIII")
# struct inet_diag_msg, the ports in network order: family, state, timer, retransmissions, then struct inet_diag_sockid.
_ENTRY = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address begins with as an IPv6 one
_RTT, _CWND, _UNSENT, _SEND_WINDOW = 68, 80, 144, 228  # where they stand in struct tcp_info


class Entry(NamedTuple):
    """One socket.

    Attributes:
        state: as numbered above.
        local, peer: addresses and ports, "192.0.2.1:40000", "[2001:db8::1]:40000". An IPv4 client of an IPv6 socket has
            its IPv4 address, not the one that IPv6 maps it to (RFC 4291, 2.5.5.2).
        receive_queue: of a listener the connections that wait for accept(2), else bytes that wait to be read.
        send_queue: of a listener its backlog, else bytes that wait to be sent or acknowledged.
        inode: ``os.fstat(sock.fileno()).st_ino`` of the socket; 0 before it is accepted.
        info: struct tcp_info, b"" where it was not asked for.
    """

    state: int
    local: str
    peer: str
    receive_queue: int
    send_queue: int
    inode: int
    info: bytes

    def _number(self, at: int) -> int:
        return int(struct.unpack_from("=I", self.info, at)[0]) if len(self.info) >= at + 4 else 0

    @property
    def rtt_us(self) -> int:
        """The smoothed round-trip time that the kernel computes with, microseconds."""
        return self._number(_RTT)

    @property
    def cwnd(self) -> int:
        """Congestion window, segments."""
        return self._number(_CWND)

    @property
    def unsent(self) -> int:
        """Bytes of the send queue that have not been sent yet."""
        return self._number(_UNSENT)

    @property
    def send_window(self) -> int:
        """The peer's receive window, as it last said, bytes. 0 on kernels before 5.4."""
        return self._number(_SEND_WINDOW)


def request(*, states: int, port: int = 0, info: bool = False) -> bytes:
    """A dump of a host's TCP sockets, those of IPv4 and of IPv6.

    Args:
        states: those that are wanted, a bit for each: ``1 << LISTEN | 1 << SYN_RECV``.
        port: only those with this port of their own; 0 for any.
        info: with struct tcp_info.
    """
    extensions = 1 << (INET_DIAG_INFO - 1) if info else 0
    no_cookie = 2**32 - 1
    body = _REQUEST.pack(
        *(socket.AF_UNSPEC, 0, 0, extensions),
        *(socket.htons(port), 0, bytes(16), bytes(16), 0, no_cookie, no_cookie),
        *(states, 0),
    )
    header = _MESSAGE.pack(_MESSAGE.size + len(body), TCPDIAG_GETSOCK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    return header + body


def ask(netlink: socket.socket, question: bytes) -> Iterator[Entry]:
    """The sockets that a question is about.

    Args:
        netlink: an AF_NETLINK socket of the host, of protocol NETLINK_SOCK_DIAG.
        question: from ``request``.

    Raises:
        OSError: the kernel refused; the number is its own.
    """
    netlink.send(question)
    while True:
        for entry in entries(netlink.recv(RECEIVE_BYTES)):
            if entry is None:
                return
            yield entry


def entries(data: bytes) -> Iterator[Entry | None]:
    """The sockets in one datagram of an answer; None at the answer's end. Raises as ``ask``."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, _, _ = _MESSAGE.unpack_from(data, at)
        if kind == NLMSG_DONE:
            yield None
            return
        body = data[at + _MESSAGE.size : at + length]
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", body)[0]
            raise OSError(number, f"sock_diag: {os.strerror(number)}")
        yield _entry(body)
        at += (length + 3) & ~3


def _entry(body: bytes) -> Entry:
    family, state, _, _, port, peer_port, local, peer, _, _, _, _, receive, send, _, inode = _ENTRY.unpack_from(body)
    info, at = b"", _ENTRY.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == INET_DIAG_INFO:
            info = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return Entry(state, _name(family, local, port), _name(family, peer, peer_port), receive, send, inode, info)


def _name(family: int, address: bytes, port: bytes) -> str:
    """Address and port, in brackets where the address has colons of its own (RFC 3986, 3.2.2)."""
    number = int.from_bytes(port, "big")
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(family, address[:4])}:{number}"
    if address.startswith(_MAPPED):
        return f"{socket.inet_ntop(socket.AF_INET, address[12:])}:{number}"
    return f"[{socket.inet_ntop(family, address)}]:{number}"
