"""Says a few things over a WebSocket, fragments and a ping among them, compressed where the server agrees."""

from __future__ import annotations

import sys
from contextlib import suppress

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def main(url: str) -> None:
    with connect(url, compression="deflate") as connection:
        for message in ("hello", "hello " * 200, bytes(range(256))):
            connection.send(message)
            assert connection.recv() == message
        connection.send(["in ", "three ", "parts"])
        assert connection.recv() == "in three parts"
        assert connection.ping().wait(10)
        connection.send("bye")
        assert connection.recv() == "bye"
        with suppress(ConnectionClosed):
            connection.recv()
        assert connection.close_code == 4000


if __name__ == "__main__":
    main(sys.argv[1])
