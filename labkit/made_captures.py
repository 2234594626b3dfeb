"""Captures that no network made, of any length: what ``labkit bench`` measures the naming of packets with."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from labkit.capture.frames import Transit

CLIENT, SERVER = "client", "server"
_ADDRESSES = {CLIENT: bytes([192, 0, 2, 1]), SERVER: bytes([192, 0, 2, 2])}
_PORTS = {CLIENT: 40000, SERVER: 80}
_SYN, _SYN_ACK, _PSH_ACK = 0x02, 0x12, 0x18
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def download(segments: int) -> list[Transit]:
    """A response of HTTP/1.1 in so many full segments, beside the handshake and the request."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (segments * 1448)
    said = [(CLIENT, b"GET / HTTP/1.1\r\nHost: server.lab\r\n\r\n"), (SERVER, head)]
    return list(_connection([*said, *((SERVER, bytes(1448)) for _ in range(segments))]))


def http2(requests: int) -> list[Transit]:
    """So many requests of HTTP/2 on one connection, one after the other, each with a response of two frames."""
    from hpack import Encoder
    from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

    asks, answers = Encoder(), Encoder()
    settings = SettingsFrame(0).serialize()
    said = [(CLIENT, _PREFACE + settings), (SERVER, settings)]
    for number in range(requests):
        stream = 1 + 2 * number
        ask = [(":method", "GET"), (":path", f"/item/{number}"), (":scheme", "http"), (":authority", "server.lab")]
        request = HeadersFrame(stream, asks.encode(ask), flags=["END_STREAM", "END_HEADERS"])
        answer = answers.encode([(":status", "200"), ("content-type", "text/plain"), ("content-length", "5")])
        response = (
            HeadersFrame(stream, answer, flags=["END_HEADERS"]),
            DataFrame(stream, b"hello", flags=["END_STREAM"]),
        )
        said += [(CLIENT, request.serialize()), (SERVER, b"".join(frame.serialize() for frame in response))]
    return list(_connection(said))


def _connection(said: Iterable[tuple[str, bytes]]) -> Iterator[Transit]:
    """A TCP connection in Ethernet frames, 100 µs apart, each 1 ms on its way; acknowledgments are left out."""
    sequence = {CLIENT: 1000, SERVER: 5000}
    opening = [(CLIENT, _SYN, b""), (SERVER, _SYN_ACK, b"")]
    for number, (sender, flags, data) in enumerate([*opening, *((sender, _PSH_ACK, data) for sender, data in said)]):
        receiver = SERVER if sender == CLIENT else CLIENT
        ports = _PORTS[sender], _PORTS[receiver]
        tcp = struct.pack("!HHIIBBHHH", *ports, sequence[sender], sequence[receiver], 0x50, flags, 65535, 0, 0)
        lengths = 0x45, 0, 40 + len(data), 1, 0x4000, 64, 6, 0
        ip = struct.pack("!BBHHHBBH4s4s", *lengths, _ADDRESSES[sender], _ADDRESSES[receiver])
        macs = bytes([2, 0, 0, 0, 0, _ADDRESSES[receiver][3], 2, 0, 0, 0, 0, _ADDRESSES[sender][3]])
        sent_ns = number * 100_000
        yield Transit(sent_ns, sent_ns + 1_000_000, sender, receiver, macs + b"\x08\0" + ip + tcp + data)
        sequence[sender] += len(data) or 1  # SYN counts as a byte
