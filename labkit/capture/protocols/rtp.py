"""RTP and RTCP without DTLS. Their headers are hardly any: two packets of one source, in order, prove it."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Found
from labkit.capture.protocol import Certainty, Datagram, DatagramProtocol
from labkit.capture.protocols._rtp import is_rtcp, is_rtp, read_rtp, sequence, source

_NEAR = 100  # how far two packets of one source may be apart


class Rtp(DatagramProtocol):
    @classmethod
    def recognise(cls, datagram: Datagram) -> Certainty:
        return Certainty.MAYBE if is_rtp(datagram.data) else Certainty.NO

    def read(self, datagrams: Sequence[Datagram], secrets: KeyLog) -> list[list[Found] | None]:
        last: dict[tuple[bool, int], int] = {}
        proven = False
        for datagram in datagrams:
            data = datagram.data
            if not is_rtcp(data):
                key = datagram.from_client, source(data)
                proven |= 0 < (sequence(data) - last.get(key, sequence(data))) % 2**16 < _NEAR
                last[key] = sequence(data)
        if not proven:
            return [None] * len(datagrams)
        return [[read_rtp(datagram.data, number, secure=False)] for number, datagram in enumerate(datagrams)]


DATAGRAM = Rtp
