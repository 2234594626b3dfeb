"""One request and one response, the same for HTTP/1.1 and HTTP/3, and the handler between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit import checks

Headers = tuple[tuple[str, str], ...]
MAX_BODY_BYTES = 16 << 20


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        method: "GET".
        target: path and query, "/orders?id=1".
        headers: pairs, names in lower case, in the order they came.
        body: all of it; bodies over 16 MiB are refused with 413.
        facts: how it came: "protocol" ("HTTP/1.1", "h3"), "tls_version" ("TLSv1.3" or None), "alpn",
            "resumed", "early_data" (it was read before the handshake was complete), "peer".
    """

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of this name, in any case; `default` where there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)


@dataclass(frozen=True)
class Response:
    """What the server answers. content-length, content-type and date are added where they are missing.

    Raises:
        InvalidValue: a status outside 200–599 (the informational ones are not for handlers), a body that is not bytes.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes = b""

    def __post_init__(self) -> None:
        if not isinstance(self.status, int) or not 200 <= self.status <= 599:
            raise checks.wrong("status", self.status, "a handler answers with a number from 200 to 599")
        if not isinstance(self.body, bytes):
            raise checks.wrong("body", self.body, "bytes are sent; for text use Response.text(...)")

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        """A plain text response in UTF-8."""
        checks.instance("text", text, str, "a text; for bytes use Response(body=...)")
        return cls(status, (("content-type", "text/plain; charset=utf-8"),), text.encode())

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of this name, in any case; `default` where there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)


Handler = Callable[[Request], Response]


def describe_connection(request: Request) -> Response:
    """The default handler: a line that tells how the request came."""
    facts = request.facts
    words = [f"{request.method} {request.target} over {facts.get('protocol')}"]
    if facts.get("tls_version"):
        words.append(f"{facts['tls_version']}, ALPN {facts.get('alpn') or 'none'}")
        words.append("session resumed" if facts.get("resumed") else "full handshake")
        words.append("early data" if facts.get("early_data") else "no early data")
    else:
        words.append("no TLS")
    return Response.text(", ".join(words) + "\n")
