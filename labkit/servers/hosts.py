"""What servers and clients need of a lab and of its hosts: two protocols, so that this floor stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from labkit.servers.authority import Authority


class Closable(Protocol):
    """Anything that a lab can own."""

    def close(self) -> None: ...


class LabLike(Protocol):
    """The part of a lab that servers use."""

    @property
    def directory(self) -> Path:
        """Mode 0700, removed with the lab."""

    @property
    def keylog_path(self) -> Path:
        """TLS secrets in the NSS key log format; everything that speaks TLS appends to it."""

    @property
    def authority(self) -> Authority:
        """The certificate authority that its servers and clients trust."""

    def register(self, owned: Closable, name: str | None = None) -> None:
        """Close `owned` with the lab, and its predecessor of the same name now."""


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
        """A LabLike. Not typed as one, because a Host stands on a lower floor and knows only its Network."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exc: object) -> None: ...
