"""What servers and clients need of a host: a protocol, so that this floor stands alone."""

from __future__ import annotations

from typing import Any, Protocol

from labkit import checks


class HostLike(Protocol):
    """The part of a host that servers and clients use. Inside ``with host:`` new sockets are the host's."""

    @property
    def name(self) -> str: ...

    @property
    def fqdn(self) -> str: ...

    @property
    def ip(self) -> str: ...

    @property
    def lab(self) -> Any:
        """A labkit.Lab, of which a server uses ``register`` and ``authority``. Not typed: it is of a higher floor."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exc: object) -> None: ...


def check_host(name: str, value: object) -> None:
    """Raises InvalidValue for what is no host."""
    if not all(hasattr(value, needed) for needed in ("fqdn", "ip", "lab")):
        raise checks.wrong(name, value, "give a host of the lab, for instance lab.server")
