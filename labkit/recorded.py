"""Runs that were recorded on a machine with a kernel's network, for machines whose tier cannot make them.

``lab.live_or_recorded(key, function)`` calls the function where the lab's tier has what it needs. Elsewhere it returns
what the function returned when the book's recordings were made, by `book record`, which runs a notebook with
LABKIT_RECORD set. A recorded capture names the kernel and the day in its tier, so every picture of it says so.

The recordings of a section are a folder of ``book/recordings/``, those of the race one of ``labkit/recordings/``:
``recording.json`` with the values, and a pcapng file for each capture, which Wireshark opens with the secrets inside.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from labkit.capture.captured import Captured
from labkit.capture.pcapng import read_pcapng, write_pcapng
from labkit.errors import InvalidValue, NotAvailableHere
from labkit.network.host import Counters
from labkit.recordable import Recordable

OWN = Path(__file__).parent / "recordings"
FOLDERS = [OWN]  # what builds on labkit puts a folder of its own before it
INDEX = "recording.json"
# Where recordable results are defined: loaded when a recording has one that is not known yet.
HOMES = ["labkit.queues.history", "labkit.load.load"]  # what builds on labkit appends its own
KEY = re.compile(r"[a-z0-9_.]+/[A-Za-z0-9_.+×%, -]+")


def check_key(key: object) -> tuple[str, str]:
    """Section and name of "https.basics/a lost request". Raises InvalidValue for what is no key."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InvalidValue(
            f"key={key!r}: the section's id and a name of letters and digits, 'https.basics/lost request'"
        )
    section, _, name = key.partition("/")
    return section, name


def recall(key: str, *, folder: Path | None = None, tier: str = "this one") -> Any:
    """What was recorded under a key.

    Args:
        key: as in ``lab.live_or_recorded``.
        folder: where the recordings lie; every one of FOLDERS by default.
        tier: of the lab that asks, for the message.

    Raises:
        NotAvailableHere: nothing was recorded under it.
    """
    section, name = check_key(key)
    paths = [each / section / INDEX for each in ([folder] if folder else FOLDERS)]
    path = next((path for path in paths if path.exists()), None)
    index = json.loads(path.read_text(encoding="utf-8")) if path else {"values": {}}
    if path is None or name not in index["values"]:
        known = ", ".join(repr(other) for other in index["values"]) or "nothing"
        raise NotAvailableHere(
            f"{name!r} cannot be run on the tier {tier!r} and was not recorded. Recorded for {section} was: {known}. "
            "`labkit doctor` says what would give this machine a higher tier"
        )
    return _decode(index["values"][name], path.parent, f"recorded, {index['kernel']}, {index['date']}")


def keep(key: str, value: Any, folder: Path) -> None:
    """Record a value under a key, in place of an earlier one.

    Args:
        key: as in ``lab.live_or_recorded``.
        value: captures, histories of queues, loads and trials, counters, numbers, texts, None, and lists, tuples and
            dictionaries of them.
        folder: where the recordings lie.

    Raises:
        InvalidValue: a value of another kind.
    """
    section, name = check_key(key)
    place = folder / section
    place.mkdir(parents=True, exist_ok=True)
    path = place / INDEX
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["values"] if path.exists() else {}
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for old in place.glob(f"{stem}.*.pcapng.gz"):
        old.unlink()
    values[name] = _encode(value, place, stem, [0])
    index = {
        "kernel": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    # A line for each value: a history of queues has thousands of numbers.
    lines = [f"  {_json(name)}: {_json(values[name])}" for name in values]
    facts = "".join(f" {_json(name)}: {_json(fact)},\n" for name, fact in index.items())
    path.write_text("{\n" + facts + ' "values": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def recording_to() -> Path | None:
    """Where LABKIT_RECORD wants runs to be recorded; None where it does not."""
    folder = os.environ.get("LABKIT_RECORD", "")
    return Path(folder) if folder else None


def _encode(value: Any, place: Path, stem: str, count: list[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Captured):
        count[0] += 1
        file = f"{stem}.{count[0]}.pcapng.gz"
        write_pcapng(place / file, value.frames, _secrets_of(value), arrivals=True)
        return {"capture": file, "at": value.at, "hosts": [[number, name] for number, name in value.hosts.items()]}
    if isinstance(value, Counters):
        return {"counters": dict(value)}
    if isinstance(value, Recordable):
        return {type(value).__name__: value.as_data()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {"pairs": [[_encode(k, place, stem, count), _encode(v, place, stem, count)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, place, stem, count) for item in value]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise InvalidValue(
        f"a {type(value).__name__} cannot be recorded: return captures, histories, counters, numbers and texts"
    )


def _secrets_of(captured: Captured) -> str:
    """The lines of the key log that a capture can need: a session's log grows with each connection.

    QUIC hides the client's random in its Initial packets, so with UDP in it a capture keeps all of them.
    """
    ip_protocol = 23
    if any(frame.data[ip_protocol : ip_protocol + 1] == b"\x11" for frame in captured.frames):
        return captured.secrets
    content = b"".join(frame.data for frame in captured.frames)
    lines = [line for line in captured.secrets.splitlines() if line and not line.startswith("#")]
    return "".join(f"{line}\n" for line in lines if bytes.fromhex(line.split()[1]) in content)


def _decode(value: Any, place: Path, tier: str) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content), *more) = value.items()
    if kind == "capture":
        facts = dict(more)
        frames, secrets = read_pcapng(place / content)
        hosts = dict(facts["hosts"])
        return Captured(frames, hosts=hosts, at=facts["at"], tier=tier, secrets=secrets)
    if kind == "counters":
        return Counters(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "pairs":
        return {_decode(k, place, tier): _decode(v, place, tier) for k, v in content}
    if kind in ("list", "tuple"):
        items = [_decode(item, place, tier) for item in content]
        return items if kind == "list" else tuple(items)
    for home in HOMES:
        if kind not in Recordable.kinds:
            import_module(home)
    return Recordable.kinds[kind].of_data(content, tier)
