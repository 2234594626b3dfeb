"""What servers and clients need of a host: a protocol, so that this floor stands alone."""

from __future__ import annotations

from typing import Any, Protocol


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
