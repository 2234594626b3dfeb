"""The environment of what is on a host: the machine's, without what leads past the lab, and with what the lab says.

Programs on a host get it, and inside ``with host:`` it is what ``os.environ`` shows, so that urllib, requests, httpx,
aiohttp and whatever else looks there sees no proxy of the machine's. What a cell sets inside a block is its own choice
and is shown. An ``httpx.Client`` that was made outside has read the machine's environment by then, and keeps to it.

Sources: curl(1) for the proxies' variables, libpq (section 32.15), hostname(7), resolv.conf(5).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from labkit.network import patches
from labkit.network.inside import current_host

# A notebook's kernel sets them for what `!program` prints into a cell. What is read as text comes without escapes.
COLOURED = ("FORCE_COLOR", "CLICOLOR_FORCE")
# Where a database is and how names are looked up: the machine's affair.
ELSEWHERE = frozenset(
    ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSERVICEFILE", "HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS")
)
# Where servers and tools of administration are, which Debian leaves out of an ordinary user's PATH (FHS 3.0, 4.10).
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """The machine's PATH, and behind it the folders that it may lack."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])


def stays_outside(name: str) -> bool:
    """Whether a variable is the machine's affair: http_proxy and all that end so, in both cases, and ELSEWHERE."""
    return name.lower().endswith("_proxy") or name in ELSEWHERE


def overridden() -> list[str]:
    """The machine's variables and files that what is on a host does not see, for ``labkit doctor``."""
    curl = Path(os.environ.get("CURL_HOME") or os.environ.get("HOME") or os.sep, ".curlrc")
    names = sorted(name for name in os.environ if stays_outside(name))
    return names + [str(curl)] * curl.is_file()


def configuration(directory: Path) -> dict[str, str]:
    """Variables by which programs read a configuration of the lab's instead of the user's: curl's may name a proxy."""
    Path(directory, ".curlrc").touch(mode=0o600)
    return {"CURL_HOME": str(directory), "WGETRC": os.devnull}


def of_programs(lab: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """What a program on a host gets: the machine's, the lab's, and what was asked for."""
    machine = {name: value for name, value in os.environ.items() if not stays_outside(name) and name not in COLOURED}
    return {**machine, "PATH": search_path(), **lab, **more}


def move_in() -> None:
    """In a process that was forked in a block: make what ``os.environ`` shows true, for what it executes."""
    shown = dict(os.environ)
    for name in list(_machine()):
        if name not in shown:
            os.unsetenv(name)
    for name, value in shown.items():
        os.putenv(name, value)


# Inside a block. Names are text here, also those of os.environb.

_chosen: set[str] = set()  # what was set inside a block


def _machine() -> Iterable[str]:
    return [os.fsdecode(name) for name in os.environ._data]  # type: ignore[attr-defined]


def _lab_value(name: str) -> str | None:
    host = current_host()
    return None if host is None or name in _chosen else host.lab.program_environment.get(name)


def _hidden(name: str) -> bool:
    return current_host() is not None and name not in _chosen and stays_outside(name)


def _text(name: Any) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else ""


def _getitem(original: Callable[..., Any]) -> Callable[..., Any]:
    def __getitem__(self: MutableMapping[Any, Any], key: Any) -> Any:
        if current_host() is None:
            return original(self, key)
        value = _lab_value(_text(key))
        if value is not None:
            return os.fsencode(value) if isinstance(key, bytes) else value
        if _hidden(_text(key)):
            raise KeyError(key)
        return original(self, key)

    return __getitem__


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    def __iter__(self: MutableMapping[Any, Any]) -> Iterator[Any]:
        host = current_host()
        if host is None:
            return original(self)  # type: ignore[no-any-return]
        machine = list(original(self))
        encode = os.fsencode if self is getattr(os, "environb", None) else str
        lab = [encode(name) for name in host.lab.program_environment]
        seen = [key for key in machine if not _hidden(_text(key))]
        return iter([*seen, *(key for key in lab if key not in seen and _lab_value(_text(key)) is not None)])

    return __iter__


def _len(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: original(self) if current_host() is None else sum(1 for _ in self)


def _setitem(original: Callable[..., Any]) -> Callable[..., Any]:
    def __setitem__(self: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        if current_host() is not None:
            if _lab_value(_text(key)) == _text(value):  # as it is, by who restores what he has seen
                return
            _chosen.add(_text(key))
        original(self, key, value)

    return __setitem__


def _delitem(original: Callable[..., Any]) -> Callable[..., Any]:
    def __delitem__(self: MutableMapping[Any, Any], key: Any) -> None:
        if current_host() is not None:
            if _hidden(_text(key)):
                raise KeyError(key)
            if _lab_value(_text(key)) is not None:
                _chosen.add(_text(key))
                if _text(key) not in _machine():
                    return
        original(self, key)

    return __delitem__


LAYER: patches.Layer = (
    (type(os.environ), "__getitem__", _getitem),
    (type(os.environ), "__iter__", _iter),
    (type(os.environ), "__len__", _len),
    (type(os.environ), "__setitem__", _setitem),
    (type(os.environ), "__delitem__", _delitem),
)


# urllib keeps what asks for pages, with the proxies that it found when the first was asked for.


def _urlopen(original: Callable[..., Any]) -> Callable[..., Any]:
    def urlopen(url: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:
        import urllib.request as module

        kept: Any = module._opener  # type: ignore[attr-defined]
        if current_host() is None or kwargs.get("context") is not None or not (kept is None or _of_machine(kept)):
            return original(url, data, *args, **kwargs)
        timeout = [args[0]] if args else [kwargs["timeout"]] if "timeout" in kwargs else []
        return module.build_opener().open(url, data, *timeout)

    return urlopen


def _of_machine(opener: Any) -> bool:
    """Whether an opener has proxies, and all are the machine's."""
    proxies = {url for each in opener.handlers for url in getattr(each, "proxies", {}).values()}
    machine = {os.fsdecode(value) for value in os.environ._data.values()}  # type: ignore[attr-defined]
    return bool(proxies) and proxies <= machine


LATE: patches.LateLayers = {"urllib.request": [("", "urlopen", _urlopen)]}
