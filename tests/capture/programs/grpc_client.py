"""Calls every method of grpc_server.py once, the last one with a deadline that passes."""

from __future__ import annotations

import sys

import grpc


def main(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary("/lab.Echo/Repeat")(b"hello") == b"hello"
        assert list(channel.unary_stream("/lab.Echo/Three")(b"x" * 1000)) == [b"x" * 1000] * 3
        for method, code in (("Fail", grpc.StatusCode.NOT_FOUND), ("None", grpc.StatusCode.UNIMPLEMENTED)):
            assert failure(channel, method, 10) == code
        assert failure(channel, "Wait", 0.3) == grpc.StatusCode.DEADLINE_EXCEEDED


def failure(channel: grpc.Channel, method: str, timeout_s: float) -> grpc.StatusCode:
    try:
        channel.unary_unary(f"/lab.Echo/{method}")(b"hello", timeout=timeout_s)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


if __name__ == "__main__":
    main(sys.argv[1])
