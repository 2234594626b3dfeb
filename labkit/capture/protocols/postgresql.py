"""PostgreSQL's protocol, version 3: messages of a type, a length and a body; before the first one there is no type.

Names are those of the documentation. A client sends "Parse", "Bind", "Execute" and so on at once, and "Sync" asks the
server to tell where it stands, with "ReadyForQuery".

Source: PostgreSQL 18, chapter 54 "Frontend/Backend Protocol", "Message Formats".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.capture.fields import shortened, without_controls
from labkit.capture.messages import Role
from labkit.capture.protocol import Certainty, HandOver, Opening, Side, StreamProtocol

_NAME = "PostgreSQL"
_PORT = 5432
_MAX_LENGTH = 2**30 - 1  # PQ_LARGE_MESSAGE_LIMIT of the server
_MAX_STARTUP = 10_000  # MAX_STARTUP_PACKET_LENGTH
_PLAUSIBLE_LENGTH = 2**20  # of a message in the middle of a connection, where nothing else tells that it is one
_NUL = b"\0"
_CANCEL, _SSL, _GSS = 80877102, 80877103, 80877104
_SHOWN = 60  # characters of a statement in a label
_KEPT = 2**16


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of message: its name, its role, and what its length field says where that is always the same."""

    name: str
    role: Role
    length: int = 0


_CLIENT = {
    b"Q": _Kind("Query", "request"),
    b"P": _Kind("Parse", "request"),
    b"B": _Kind("Bind", "request"),
    b"D": _Kind("Describe", "request"),
    b"E": _Kind("Execute", "request"),
    b"C": _Kind("Close", "request"),
    b"F": _Kind("FunctionCall", "request"),
    b"S": _Kind("Sync", "control", 4),
    b"H": _Kind("Flush", "control", 4),
    b"X": _Kind("Terminate", "control", 4),
    b"p": _Kind("PasswordMessage", "control"),
    b"d": _Kind("CopyData", "data"),
    b"c": _Kind("CopyDone", "control", 4),
    b"f": _Kind("CopyFail", "control"),
}
_SERVER = {
    b"R": _Kind("Authentication", "control"),
    b"S": _Kind("ParameterStatus", "control"),
    b"K": _Kind("BackendKeyData", "control"),
    b"v": _Kind("NegotiateProtocolVersion", "control"),
    b"Z": _Kind("ReadyForQuery", "control", 5),
    b"T": _Kind("RowDescription", "response"),
    b"D": _Kind("DataRow", "data"),
    b"C": _Kind("CommandComplete", "response"),
    b"E": _Kind("ErrorResponse", "response"),
    b"N": _Kind("NoticeResponse", "control"),
    b"I": _Kind("EmptyQueryResponse", "response", 4),
    b"1": _Kind("ParseComplete", "response", 4),
    b"2": _Kind("BindComplete", "response", 4),
    b"3": _Kind("CloseComplete", "response", 4),
    b"n": _Kind("NoData", "response", 4),
    b"t": _Kind("ParameterDescription", "response"),
    b"s": _Kind("PortalSuspended", "response", 4),
    b"A": _Kind("NotificationResponse", "response"),
    b"V": _Kind("FunctionCallResponse", "response"),
    b"G": _Kind("CopyInResponse", "response"),
    b"H": _Kind("CopyOutResponse", "response"),
    b"W": _Kind("CopyBothResponse", "response"),
    b"d": _Kind("CopyData", "data"),
    b"c": _Kind("CopyDone", "control", 4),
}
_AUTHENTICATION = {
    0: "Ok", 2: "KerberosV5", 3: "CleartextPassword", 5: "MD5Password", 7: "GSS", 8: "GSSContinue", 9: "SSPI",
    10: "SASL", 11: "SASLContinue", 12: "SASLFinal",
}  # fmt: skip
# What a "p" is, by the request that it answers.
_ANSWERS = {7: "GSSResponse", 8: "GSSResponse", 9: "GSSResponse", 10: "SASLInitialResponse", 11: "SASLResponse"}
_STATES = {b"I": "idle", b"T": "in a transaction", b"E": "in a failed transaction"}
_TARGETS = {b"S": "statement", b"P": "portal"}


