"""What cannot be is said at once, and leaves nothing half open."""

from __future__ import annotations

import errno
import gc
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import InvalidValue, Lab, LabClosed, Link, NameTaken
from labkit.network import inside, network, patches


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Keep the collector to what these tests make: `nothing_left` runs it twice for each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: no directory, descriptor, thread or child process more than before."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), children()
    yield
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert (len(os.listdir("/proc/self/fd")), threading.active_count(), children()) == before
    assert not any(patches._labs_open.values())


def children() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"rtt_ms": -1}, "rtt_ms=-1"),
        ({"rtt_ms": math.nan}, "rtt_ms=nan"),
        ({"rtt_ms": math.inf}, "rtt_ms=inf"),
        ({"rtt_ms": True}, "rtt_ms=True"),
        ({"rtt_ms": "40"}, "rtt_ms='40'"),
        ({"rtt_ms": None}, "rtt_ms=None"),
        ({"loss": 2}, "loss=2"),
        ({"loss": -0.1}, "loss=-0.1"),
        ({"rate_mbps": 0}, "rate_mbps=0"),
        ({"jitter_ms": math.nan}, "jitter_ms=nan"),
        ({"hosts": "proxy"}, "hosts='proxy'"),
        ({"hosts": ["Proxy"]}, "'Proxy'"),
        ({"hosts": ["a-b"]}, "'a-b'"),
        ({"hosts": [""]}, "''"),
        ({"hosts": [5]}, "5"),
        ({"hosts": ["../etc"]}, "etc"),
        ({"hosts": ["localhost"]}, "'localhost'"),
        ({"hosts": ["close"]}, "'close'"),
        ({"hosts": ["wire"]}, "'wire'"),
        ({"hosts": ["hosts"]}, "'hosts'"),
        ({"hosts": ["directory"]}, "'directory'"),
        ({"hosts": ["rtt_ms"]}, "'rtt_ms'"),
        ({"hosts": {"proxy": 5}}, "'proxy'"),
        ({"hosts": [f"h{number}" for number in range(300)]}, "302"),
        ({"hosts": 5}, "hosts=5"),
        ({"seed": "one"}, "seed='one'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"name": 5}, "name=5"),
    ],
)
def test_a_lab_that_cannot_be(arguments: dict[str, object], quoted: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Lab(**arguments)  # type: ignore[arg-type]
    assert quoted in str(caught.value)


def test_every_attribute_of_a_lab_is_reserved() -> None:
    with Lab(rtt_ms=0) as lab:
        public = {name for name in vars(lab) if not name.startswith("_")}
    assert public <= network.RESERVED


@pytest.mark.parametrize("hosts", [["client"], ["proxy", "proxy"]])
def test_a_host_that_is_there_already(hosts: list[str]) -> None:
    with pytest.raises(NameTaken, match=hosts[-1]):
        Lab(hosts=hosts)


def test_a_host_added_twice() -> None:
    with Lab(rtt_ms=0) as lab:
        with pytest.raises(NameTaken, match="'server'"):
            lab.add_host("server")
        with pytest.raises(InvalidValue):
            lab.add_host("no such")
        lab.add_host("third")
        with lab.third, socket.create_server(("", 80)), lab.client:
            socket.create_connection(("third.lab", 80)).close()


def test_links_that_cannot_be() -> None:
    with Lab(rtt_ms=4) as lab:
        before = lab.client.link
        for changes in ({"latency": 5}, {"loss": 2}, {"loss": math.nan}, {"rtt_ms": True}, {"rtt_ms": 5, "loss": -1}):
            with pytest.raises(InvalidValue, match=next(iter(changes)) if len(changes) == 1 else "loss"):
                lab.set_link(**changes)  # type: ignore[arg-type]
        assert lab.client.link == before
        with pytest.raises(InvalidValue):
            Link(queue_ms=-1)


def test_hosts_that_are_not_there() -> None:
    with Lab(rtt_ms=0) as lab:
        with pytest.raises(InvalidValue, match=r"'proxy'.*client, server"):
            lab["proxy"]
        with pytest.raises(AttributeError, match=r"'proxy'.*client, server"):
            lab.proxy  # noqa: B018
        with pytest.raises(InvalidValue, match="'proxy'"):
            lab.capture(at="proxy")
        assert not hasattr(lab, "proxy")


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((socket.AF_INET, socket.SOCK_STREAM, 17), errno.EPROTONOSUPPORT),
        ((socket.AF_INET, 99, 0), errno.EINVAL),
        ((socket.AF_INET, socket.SOCK_SEQPACKET, 0), errno.ESOCKTNOSUPPORT),
        ((socket.AF_INET6, socket.SOCK_DGRAM, 6), errno.EPROTONOSUPPORT),
        ((socket.AF_INET, socket.SOCK_STREAM, 1 << 40), errno.EINVAL),
        ((socket.AF_NETLINK, socket.SOCK_RAW, 200), errno.EPROTONOSUPPORT),
    ],
)
def test_the_kernels_errors_are_its_own_and_end_nothing(arguments: tuple[int, int, int], number: int) -> None:
    with Lab(rtt_ms=0) as lab, lab.client:
        with pytest.raises(OSError, match=r".") as caught:
            socket.socket(*arguments)
        assert caught.value.errno == number
        socket.socket().close()


def test_errors_of_sockets_in_use() -> None:
    with Lab(rtt_ms=0) as lab, lab.client, socket.create_server(("", 80)):
        with pytest.raises(OSError, match=r".") as caught:
            socket.create_server(("", 80))
        assert caught.value.errno == errno.EADDRINUSE
        with socket.socket() as sock, pytest.raises(OSError, match=r".") as caught:
            sock.bind(("10.9.9.9", 80))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(OSError, match=r".") as caught:
            socket.create_connection(("10.9.9.9", 80))
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("server.lab", 80))


def test_a_closed_lab_says_so() -> None:
    lab = Lab(rtt_ms=0, name="the closed one")
    client, wire = lab.client, lab.wire
    lab.close()
    lab.close()
    uses: list[Callable[[], object]] = [
        client.__enter__,
        client.socket,
        lambda: client.run(["true"]),
        lambda: client.start(["true"]),
        lambda: client.sysctl["net.ipv4.tcp_fastopen"],
        lambda: client.counters,
        lambda: lab.set_link(rtt_ms=5),
        lambda: wire.counts,
        lambda: wire.drop(),
        lab.capture,
        lab.__enter__,
        lambda: lab.add_host("third"),
    ]
    for use in uses:
        with pytest.raises(LabClosed, match="the closed one is closed: run the cell"):
            use()
    assert "closed" in repr(lab)
    assert "closed" in repr(client)


def test_a_lab_closed_inside_a_block() -> None:
    lab = Lab(rtt_ms=0)
    with lab.client:
        lab.close()
        with pytest.raises(LabClosed):
            inside.current_host().socket()  # type: ignore[union-attr]
        socket.socket().close()  # the library's own functions are back
    assert inside.current_host() is None
