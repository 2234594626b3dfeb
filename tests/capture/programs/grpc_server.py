"""A server of gRPC whose messages are bytes: it says them again, once or three times, fails, or never answers."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import grpc


def repeat(request: bytes, context: grpc.ServicerContext) -> bytes:
    return request


def three(request: bytes, context: grpc.ServicerContext):
    yield from [request] * 3


def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, "not here")
    return b""


def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
    cancelled = Event()
    context.add_callback(cancelled.set)
    cancelled.wait(10)
    return b""


def main(address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {"Repeat": unary(repeat), "Fail": unary(fail), "Wait": unary(wait)}
    handlers["Three"] = grpc.unary_stream_rpc_method_handler(three)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Echo", handlers),))
    assert server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
