"""matplotlib as it comes, whatever the user's machine says: pictures look the same everywhere, and none is lost.

A matplotlibrc that asks for TeX where there is none, or MPLBACKEND with an unknown name, would fail when a measurement
is over. What the file has set is set back, for this process; what code in this process has set stays. Pictures use no
backend, so that of the user stays, too.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any


def _matplotlib() -> Any:
    """The package. It cannot be imported while MPLBACKEND names no backend, nor a second time after that."""
    chosen = os.environ.pop("MPLBACKEND", "") if "matplotlib" not in sys.modules else ""
    import matplotlib

    if chosen:
        os.environ["MPLBACKEND"] = chosen
        try:
            matplotlib.rcParams["backend"] = chosen  # as matplotlib itself does
        except ValueError:
            warnings.warn(f"MPLBACKEND={chosen!r} is no backend of matplotlib: it is left out", stacklevel=2)
    return matplotlib


def set_back() -> None:
    """Set back what a matplotlibrc has set and nothing else has changed since, but for the backend."""
    matplotlib = _matplotlib()
    now, file, default = matplotlib.rcParams, matplotlib.rcParamsOrig, matplotlib.rcParamsDefault
    for name in default.keys() - {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}:
        if file[name] != default[name] and now[name] == file[name]:
            now[name] = default[name]


set_back()
