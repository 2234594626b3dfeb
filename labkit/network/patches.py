"""What is replaced in other modules while a lab is open, and put back when the last one closes.

A layer lists functions and methods, each with what wraps the one that was there. Layers lie above each other: one for
every lab, one more for a lab on 127.0.0.1. Some belong to modules that may be imported later or never: such a layer
waits for its module.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Owner, name, what wraps the function that was there.
Layer = tuple[tuple[Any, str, Callable[[Any], Any]], ...]
# By a module's name: a class of it ("" for the module itself), name, and the same.
LateLayers = Mapping[str, Sequence[tuple[str, str, Callable[[Any], Any]]]]

_lock = threading.RLock()  # the collector may end a forgotten lab in the middle of opening another
_labs_open: dict[Layer, int] = {}  # by what they need replaced, the lowest layer first
_originals: dict[tuple[Any, str], tuple[Any, Any]] = {}  # what the owner itself had (None: inherited), what it did


def reserve(layer: Layer) -> None:
    """Its place is below all that are installed later, whichever is needed first."""
    _labs_open.setdefault(layer, 0)


def install(layer: Layer) -> None:
    """Count one lab more that needs a layer; with the first one, put it in place."""
    _count(layer, 1)


def uninstall(layer: Layer) -> None:
    """Count one lab less; with the last one, put back what was there."""
    _count(layer, -1)


def _count(layer: Layer, change: int) -> None:
    with _lock:
        before = _labs_open.get(layer, 0)
        _labs_open[layer] = before + change
        if bool(before) == bool(before + change):
            return
        wraps: dict[tuple[Any, str], list[Callable[[Any], Any]]] = {key: [] for key in _originals}
        for each, labs in _labs_open.items():
            for owner, name, wrap in each if labs else ():
                wraps.setdefault((owner, name), []).append(wrap)
        for (owner, name), wanted in wraps.items():
            own, function = _originals.setdefault((owner, name), (vars(owner).get(name), getattr(owner, name)))
            for wrap in wanted:
                function = functools.wraps(function)(wrap(function))
            if wanted:
                setattr(owner, name, staticmethod(function) if isinstance(own, staticmethod) else function)
                continue
            del _originals[owner, name]
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


class Late:
    """Layers of modules that may not be loaded yet: each is put in place when its module is there."""

    def __init__(self, layers: LateLayers) -> None:
        self._layers = layers
        self._labs = 0
        self._placed: dict[str, Layer] = {}

    def install(self) -> None:
        """Count one lab more; with the first one, serve the modules that are there and look out for the others."""
        with _lock:
            self._labs += 1
            if self._labs == 1:
                sys.meta_path.insert(0, self)
                for name in self._layers:
                    # One that is being imported in another thread has its finder behind it: it is there in a moment.
                    if name in sys.modules:
                        self._place(sys.modules[name])

    def uninstall(self) -> None:
        """Count one lab less; with the last one, put back what was there."""
        with _lock:
            self._labs -= 1
            if self._labs == 0:
                sys.meta_path.remove(self)
                for layer in self._placed.values():
                    uninstall(layer)
                self._placed.clear()

    def _place(self, module: ModuleType) -> None:
        name = module.__name__
        with _lock:
            if self._labs and name not in self._placed:
                wanted = (
                    (getattr(module, of, None) if of else module, at, wrap) for of, at, wrap in self._layers[name]
                )
                self._placed[name] = tuple(each for each in wanted if hasattr(each[0], each[1]))  # versions differ
                install(self._placed[name])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For a module that a layer waits for: what the other finders find, and the layer after it."""
        if fullname not in self._layers:
            return None
        others = (each for each in list(sys.meta_path) if each is not self)
        found = (each.find_spec(fullname, path, target) for each in others)
        spec = next((spec for spec in found if spec), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._place)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads a module as its own loader does, and tells when it is there."""

    def __init__(self, loader: Any, loaded: Callable[[ModuleType], None]) -> None:
        self._loader, self._loaded = loader, loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # whoever asks the module for its loader, for its source say, gets its own
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._loaded(module)
