"""A server for one file that may come in several pieces: it keeps what has arrived, and says how far it is.

``HEAD`` asks for the offset, ``PATCH`` goes on from there, as in draft-ietf-httpbis-resumable-upload, in small. With
``PUT`` the file begins anew.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import h11

from labkit.servers.hosts import HostLike
from labkit.servers.threaded import ThreadedServer


class Cut(ConnectionError):
    """The end of a connection that this server was told to cut, or that a later request has taken over from."""


class UploadServer(ThreadedServer):
    """One file, a thread for each connection.

    Args:
        host: where it listens.
        port: 0 for a free one.
        cuts: for each of the first requests with a body: after how many bytes of it the connection is closed; None
            takes the whole body, and closes before the response. A body that ends before its cut leaves the rest of the
            cut to the next request.
        silent: the how-manieth HEAD gets no response, counted from 1; 0 for none.

    Attributes:
        content: what has arrived of the file.
        progress: after each piece that came, when (monotonic, seconds) and how much was there.
        connections: how many were accepted.
        received: bytes of bodies; not those that came on an old connection when a later request was there.
        refused: of each request with an offset that is not the file's: that offset, and the file's.
        told: the largest offset that a response has told.
    """

    def __init__(self, host: HostLike, port: int = 0, cuts: Sequence[int | None] = (), silent: int = 0) -> None:
        super().__init__(host, port, scheme="http", name=None, backlog=16)
        self.content = bytearray()
        self.progress: list[tuple[float, int]] = []
        self.connections = self.received = self.told = 0
        self.refused: list[tuple[int, int]] = []
        self._cuts = list(cuts)
        self._silent = silent
        self._turn = object()  # of the latest request: what an earlier one still brings is late
        self._turns = threading.Lock()
        self._start()

    def _converse(self, connection: socket.socket, peer: str) -> None:
        self.connections += 1
        http = h11.Connection(h11.SERVER)
        while http.our_state is h11.IDLE:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Request):
                status = self.answer(http, event, connection)
                offset = len(self.content)
                fields = {"Upload-Offset": str(offset), "Content-Length": "0"}
                response = h11.Response(status_code=status, headers=list(fields.items()))
                connection.sendall((http.send(response) or b"") + (http.send(h11.EndOfMessage()) or b""))
                self.told = max(self.told, offset)
                if http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    http.start_next_cycle()
            else:
                return

    def answer(self, http: h11.Connection, request: h11.Request, connection: socket.socket) -> int:
        """Take a request's body as it comes. Returns the status."""
        with self._turns:
            mine = self._turn = object()
            if request.method == b"PUT":
                self._keep(0, b"")
            offset = int(dict(request.headers).get(b"upload-offset", b"0"))
            if request.method == b"HEAD":
                self._silent -= 1
                if self._silent == 0:
                    raise Cut("before the response to HEAD")
        if request.method != b"HEAD" and offset != len(self.content):
            self.refused.append((offset, len(self.content)))
            return 409
        cut = self._cuts.pop(0) if self._cuts and request.method != b"HEAD" else -1
        taken = 0
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Data):
                piece = bytes(event.data) if cut is None or cut < 0 else bytes(event.data)[: cut - taken]
                with self._turns:
                    if self._turn is not mine:
                        raise Cut("a later request goes on")
                    self._keep(offset + taken, piece)
                taken += len(piece)
                if taken == cut:
                    raise Cut(f"after {taken} bytes")
        if cut is None:
            raise Cut("before the response")
        if cut > taken:
            self._cuts.insert(0, cut - taken)
        return 200

    def _keep(self, offset: int, piece: bytes) -> None:
        self.content[offset:] = piece
        self.received += len(piece)
        self.progress.append((time.monotonic(), len(self.content)))