class PostgreSQL(StreamProtocol):
    """The messages of client and server, whose answers to a request for encryption have no header."""

    ports = frozenset({_PORT})

    def __init__(self, client: Side, server: Side, came_by: HandOver) -> None:
        super().__init__(client, server, came_by)
        self._encryption_asked = ""
        self._authentication = 0

    @classmethod
    def recognise(cls, opening: Opening) -> Certainty:
        if opening.client_begins and _begins_connection(opening.client):
            return Certainty.SURE
        for data, from_client in ((opening.client, True), (opening.server, False)):
            # On other ports a whole message is wanted: of 200,000 random segments 4 begin as if one did.
            whole = opening.port == _PORT or 1 + int.from_bytes(data[1:5], "big") <= len(data)
            if whole and _in_the_middle(data, from_client):
                return Certainty.MAYBE
        return Certainty.NO

    def receive(self, side: Side) -> None:
        while side.data:
            if not side.synchronised:
                if not _in_the_middle(side.data, side.from_client):
                    side.leave(side.piece_end(1))  # a message may begin with the next segment
                    continue
                side.synchronised = True
            if not side.from_client and self._encryption_asked:
                self._answer_about_encryption(side)
                continue
            if side.from_client and side.data[0] == 0:
                if not self._without_type(side):
                    return
                continue
            kind = (_CLIENT if side.from_client else _SERVER).get(bytes(side.data[:1]))
            length = int.from_bytes(side.data[1:5], "big")
            if kind is None or (len(side.data) >= 5 and not _possible(kind, length)):
                side.synchronised = False
                side.leave(side.piece_end(1))
                continue
            if len(side.data) < 5 or len(side.data) < 1 + length:
                return
            self._take(side, kind, 1 + length)

    def ended(self, side: Side) -> None:
        kind = (_CLIENT if side.from_client else _SERVER).get(bytes(side.data[:1]))
        if side.synchronised and kind is not None and len(side.data) >= 5:
            whole = 1 + int.from_bytes(side.data[1:5], "big")
            side.take(len(side.data), _NAME, kind.name, f"{len(side.data)} of {whole} bytes", role=kind.role)

    def _answer_about_encryption(self, side: Side) -> None:
        asked, self._encryption_asked = self._encryption_asked, ""
        if (answer := bytes(side.data[:1])) in (b"S", b"G", b"N"):
            words = "no" if answer == b"N" else "yes, from here on"
            side.take(1, _NAME, f"{asked}Response", words, role="control", label=f"{asked}Response: {words}")

    def _without_type(self, side: Side) -> bool:
        """Take what a client begins with. False where more has to come."""
        length, code = int.from_bytes(side.data[:4], "big"), int.from_bytes(side.data[4:8], "big")
        if len(side.data) >= 8 and not _begins_connection(side.data):
            side.synchronised = False
            side.leave(side.piece_end(1))
            return True
        if len(side.data) < max(length, 8):
            return False
        if code in (_SSL, _GSS):
            self._encryption_asked = "SSL" if code == _SSL else "GSSENC"
            side.take(length, _NAME, f"{self._encryption_asked}Request", role="control")
        elif code == _CANCEL:
            process = int.from_bytes(side.data[8:12], "big")
            side.take(length, _NAME, "CancelRequest", f"of process {process}", role="control")
        else:
            words = [_text(word) for word in bytes(side.data[8:length]).split(_NUL)]
            fields = dict(zip(words[::2], words[1::2], strict=False))
            said = ", ".join(f"{name} {fields[name]}" for name in ("user", "database") if fields.get(name))
            version = f"{code >> 16}.{code & 0xFFFF}"
            detail = f"version {version}, {said}" if said else f"version {version}"
            side.take(length, _NAME, "StartupMessage", detail, role="control", label=f"StartupMessage: {said}")
        return True

    def _take(self, side: Side, kind: _Kind, length: int) -> None:
        body = bytes(side.data[5 : min(length, _KEPT)]) if kind.role != "data" else b""
        name, said, more = kind.name, "", dict[str, Any]()
        if name == "Authentication":
            self._authentication = int.from_bytes(body[:4], "big")
            name += _AUTHENTICATION.get(self._authentication, f" {self._authentication}")
        elif name == "PasswordMessage":
            name = _ANSWERS.get(self._authentication, name)
        elif name in ("Query", "Parse"):
            statement = body if name == "Query" else body.partition(_NUL)[2]
            sql = _text(statement.partition(_NUL)[0], _KEPT)
            said = shortened(sql, _SHOWN)
            more = {"start_line": sql}
        elif read := _WORDS.get(name):
            said = read(body)
        detail = said or f"{length} bytes"
        label = f"{name}: {said}" if said and name not in _LONG else ""
        side.take(length, _NAME, name, detail, role=kind.role, label=label, **more)


