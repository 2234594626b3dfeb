"""HTTP/1.1 requests and responses among the bytes of a stream, encrypted or not.

Source: RFC 9112 (start lines).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from labkit.capture.fields import printable
from labkit.capture.messages import Found, data_detail

# A start line, at the beginning of what was sent or after the blank line that ends another head.
_START_LINE = re.compile(
    rb"(?:\A|(?<=\r\n\r\n))"
    rb"([A-Z]{2,20} \S{1,8000} HTTP/\d(?:\.\d)?|HTTP/\d(?:\.\d)? \d{3}[^\r\n]{0,200})\r\n"
)
_END_OF_HEAD = b"\r\n\r\n"


def name_http(messages: Iterable[Found]) -> list[Found]:
    """Find HTTP/1.1 start lines in data, of TLS or not. A head that comes in pieces is one message."""
    named: list[Found] = []
    head: Found | None = None  # a head whose blank line has not come yet
    for message in messages:
        if message.name not in ("data", "Application data"):
            named.append(message)
            continue
        if head is not None and head.level == message.level and named[-1] is head:
            data = head.data + message.data
            detail = data_detail(len(data), head.level, head.rejected)
            head = replace(head, detail=detail, end=message.end, length=len(data), data=data)
            named[-1] = head
        else:
            named += _split_at_start_lines(message)
            head = named[-1]
        unfinished = head.protocol == "HTTP" and _END_OF_HEAD not in head.data and head.length < 2**16
        head = head if unfinished else None
    return named


def _split_at_start_lines(message: Found) -> list[Found]:
    if b"HTTP/" not in message.data:  # much faster than the pattern: bulk data is long
        return [message]
    lines = {match.start(1): match[1] for match in _START_LINE.finditer(message.data)}
    if not lines:
        return [message]
    places, split = sorted({0, *lines}), []
    in_the_clear = message.end - message.start == len(message.data)
    for begin, end in zip(places, [*places[1:], len(message.data)], strict=True):
        part = replace(
            message,
            detail=data_detail(end - begin, message.level, message.rejected),
            length=end - begin,
            data=message.data[begin:end],
            # An encrypted record can only be read as a whole: all its requests are where it is.
            start=message.start + begin if in_the_clear else message.start,
            end=message.start + end if in_the_clear else message.end,
        )
        if begin in lines:
            part = replace(part, protocol="HTTP", name=printable(lines[begin]))
        split.append(part)
    return split
