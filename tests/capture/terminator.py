"""TLS in front of a server that has none: real bytes of a real client under TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from labkit import Lab


@contextlib.asynccontextmanager
async def tls_in_front(lab: Lab, port: int, behind: int, alpn: str, *, asked: int = 0) -> AsyncIterator[None]:
    """Listen on a port of the lab's server, end TLS, and carry one connection to the server behind.

    Args:
        asked: bytes in the clear with which the client asks for TLS; they are answered with "S", as PostgreSQL does.
    """
    finished = asyncio.Event()

    async def terminate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked:
            await reader.readexactly(asked)
            writer.write(b"S")
        await writer.start_tls(lab.authority.server_context(lab.server.fqdn, alpn=[alpn]))
        with lab.server:
            to_server = await asyncio.open_connection(lab.server.ip, behind)
        await asyncio.gather(carry(reader, to_server[1]), carry(to_server[0], writer))
        finished.set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    with lab.server:
        server = await asyncio.start_server(terminate, lab.server.ip, port)
    async with server:
        yield
        await asyncio.wait_for(finished.wait(), 10)