def _possible(kind: _Kind, length: int, limit: int = _MAX_LENGTH) -> bool:
    return length == kind.length if kind.length else 4 <= length <= limit


def _begins_connection(data: bytes | bytearray) -> bool:
    length, code = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    if code in (_SSL, _GSS):
        return length == 8
    return 8 <= length <= _MAX_STARTUP and (code == _CANCEL or code >> 16 == 3)


def _in_the_middle(data: bytes | bytearray, from_client: bool) -> bool:
    """Whether a message begins here and what follows is messages, as far as it can be seen in the first 1024 bytes."""
    at, seen = 0, min(len(data), 1024)
    kinds = _CLIENT if from_client else _SERVER
    while at + 5 <= seen:
        kind, length = kinds.get(bytes(data[at : at + 1])), int.from_bytes(data[at + 1 : at + 5], "big")
        if kind is None or not _possible(kind, length, _PLAUSIBLE_LENGTH):
            return False
        at += 1 + length
    return at > 0


def _text(data: bytes, limit: int = 80) -> str:
    """UTF-8 as one line that is safe to show."""
    line = " ".join(data[: 4 * limit].decode(errors="replace").split())
    return shortened(without_controls(line), limit)


def _error(body: bytes) -> str:
    fields = {part[:1]: part[1:] for part in body.split(_NUL) if part}
    return " ".join(_text(fields[code]) for code in (b"S", b"C", b"M") if code in fields)


def _columns(body: bytes) -> str:
    count, at, names = int.from_bytes(body[:2], "big"), 2, list[str]()
    while len(names) < min(count, 5) and (end := body.find(_NUL, at)) >= 0:
        names.append(_text(body[at:end], 30))
        at = end + 19  # table, column, type, size, modifier, format
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def _bound(body: bytes) -> str:
    portal, _, rest = body.partition(_NUL)
    return _named("statement", rest.partition(_NUL)[0]) + (f" to portal {_text(portal)}" if portal else "")


def _named(what: str, name: bytes) -> str:
    return f"{what} {_text(name)}" if name else ""


def _target(body: bytes) -> str:
    return _named(_TARGETS.get(body[:1], "?"), body[1:].partition(_NUL)[0]) or _TARGETS.get(body[:1], "?")


def _notification(body: bytes) -> str:
    channel, _, payload = body[4:].partition(_NUL)
    return f"{_text(channel)} {_text(payload.rstrip(_NUL))}".rstrip()


_WORDS: dict[str, Callable[[bytes], str]] = {
    "ReadyForQuery": lambda body: _STATES.get(body, "?"),
    "CommandComplete": lambda body: _text(body.rstrip(_NUL)),
    "ErrorResponse": _error,
    "NoticeResponse": _error,
    "RowDescription": _columns,
    "Bind": _bound,
    "Execute": lambda body: _named("portal", body.partition(_NUL)[0]),
    "Describe": _target,
    "Close": _target,
    "ParameterStatus": lambda body: _text(body.rstrip(_NUL).replace(_NUL, b" ")),
    "NotificationResponse": _notification,
    "CopyFail": lambda body: _text(body.rstrip(_NUL)),
}

# What a server says many of at once: a label has the name alone.
_LONG = frozenset({"ParameterStatus"})

STREAM = PostgreSQL
