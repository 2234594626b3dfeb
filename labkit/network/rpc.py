"""Requests to the lab's processes: one JSON message each, with descriptors, answered on a socket of its own.

The request carries one end of a fresh socket pair, and the answer comes back on that pair. So requests from
several threads need no lock, and one that a KeyboardInterrupt cut off cannot leave its answer to the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

MAX_MESSAGE_BYTES = 1 << 18
MAX_DESCRIPTORS = 8

Reply = dict[str, Any]
Handler = Callable[[dict[str, Any], list[int], socket.socket], "tuple[Reply, list[int]] | None"]


class Disconnected(Exception):
    """The process at the other end has gone."""


def receive(sock: socket.socket) -> tuple[Reply, list[int]]:
    """One message and its descriptors. Raises Disconnected at the end of the stream."""
    try:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
    except ConnectionError as exc:
        raise Disconnected from exc
    if not data:
        raise Disconnected
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return json.loads(data), list(descriptors)


def send(sock: socket.socket, message: Reply, descriptors: Sequence[int] = ()) -> None:
    """One message with descriptors (copies; the caller keeps its own). Raises Disconnected."""
    try:
        socket.send_fds(sock, [json.dumps(message).encode()], descriptors)
    except (BrokenPipeError, ConnectionError) as exc:
        raise Disconnected from exc


def open_request(control: socket.socket, request: Reply, descriptors: Sequence[int] = ()) -> socket.socket:
    """Send a request; the answers come on the socket returned, which the caller closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        send(control, request, [theirs.fileno(), *descriptors])
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def call(
    control: socket.socket, request: Reply, descriptors: Sequence[int] = (), timeout_s: float = 20.0
) -> tuple[Reply, list[int]]:
    """Send a request and wait for its one answer.

    Raises:
        OSError: the kernel refused; number and text are the kernel's.
        Disconnected: the process has gone.
        TimeoutError: no answer in `timeout_s` seconds.
    """
    with open_request(control, request, descriptors) as answer:
        # Waiting is one thing and taking another: an interrupt ends the wait, and loses no descriptor with it.
        poll = select.poll()
        poll.register(answer, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise TimeoutError(f"no answer in {timeout_s:g} s")
        reply, received = receive(answer)
    if "errno" in reply:
        raise OSError(reply["errno"], reply["error"])
    return reply, received


def answer_one(control: socket.socket, handlers: dict[str, Handler]) -> None:
    """Take one request from `control`, let its handler answer. An error is the answer, never the end.

    A handler returns its reply and the descriptors to pass (closed here once they are sent), or None when it
    keeps the reply socket to answer later.
    """
    request, descriptors = receive(control)
    reply_socket = socket.socket(fileno=descriptors[0])
    keep = False
    try:
        try:
            outcome = handlers[request["op"]](request, descriptors[1:], reply_socket)
        except OSError as exc:
            outcome = ({"errno": exc.errno or errno.EIO, "error": exc.strerror or str(exc)}, [])
        except Exception as exc:  # a value that Python itself refuses, such as a protocol number above 2**31
            outcome = ({"errno": errno.EINVAL, "error": f"{type(exc).__name__}: {exc}"}, [])
        if outcome is None:
            keep = True
            return
        reply, passed = outcome
        with contextlib.suppress(Disconnected):  # the caller was interrupted and has stopped waiting
            send(reply_socket, reply, passed)
        for descriptor in passed:
            os.close(descriptor)
    finally:
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        if not keep:
            reply_socket.close()
