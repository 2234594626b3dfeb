"""AMQP 0-9-1: frames of a type, a channel and a size, which end with a mark.

Methods are named as the specification names them, "Basic.Publish". What is published or delivered is a method, a header
and frames of the body. The stream of a message is its channel.

Source: AMQP 0-9-1, sections 2.3.5 (framing) and 4.2 (grammar); the XML definition for classes, methods and arguments;
RabbitMQ's extensions (Confirm, Basic.Nack, Connection.Blocked, Exchange.Bind) at rabbitmq.com/docs/extensions.
"""

from __future__ import annotations

from typing import Any

from labkit.capture.fields import Cursor, Truncated, without_controls
from labkit.capture.messages import Role
from labkit.capture.protocol import Certainty, Opening, Side, StreamProtocol

_NAME = "AMQP"
_PORT = 5672
_HEADER = b"AMQP\0\0\x09\x01"
_END = 0xCE
_METHOD, _CONTENT_HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_MAX_SIZE = 2**30  # RabbitMQ negotiates 131,072 bytes; a client may want more
_PLAUSIBLE_SIZE = 2**20  # in the middle of a connection, where nothing else tells that it is a frame
_CLASSES = {10: "Connection", 20: "Channel", 40: "Exchange", 50: "Queue", 60: "Basic", 85: "Confirm", 90: "Tx"}
# Arguments, as far as they are named here: s = short string, b = bits, of which the first counts, h, l, L = numbers
# of 2, 4, 8 bytes. "." = not shown.
_TUNING = "h:channels l:frame_max h:heartbeat"
_METHODS: dict[tuple[int, int], tuple[str, str]] = {
    (10, 10): ("Start", ""), (10, 11): ("StartOk", ""), (10, 20): ("Secure", ""), (10, 21): ("SecureOk", ""),
    (10, 30): ("Tune", _TUNING), (10, 31): ("TuneOk", _TUNING), (10, 40): ("Open", "s:vhost"), (10, 41): ("OpenOk", ""),
    (10, 50): ("Close", "h:code s:text"), (10, 51): ("CloseOk", ""), (10, 60): ("Blocked", "s:reason"),
    (10, 61): ("Unblocked", ""), (10, 70): ("UpdateSecret", ""), (10, 71): ("UpdateSecretOk", ""),
    (20, 10): ("Open", ""), (20, 11): ("OpenOk", ""), (20, 20): ("Flow", "b:active"), (20, 21): ("FlowOk", "b:active"),
    (20, 40): ("Close", "h:code s:text"), (20, 41): ("CloseOk", ""),
    (40, 10): ("Declare", "h:. s:exchange s:type"), (40, 11): ("DeclareOk", ""), (40, 20): ("Delete", "h:. s:exchange"),
    (40, 21): ("DeleteOk", ""),
    (40, 30): ("Bind", "h:. s:destination s:source s:routing_key"), (40, 31): ("BindOk", ""),
    (40, 40): ("Unbind", "h:. s:destination s:source s:routing_key"), (40, 51): ("UnbindOk", ""),
    (50, 10): ("Declare", "h:. s:queue"), (50, 11): ("DeclareOk", "s:queue l:messages l:consumers"),
    (50, 20): ("Bind", "h:. s:queue s:exchange s:routing_key"), (50, 21): ("BindOk", ""),
    (50, 30): ("Purge", "h:. s:queue"), (50, 31): ("PurgeOk", "l:messages"),
    (50, 40): ("Delete", "h:. s:queue"), (50, 41): ("DeleteOk", "l:messages"),
    (50, 50): ("Unbind", "h:. s:queue s:exchange s:routing_key"), (50, 51): ("UnbindOk", ""),
    (60, 10): ("Qos", "l:prefetch_size h:prefetch"), (60, 11): ("QosOk", ""),
    (60, 20): ("Consume", "h:. s:queue s:consumer"), (60, 21): ("ConsumeOk", "s:consumer"),
    (60, 30): ("Cancel", "s:consumer"), (60, 31): ("CancelOk", "s:consumer"),
    (60, 40): ("Publish", "h:. s:exchange s:routing_key"),
    (60, 50): ("Return", "h:code s:text s:exchange s:routing_key"),
    (60, 60): ("Deliver", "s:consumer L:tag b:redelivered s:exchange s:routing_key"),
    (60, 70): ("Get", "h:. s:queue"), (60, 71): ("GetOk", "L:tag b:redelivered s:exchange s:routing_key l:messages"),
    (60, 72): ("GetEmpty", ""), (60, 80): ("Ack", "L:tag b:multiple"), (60, 90): ("Reject", "L:tag b:requeue"),
    (60, 100): ("RecoverAsync", "b:requeue"), (60, 110): ("Recover", "b:requeue"), (60, 111): ("RecoverOk", ""),
    (60, 120): ("Nack", "L:tag b:multiple"),
    (85, 10): ("Select", ""), (85, 11): ("SelectOk", ""),
    (90, 10): ("Select", ""), (90, 11): ("SelectOk", ""), (90, 20): ("Commit", ""), (90, 21): ("CommitOk", ""),
    (90, 30): ("Rollback", ""), (90, 31): ("RollbackOk", ""),
}  # fmt: skip
_SIZES = {"b": 1, "h": 2, "l": 4, "L": 8}
_ANSWERS = {"Ack", "Nack", "Reject", "Return", "GetEmpty"}


