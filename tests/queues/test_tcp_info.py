"""TCP_INFO: of a socket, over time, and as a picture."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from processes import ORDINARY

from labkit import InvalidValue, Lab
from labkit.plots import plot_tcp
from labkit.queues.history import History, TcpHistory
from labkit.queues.tcp_info import INFINITE, TcpInfo, parse, tcp_info
from labkit.waiting import wait_until

SIZE = 400_000


def test_an_older_kernel_tells_less_and_nothing_is_invented() -> None:
    whole = bytearray(232)
    struct.pack_into("=B", whole, 1, 3)
    struct.pack_into("=8I", whole, 24, 20, 3, 2, 1, 0, 0, 0, 0)
    struct.pack_into("=4I", whole, 68, 40_000, 5_000, INFINITE, 10)
    struct.pack_into("=Q", whole, 160, 2**40)
    told = parse(bytes(whole))
    assert (told.ca_state, told.in_flight, told.lost, told.cwnd) == (3, 16, 2, 10)
    assert (told.rtt_us, told.rttvar_us, told.ssthresh, told.delivery_rate) == (40_000, 5_000, 0, 2**40)
    for length in range(233):
        shorter = parse(bytes(whole[:length]))
        assert all(value in (0, there) for value, there in zip(shorter, told, strict=True) if there != told.in_flight)


@pytest.fixture(scope="module")
def lossy() -> Iterator[tuple[Lab, History, TcpInfo]]:
    """A transfer of which one segment got lost, watched at the sender, and what its socket said at the end."""
    with Lab(rtt_ms=10) as lab:
        with lab.server:
            listener = socket.create_server(("", 80))
        with lab.client:
            client = socket.create_connection(("server.lab", 80))
        accepted, _ = listener.accept()
        with client, accepted, listener, lab.watch(80, tcp=True) as watch:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SIZE)
            with lab.wire.drop(source="server", payload=True, skip=30, count=1) as rule:
                accepted.sendall(bytes(SIZE))
                got = 0
                while got < SIZE:
                    got += len(client.recv(65536))
                assert rule.acted == 1
            wait_until(lambda: tcp_info(accepted).bytes_acked >= SIZE)
            info = tcp_info(accepted)
            wait_until(lambda: next(iter(watch.so_far().tcp.values())).bytes_acked.last == info.bytes_acked)
        yield lab, watch.history, info


def test_a_loss_is_seen_in_the_window_and_the_counters(lossy: tuple[Lab, History, TcpInfo]) -> None:
    _, history, info = lossy
    (connection,) = history.tcp.values()
    assert connection.cwnd.values[0] == 10  # RFC 6928
    assert connection.ssthresh.values[0] == 0
    assert connection.ssthresh.last == info.ssthresh > 0
    assert connection.retransmissions.last == info.retransmissions >= 1
    assert connection.ca_state.peak >= 3  # Recovery, or Loss
    assert connection.in_flight.peak > 1
    assert connection.min_rtt_us.last == info.min_rtt_us >= 10_000
    assert connection.mss.last == info.mss == 1448
    assert connection.busy_us.last > 0
    assert set(history.connections) == set(history.tcp)


def test_the_fields_of_a_history_are_those_of_a_moment() -> None:
    assert tuple(TcpHistory.__dataclass_fields__) == TcpInfo._fields


def test_a_history_comes_back_from_its_record(lossy: tuple[Lab, History, TcpInfo]) -> None:
    _, history, _ = lossy
    again = History.of_data(json.loads(json.dumps(history.as_data())))
    assert {client: each.cwnd.values for client, each in again.tcp.items()} == {
        client: each.cwnd.values for client, each in history.tcp.items()
    }


def test_the_picture_says_what_happened(lossy: tuple[Lab, History, TcpInfo]) -> None:
    _, history, info = lossy
    picture = plot_tcp(history)
    assert f"{info.retransmissions} sent again" in picture.alt
    assert "tier: kernel" in picture.figure.get_supxlabel()
    assert picture.png().startswith(b"\x89PNG")
    with pytest.raises(InvalidValue, match="client='nobody'"):
        plot_tcp(history, "nobody")


def test_without_tcp_there_is_none(lab: Lab) -> None:
    with lab.watch(80) as watch:
        pass
    assert watch.history.tcp == {}
    assert "tcp" not in watch.history.as_data()
    with pytest.raises(InvalidValue, match="tcp=True"):
        plot_tcp(watch.history)
    with pytest.raises(InvalidValue, match="tcp=1"):
        lab.watch(80, tcp=1)  # type: ignore[arg-type]


def test_each_socket_has_the_algorithm_that_it_asks_for(lab: Lab) -> None:
    there = lab.client.congestion_controls
    assert "reno" in there
    for name in there:
        with lab.client.socket() as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == name.encode()


ALGORITHMS = """
import socket
from labkit import Lab
with Lab(rtt_ms=0) as lab:
    for name in lab.client.congestion_controls:
        with lab.client.socket() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    print("all of them")
"""


def test_an_ordinary_user_may_choose_each_of_them(python: Callable[..., object]) -> None:
    process = python(ALGORITHMS, prefix=ORDINARY)
    assert process.communicate(timeout=60) == ("all of them\n", "")  # type: ignore[attr-defined]
