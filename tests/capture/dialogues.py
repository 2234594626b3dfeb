"""Bytes of a connection without packets: what each side sends, in which order it arrives, and what is named in it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from labkit.capture.dialogue import Piece, read_dialogue
from labkit.capture.messages import Found

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def segment(data: bytes, start: int = 0) -> Found:
    return Found("DATA", "data", f"{len(data)} bytes", "", start, start + len(data), len(data), data, role="data")


def read(
    *said: tuple[str, bytes | None], begins: tuple[bool, bool] = (True, True), port: int = 1
) -> list[tuple[str, Found]]:
    """Name what two sides say.

    Args:
        said: segments in the order of their arrival: ">" from the client, "<" from the server; None = a gap.
        begins: whether the beginnings of the client's and of the server's stream are there.
        port: the server's.

    Returns:
        ">" or "<" and each message: the client's, then the server's.
    """
    sides: dict[str, list[Piece]] = {">": [], "<": []}
    places = {">": 0, "<": 0}
    for arrival, (direction, data) in enumerate(said):
        found = segment(data, places[direction]) if data is not None else None
        sides[direction].append(Piece(arrival, found))
        places[direction] += len(data) if data is not None else 100
    client, server = read_dialogue(sides[">"], sides["<"], begins, port)
    return [(">", found) for found in client] + [("<", found) for found in server]


def labels(named: Sequence[tuple[str, Found]]) -> list[str]:
    """What a ladder shows: "> GET / HTTP/1.1"."""
    return [f"{direction} {found.label or found.name}" for direction, found in named]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113 section 4.1)."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload
