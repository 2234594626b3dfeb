"""The notebook server behind this kernel, where there is one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def about_server() -> dict[str, Any]:
    """What the notebook server keeps in its file about itself: "url", "base_url", "token"; {} without one."""
    from jupyter_core.paths import jupyter_runtime_dir

    # A kernel is told its notebook server's process id, and the notebook server keeps a file about itself.
    path = Path(jupyter_runtime_dir(), f"jpserver-{os.environ.get('JPY_PARENT_PID')}.json")
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def base_url() -> str | None:
    """The path below which this kernel's notebook server answers: "/", "/user/ada/". None where there is none."""
    if prefix := os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):
        return prefix
    found = about_server().get("base_url")
    return None if found is None else str(found)
