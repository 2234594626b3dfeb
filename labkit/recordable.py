"""Results that ``labkit.recorded`` can keep: each class registers itself, under its name, when it is defined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self


class Recordable(ABC):
    """A result that becomes plain data and comes back from it."""

    kinds: ClassVar[dict[str, type[Recordable]]] = {}

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.__name__] = cls

    @abstractmethod
    def as_data(self) -> dict[str, Any]:
        """Itself as a dictionary of what JSON takes. ``of_data`` is the way back."""

    @classmethod
    @abstractmethod
    def of_data(cls, data: Mapping[str, Any], tier: str | None = None) -> Self:
        """From what ``as_data`` gave; with a tier in place of the one in it, for instance that of a recorded run."""
