"""What a kernel knows of one TCP connection: struct tcp_info, read from a socket or from an answer of sock_diag.

Standard library only. Sources: linux/tcp.h, tcp(7), RFC 9293 (retransmission), 5681 (congestion), 6298 (RTO).
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from labkit.errors import NotAvailableHere

TCP_INFO = getattr(socket, "TCP_INFO", 11)  # linux/tcp.h; other systems have another one, or none
INFINITE = 0x7FFF_FFFF  # what the kernel has for a threshold that no loss has set yet
CA_STATES = ("Open", "Disorder", "CWR", "Recovery", "Loss")


class TcpInfo(NamedTuple):
    """One connection at one moment. What an older kernel does not tell is 0.

    Attributes:
        ca_state: state of congestion control, an index of CA_STATES: all is well (0), duplicate acknowledgments came
            (1), the window is reduced (2), lost segments are repeated (3), the retransmission timer ran out (4).
        cwnd: congestion window, segments.
        ssthresh: slow start ends at it, segments; 0 as long as no loss has set it.
        in_flight: segments that the kernel takes to be on their way.
        lost: segments that it takes to be lost.
        retransmissions: segments that were sent again so far.
        rtt_us, rttvar_us: smoothed round-trip time and its variation, microseconds.
        min_rtt_us: the least round-trip time that was seen, microseconds.
        rto_us: the retransmission timer, microseconds.
        mss: longest segment that it sends, bytes.
        path_mtu: longest packet on the way there, as far as is known, bytes.
        unsent: bytes that were written and not sent yet.
        send_window: the peer's receive window, bytes.
        bytes_acked: bytes that were acknowledged so far.
        pacing_rate, delivery_rate: at which it sends, and at which data arrived lately, bytes per second.
        busy_us: how long there was something to send, microseconds.
        rwnd_limited_us, sndbuf_limited_us: for how long of it the peer's window, or the send buffer, was the limit.
    """

    ca_state: int
    cwnd: int
    ssthresh: int
    in_flight: int
    lost: int
    retransmissions: int
    rtt_us: int
    rttvar_us: int
    min_rtt_us: int
    rto_us: int
    mss: int
    path_mtu: int
    unsent: int
    send_window: int
    bytes_acked: int
    pacing_rate: int
    delivery_rate: int
    busy_us: int
    rwnd_limited_us: int
    sndbuf_limited_us: int


def parse(info: bytes) -> TcpInfo:
    """What struct tcp_info says. An older kernel's is shorter."""

    def number(at: int, form: str = "=I") -> int:
        return int(struct.unpack_from(form, info, at)[0]) if len(info) >= at + struct.calcsize(form) else 0

    unacknowledged, selectively, lost, repeated = (number(at) for at in (24, 28, 32, 36))
    ssthresh, min_rtt = number(76), number(148)
    return TcpInfo(
        ca_state=number(1, "=B"),
        cwnd=number(80),
        ssthresh=0 if ssthresh >= INFINITE else ssthresh,
        in_flight=max(0, unacknowledged - selectively - lost + repeated),  # as tcp_packets_in_flight() in net/tcp.h
        lost=lost,
        retransmissions=number(100),
        rtt_us=number(68),
        rttvar_us=number(72),
        min_rtt_us=0 if min_rtt == 2**32 - 1 else min_rtt,
        rto_us=number(8),
        mss=number(16),
        path_mtu=number(60),
        unsent=number(144),
        send_window=number(228),
        bytes_acked=number(120, "=Q"),
        pacing_rate=number(104, "=Q"),
        delivery_rate=number(160, "=Q"),
        busy_us=number(168, "=Q"),
        rwnd_limited_us=number(176, "=Q"),
        sndbuf_limited_us=number(184, "=Q"),
    )


def tcp_info(sock: socket.socket) -> TcpInfo:
    """What the kernel knows of a TCP socket's connection, now.

    On the tier "loopback" that is a connection to the relay, which is not the path.

    Raises:
        NotAvailableHere: this system has no such option. OSError: the kernel's own: the socket is none of TCP.
    """
    if not hasattr(socket, "TCP_INFO"):
        raise NotAvailableHere("TCP_INFO is an option of Linux: take a lab on Linux, `labkit doctor` says how")
    return parse(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256))
