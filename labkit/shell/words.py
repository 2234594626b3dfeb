"""What was typed as values: ``rtt_ms 100``, ``source=server tcp_flags=SA count=1``; and back."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields
from typing import Any

from labkit.errors import InvalidValue

YES_OR_NO = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def split(line: str) -> list[str]:
    """Words of a line, with quotes as in a shell. Raises InvalidValue."""
    try:
        return shlex.split(line)
    except ValueError as exc:
        raise InvalidValue(f"{line!r}: {exc}") from None


def names_of(kind: type[Any]) -> list[str]:
    """The fields of a Link or a Rule that can be given by name."""
    return [field.name for field in fields(kind) if field.name != "action"]


def values(kind: type[Any], words: list[str]) -> dict[str, Any]:
    """Fields of a Link or a Rule: ``["rtt_ms", "100"]`` or ``["rtt_ms=100", "loss=0.01"]``.

    Args:
        kind: the dataclass, whose types say what a word means. Its own checks follow when it is made.
        words: what was typed.

    Raises:
        InvalidValue: a name that it does not have, or a word that is no such value.
    """
    types = {field.name: str(field.type) for field in fields(kind) if field.name != "action"}
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        name, equals, word = rest.pop(0).partition("=")
        if name not in types:
            raise InvalidValue(f"{name!r}: there is {', '.join(types)}")
        if not equals:
            if not rest:
                raise InvalidValue(f"{name}: give a value, {name}=…")
            word = rest.pop(0)
        found[name] = _value(name, word, types[name])
    return found


def _value(name: str, word: str, kind: str) -> Any:
    optional = [each.strip() for each in kind.split("|")]
    if word.lower() == "none" and "None" in optional:
        return None
    try:
        match optional[0]:
            case "float":
                return float(word)
            case "int":
                return int(word)
            case "bool":
                return YES_OR_NO[word.lower()]
            case "bytes":
                return word.encode()
    except (ValueError, KeyError):
        wanted = {"float": "a number", "int": "a whole number", "bool": "yes or no"}[optional[0]]
        raise InvalidValue(f"{name}={word!r}: give {wanted}") from None
    return word


CHOICES = ["connection=", "stream=", "between=", "hosts="]


def choice(words: list[str]) -> dict[str, Any]:
    """What narrows a capture: ``["connection=8000", "between=0,100"]``. Raises InvalidValue."""
    found: dict[str, Any] = {}
    for each in words:
        name, equals, word = each.partition("=")
        if f"{name}=" not in CHOICES or not equals:
            raise InvalidValue(f"{each!r}: there is {' '.join(CHOICES)}")
        parts = word.split(",")
        try:
            if name == "hosts":
                found[name] = parts
            elif name == "between":
                first, last = map(float, parts)
                found[name] = first, last
            else:
                found[name] = int(word)
        except ValueError:
            wanted = "two moments in milliseconds, between=0,100" if name == "between" else "a whole number"
            raise InvalidValue(f"{each}: give {wanted}") from None
    return found


def words_of(value: Any) -> str:
    """A Link or a Rule as it would be typed: what differs from the default."""
    told = []
    for field in fields(value):
        given = getattr(value, field.name)
        if field.name == "action" or given == (None if field.default is MISSING else field.default):
            continue
        if isinstance(given, bool):
            given = "yes" if given else "no"
        text = given.decode("utf-8", "backslashreplace") if isinstance(given, bytes) else str(given)
        text = text.removesuffix(".0") if isinstance(given, float) else text
        told.append(f"{field.name}={shlex.quote(text)}")
    return " ".join(told)
