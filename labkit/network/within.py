"""All that ``with host:`` needs while a lab is open: put in place with the first lab, taken away with the last."""

from __future__ import annotations

from labkit.network import children, environment, libraries, patches, pools, sockets

LAYERS = (sockets.LAYER, environment.LAYER, children.LAYER)
LATE = patches.Late({**children.LATE, **environment.LATE, **libraries.LATE, **pools.LATE})


def install() -> None:
    """Count one lab more."""
    for layer in LAYERS:
        patches.install(layer)
    LATE.install()


def uninstall() -> None:
    """Count one lab less."""
    LATE.uninstall()
    for layer in LAYERS:
        patches.uninstall(layer)
