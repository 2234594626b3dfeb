"""A service whose program comes with a known package: where it is, and the one command that brings it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from labkit import checks
from labkit.errors import InvalidValue, ProgramNotFound
from labkit.network.host import Host
from labkit.services.configuration import find_program, own_ports
from labkit.services.service import Service

# Of Service; what comes with a package says the others itself.
OPTIONS = ("env", "name", "timeout_s", "stop", "patience_s", "background")


class Packaged(Service):
    """What RabbitMQ, PostgreSQL and the like have in common.

    Attributes:
        program: its name, for errors.
        install: the command that brings it.
    """

    program: ClassVar[str]
    install: ClassVar[str]

    @classmethod
    def path(cls) -> str | None:
        """Where its program is on this machine; None where it is not installed."""
        return find_program(cls.program)

    @classmethod
    def available(cls) -> bool:
        """Whether its program is installed here. ``install`` is the command that brings it."""
        return cls.path() is not None

    @classmethod
    def found(cls, host: Host) -> str:
        """Where its program is, which is to run on a host.

        Raises:
            InvalidValue: no host. ProgramNotFound: with the command that brings it.
        """
        checks.instance("host", host, Host, "a host of the lab, for instance lab.server")
        path = cls.path()
        if path is None:
            raise ProgramNotFound(
                f"{cls.__name__}: no program {cls.program!r} on this machine. To bring it: {cls.install}"
            )
        return path

    @classmethod
    def check_options(cls, others: Mapping[str, object]) -> None:
        """Raises InvalidValue for an option that no service has."""
        checks.options(others, OPTIONS, cls.__name__)

    @classmethod
    def ports_in(cls, host: Host, *texts: str | None) -> list[int]:
        """The ports on which a configuration lets it listen. Raises InvalidValue where it names none of this host."""
        given = [checks.text("configuration", text) for text in texts if text is not None]
        ports = own_ports(host, given)
        if not ports:
            raise InvalidValue(
                f"{cls.__name__}: the configuration does not say where it listens on {host.name}: write an address of "
                f"that host with its port, for instance {host.fqdn}:80"
            )
        return ports