class Amqp(StreamProtocol):
    """Frames of both sides, which say all that there is to know."""

    ports = frozenset({_PORT})

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        if opening.client.startswith(_HEADER) or opening.server.startswith(_HEADER):
            return Certainty.SURE
        found = _frame_at(opening.client) or _frame_at(opening.server)
        return Certainty.MAYBE if found else Certainty.NO

    def receive(self, side: Side) -> None:
        while side.data:
            if not side.synchronised and not self._find_frame(side):
                continue
            if _HEADER.startswith(side.data[:8]):
                if len(side.data) < 8:
                    return
                side.take(8, _NAME, "ProtocolHeader", "version 0-9-1", role="control")
                continue
            if len(side.data) < 7:
                return
            size = int.from_bytes(side.data[3:7], "big")
            if side.data[0] not in _FRAMES or size > _MAX_SIZE:
                side.synchronised = False
                continue
            if len(side.data) < size + 8:
                return
            if side.data[size + 7] != _END:
                side.synchronised = False
                continue
            self._take(side, size)

    def ended(self, side: Side) -> None:
        if side.synchronised and len(side.data) >= 7 and side.data[0] in _FRAMES:
            whole = int.from_bytes(side.data[3:7], "big") + 8
            channel = int.from_bytes(side.data[1:3], "big")
            name, detail = _FRAMES[side.data[0]], f"{len(side.data)} of {whole} bytes"
            side.take(len(side.data), _NAME, name, detail, role="data", stream=channel or None)

    @staticmethod
    def _find_frame(side: Side) -> bool:
        """Leave what stands before a frame in the segment or record; False where none begins there."""
        at, end = 0, side.piece_end(1)
        while not _frame_at(side.data, at):
            at = side.data.find(_END, at, end) + 1  # a frame may begin where another one ends
            if not 0 < at < end:
                side.leave(end)
                return False
        if at:
            side.leave(at)
        side.synchronised = True
        return True

    @staticmethod
    def _take(side: Side, size: int) -> None:
        kind, channel = side.data[0], int.from_bytes(side.data[1:3], "big")
        body = bytes(side.data[7 : 7 + min(size, 1024)])
        more: dict[str, Any] = {"stream": channel or None}
        name, role, words = _FRAMES[kind], "control" if kind == _HEARTBEAT else "data", ""
        if kind == _METHOD:
            numbers = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
            short, arguments = _METHODS.get(numbers, (str(numbers[1]), ""))
            name = f"{_CLASSES.get(numbers[0], str(numbers[0]))}.{short}"
            role, found = _role(name, short), _read(body[4:], arguments)
            words = ", ".join(f"{key.replace('_', ' ')} {value!r}" for key, value in found.items())
            said = _said(found)
            more["label"] = f"{name}{f' {channel}' if channel else ''}{f': {said}' if said else ''}"
        elif kind == _CONTENT_HEADER:
            words = f"{int.from_bytes(body[4:12], 'big')} bytes of body"
            more["label"] = f"{name} {channel}"
        elif kind == _BODY:
            words = f"{size} bytes"
            more |= {"data": bytes(side.data[7 : 7 + size]), "label": f"{name} {channel}"}
        detail = ", ".join(part for part in (f"channel {channel}" if channel else "", words) if part)
        side.take(size + 8, _NAME, name, detail or f"{size + 8} bytes", role=role, **more)


_FRAMES = {_METHOD: "Method", _CONTENT_HEADER: "ContentHeader", _BODY: "ContentBody", _HEARTBEAT: "Heartbeat"}


def _frame_at(data: bytes | bytearray, at: int = 0) -> bool:
    """Whether a frame begins here, for all that can be seen. Of what it contains only a method says what it is."""
    if len(data) < at + 8 or data[at] not in _FRAMES:
        return False
    channel, size = int.from_bytes(data[at + 1 : at + 3], "big"), int.from_bytes(data[at + 3 : at + 7], "big")
    inside = bytes(data[at + 7 : at + 11])
    possible = {
        _METHOD: size >= 4 and (int.from_bytes(inside[:2], "big"), int.from_bytes(inside[2:], "big")) in _METHODS,
        _CONTENT_HEADER: channel > 0 and size >= 14 and inside == b"\0\x3c\0\0",  # class Basic, weight 0
        _BODY: channel > 0 and size > 0,
        _HEARTBEAT: channel == 0 and size == 0,
    }[data[at]]
    if not possible or size > _PLAUSIBLE_SIZE:
        return False
    end = at + 7 + size
    return data[end] == _END if len(data) > end else data[at] != _BODY


def _role(name: str, short: str) -> Role:
    if name.startswith(("Connection.", "Channel.")):
        return "control"
    return "response" if short.endswith("Ok") or short in _ANSWERS else "request"


def _read(data: bytes, arguments: str) -> dict[str, Any]:
    """Read as many arguments as there are."""
    cursor, found = Cursor(data), dict[str, Any]()
    try:
        for argument in arguments.split():
            kind, _, name = argument.partition(":")
            value: Any
            if kind == "s":
                value = _text(cursor.vector(1))
            else:
                value = cursor.number(_SIZES[kind])
                value = bool(value & 1) if kind == "b" else value
            if name != ".":
                found[name] = value
    except Truncated:
        pass
    return found


def _said(found: dict[str, Any]) -> str:
    """What a label says of a method: "#5 orders new" of a delivery."""
    tag = f"#{found['tag']}" if "tag" in found else ""
    if found.get("multiple"):
        tag += " and all before"
    words = [
        tag,
        *(str(found.get(key, "")) for key in ("code", "queue", "exchange", "destination", "source", "prefetch")),
    ]
    words += [str(found.get("text" if "code" in found else "routing_key", ""))]
    return " ".join(word for word in words if word)


def _text(data: bytes) -> str:
    """UTF-8 as one line that is safe to show; a short string has 255 bytes at most."""
    return without_controls(data.decode(errors="replace"))


STREAM = Amqp
