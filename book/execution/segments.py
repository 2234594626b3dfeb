"""What the TCP headers of one connection prove: sequence numbers, copies, acknowledgments."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.capture.headers import TcpHeader
from labkit.capture.messages import Dissected


def headers(packets: Sequence[Dissected], *, from_client: bool, payload: bool = False) -> list[TcpHeader]:
    """The TCP headers that one side sent, in order.

    Args:
        packets: of one connection.
        from_client: which side.
        payload: only those of packets that carry bytes.
    """
    sent = [packet for packet in packets if packet.from_client == from_client and (packet.payload or not payload)]
    found = [packet.headers.tcp for packet in sent]
    return [header for header in found if header is not None]


def stream(packets: Sequence[Dissected]) -> bytes:
    """The client's bytes of a connection, copies left out."""
    sent: dict[int, bytes] = {}
    for packet in packets:
        if packet.from_client and packet.payload and packet.headers.tcp is not None:
            sent[packet.headers.tcp.seq] = packet.headers.payload
    return b"".join(sent[seq] for seq in sorted(sent))


def acknowledged(packets: Sequence[Dissected]) -> bool:
    """Whether the client's kernel was told that all of the client's bytes have arrived.

    Args:
        packets: of one connection, from its SYN on.
    """
    arrived = [packet for packet in packets if not packet.lost]
    end = headers(packets, from_client=True)[0].seq + 1 + len(stream(packets))
    # Not more than the FIN, one number further.
    return any((header.ack - end) % 2**32 < 2 for header in headers(arrived, from_client=False))
