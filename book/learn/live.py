"""``@recorded``: a measurement that is live where this machine can make it, and else shows the recorded run.

::

    @recorded
    def burst(lab, clients): ...

    burst(lab, 8)      # live, or what "burst, 8" of this section was when it was recorded

The recording is called as the function, with its arguments, in the folder of the section: that which gave the lab of a
notebook its name, or, for a lab without one, that of the module. So sections can share a measurement.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from labkit.errors import InvalidValue
from labkit.lab import Lab

P = ParamSpec("P")
T = TypeVar("T")
Run = Callable[Concatenate[Lab, P], T]


@overload
def recorded(function: Run[P, T]) -> Run[P, T]: ...
@overload
def recorded(*, needs: str) -> Callable[[Run[P, T]], Run[P, T]]: ...


def recorded(function: Any = None, *, needs: str = "kernel") -> Any:
    """Let a measurement give its recorded run where the lab's tier cannot make it (see ``Lab.live_or_recorded``).

    Args:
        function: takes the lab first, and then numbers, texts, True, False, None, or functions, by position.
        needs: "kernel" or "sysctls", what the run needs of the lab's tier: ``@recorded(needs="sysctls")``.

    Raises:
        InvalidValue: when it is called: an argument of another kind, or a lab without a name in a notebook.
    """
    if function is None:
        return functools.partial(recorded, needs=needs)

    @functools.wraps(function)
    def run(lab: Lab, *args: Any) -> Any:
        return lab.live_or_recorded(key_of(function, lab, args), function, lab, *args, needs=needs)

    return run


def key_of(function: Callable[..., Any], lab: Lab, args: tuple[Any, ...]) -> str:
    """The key under which a measurement's run is recorded, see ``recorded``."""
    module = function.__module__
    section = lab.name or (module.removeprefix("book.") if module.startswith("book.") else "")
    if not section:
        raise InvalidValue(
            f"runs of {function.__name__!r} are recorded for a section: give its id to the lab, Lab(name='https.tfo')"
        )
    return f"{section}/{', '.join([function.__name__, *map(_word, args)])}"


def _word(value: Any) -> str:
    if callable(value):
        return str(value.__name__)
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    raise InvalidValue(f"{value!r}: a recorded measurement takes numbers, texts and functions, which its name can tell")
