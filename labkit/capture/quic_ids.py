"""Which QUIC connection a packet belongs to: its connection IDs say so, whatever address it comes from.

Each side chooses the IDs by which it wants to be reached, and brings more of them in NEW_CONNECTION_ID frames. An ID of
no bytes leaves only the addresses. A client's address may change, a server's stays, so an ID is looked for beside the
server's address first.

Source: RFC 9000 sections 5.1 (connection IDs), 5.2 (matching packets to connections), 10.3 (Stateless Reset).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from labkit.capture.protocol import Endpoint
from labkit.capture.quic_connection import Connection

_UNIQUE = 8  # bytes of an ID from which on it is not repeated by chance (RFC 9000 section 7.2)


class Identities:
    """The connections of a capture by what identifies their packets.

    "Whose" a packet is means: of which connection, and whether its client sent it.
    """

    def __init__(self) -> None:
        self._beside: dict[tuple[Endpoint, bool, bytes], tuple[Connection, bool]] = {}
        self._anywhere: dict[bytes, tuple[Connection, bool]] = {}
        self._lengths: dict[tuple[Endpoint, bool], set[int]] = {}
        self._long_lengths: set[int] = set()
        self._paths: dict[tuple[Endpoint, Endpoint], deque[tuple[Connection, bool]]] = {}
        self._tokens: dict[bytes, tuple[Connection, bool]] = {}

    def add_id(self, connection: Connection, chosen_by_client: bool, connection_id: bytes) -> None:
        """Learn by which ID one side wants to be reached."""
        connection.id_lengths[chosen_by_client] = len(connection_id)
        if not connection_id:
            return
        whose = (connection, not chosen_by_client)
        self._beside[connection.server, not chosen_by_client, connection_id] = whose
        self._lengths.setdefault((connection.server, not chosen_by_client), set()).add(len(connection_id))
        if len(connection_id) >= _UNIQUE:
            self._anywhere[connection_id] = whose
            self._long_lengths.add(len(connection_id))

    def add_token(self, connection: Connection, chosen_by_client: bool, token: bytes) -> None:
        """Learn what one side ends a Stateless Reset with."""
        self._tokens[token] = (connection, chosen_by_client)

    def add_path(self, connection: Connection, from_client: bool, source: Endpoint, destination: Endpoint) -> None:
        """Learn where packets of a connection were seen: the latest connection of two addresses counts most."""
        for path, side in (((source, destination), from_client), ((destination, source), not from_client)):
            known = self._paths.setdefault(path, deque(maxlen=2))
            if not known or known[0] != (connection, side):
                known.appendleft((connection, side))

    def long(self, source: Endpoint, destination: Endpoint, connection_id: bytes) -> list[tuple[Connection, bool]]:
        """Return whose a packet with a long header can be, the most likely first."""
        found = [
            self._beside.get((destination, True, connection_id)),
            self._beside.get((source, False, connection_id)),
            self._anywhere.get(connection_id),
        ]
        whose = [one for one in found if one is not None]
        return list(dict.fromkeys(whose)) or list(self._paths.get((source, destination), ()))

    def short(
        self, source: Endpoint, destination: Endpoint, data: bytes
    ) -> Iterator[tuple[Connection, bool, int, bool]]:
        """Yield whose a packet with a short header can be, its ID's length, and whether the ID was found."""
        seen = set()
        for server, from_client in ((destination, True), (source, False)):
            for length in sorted(self._lengths.get((server, from_client), ()), reverse=True):
                whose = self._beside.get((server, from_client, data[1 : 1 + length]))
                if whose is not None and whose not in seen:
                    seen.add(whose)
                    yield (*whose, length, True)
        for length in sorted(self._long_lengths, reverse=True):
            whose = self._anywhere.get(data[1 : 1 + length])
            if whose is not None and whose not in seen:
                seen.add(whose)
                yield (*whose, length, True)
        for connection, from_client in self._paths.get((source, destination), ()):
            if (connection, from_client) not in seen:
                yield connection, from_client, connection.id_lengths.get(not from_client, 0), False

    def reset(self, data: bytes) -> tuple[Connection, bool] | None:
        """Return whose Stateless Reset a datagram is, if it is one."""
        return self._tokens.get(data[-16:])
