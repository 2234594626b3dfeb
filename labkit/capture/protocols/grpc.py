"""gRPC's messages in the bodies of HTTP/2, and the status of a call by its name.

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md) and statuscodes.md, both in github.com/grpc/grpc/doc.
"""

from __future__ import annotations

from collections.abc import Mapping

from labkit.capture.protocol import BodyProtocol, Side

_STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_PREFIX_BYTES = 5  # whether it is compressed, and its length


class Grpc(BodyProtocol):
    """Messages with a prefix of five bytes."""

    content_types = frozenset({"application/grpc"})

    @classmethod
    def tell(cls, headers: Mapping[str, str]) -> str:
        status = headers.get("grpc-status", "")
        known = status.isascii() and status.isdecimal() and len(status) < 3 and int(status) < len(_STATUS_NAMES)
        return f"grpc-status {_STATUS_NAMES[int(status)] if known else status}" if status else ""

    def receive(self, side: Side) -> None:
        while len(side.data) >= _PREFIX_BYTES:
            size = int.from_bytes(side.data[1:_PREFIX_BYTES], "big")
            if len(side.data) < _PREFIX_BYTES + size:
                return
            compressed = ", compressed" if side.data[0] else ""
            method = self.start_line.partition(" ")[2]
            side.take(
                _PREFIX_BYTES + size,
                "gRPC",
                "message",
                f"{size} bytes{compressed}" + (f", {method}" if method else ""),
                role="data",
                data=bytes(side.data[_PREFIX_BYTES : _PREFIX_BYTES + size]),
                label=f"gRPC message of {size} bytes",
            )


BODY = Grpc
