"""A host's kernel settings and counters."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from labkit import InvalidValue, Lab, LabError


def test_settings_belong_to_their_host(lab: Lab) -> None:
    name = "net.ipv4.tcp_max_syn_backlog"
    before = lab.client.sysctl[name]
    lab.server.sysctl[name] = 77  # type: ignore[assignment]  # numbers are taken too
    assert lab.server.sysctl[name] == "77"
    assert lab.client.sysctl[name] == before
    with open("/proc/sys/" + name.replace(".", "/")) as file:
        assert file.read().strip() != "77"
    assert lab.server.run(["cat", "/proc/sys/net/ipv4/tcp_max_syn_backlog"]).stdout == "77\n"


def test_settings_are_a_mapping(lab: Lab) -> None:
    names = set(lab.client.sysctl)
    assert {"net.ipv4.tcp_fastopen", "net.core.somaxconn"} <= names
    assert all(name.startswith("net.") for name in names)
    assert "net.ipv4.tcp_fastopen" in lab.client.sysctl
    assert "net.ipv4.no_such" not in lab.client.sysctl


@pytest.mark.parametrize("name", ["kernel.hostname", "net/ipv4/ip_forward", "net...kernel.hostname", "", 5])
def test_settings_of_the_machine_are_out_of_reach(lab: Lab, name: str) -> None:
    with pytest.raises(InvalidValue):
        lab.client.sysctl[name]
    with pytest.raises(InvalidValue):
        lab.client.sysctl[name] = "1"


def test_settings_that_cannot_be(lab: Lab) -> None:
    with pytest.raises(KeyError):
        lab.client.sysctl["net.ipv4.no_such"]
    with pytest.raises(KeyError):
        lab.client.sysctl["net.ipv4.no_such"] = "1"
    with pytest.raises(KeyError):
        lab.client.sysctl["net.ipv4"]
    with pytest.raises(LabError, match="Invalid argument"):
        lab.client.sysctl["net.ipv4.tcp_fastopen"] = "many"
    with pytest.raises(InvalidValue):
        del lab.client.sysctl["net.ipv4.tcp_fastopen"]


def test_every_host_starts_alike(lab: Lab) -> None:
    assert lab.refused == {}
    for host in (lab.client, lab.server):
        assert host.sysctl["net.ipv4.tcp_congestion_control"] == "reno"
        assert host.sysctl["net.ipv4.tcp_fastopen"] == "3"
        with host:
            socket.create_server(("", 80)).close()  # ports below 1024 are an ordinary user's


def test_listen_overflows_are_counted(until: Callable[..., None]) -> None:
    """An accept queue for one takes two; every SYN above that is dropped, and the kernel says so."""
    with Lab(rtt_ms=0) as lab, lab.server, socket.socket() as listener:
        listener.bind((lab.server.ip, 80))
        listener.listen(1)
        before = lab.server.counters
        with lab.client:
            clients = [socket.socket() for _ in range(2)]
            for client in clients:
                client.settimeout(20)
                client.connect((lab.server.ip, 80))
            assert (lab.server.counters - before).get("TcpExtListenOverflows") == 0
            for number in range(1, 4):
                with socket.socket() as late:
                    late.setblocking(False)
                    assert late.connect_ex((lab.server.ip, 80)) == errno.EINPROGRESS
                    until(lambda number=number: (lab.server.counters - before)["TcpExtListenOverflows"] >= number)
                difference = lab.server.counters - before
                assert difference["TcpExtListenOverflows"] == difference["TcpExtListenDrops"] == number
            for client in clients:
                client.close()
        assert difference["TcpPassiveOpens"] == 2
        assert difference.changed()["TcpExtListenOverflows"] == 3
        assert 0 not in difference.changed().values()
        assert "TcpExtListenOverflows" in repr(difference)


def test_counters_know_ipv6_and_udp(lab: Lab) -> None:
    before = lab.client.counters
    with lab.client, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        for _ in range(3):
            sock.sendto(b"x", (lab.server.ip6, 9))
    difference = lab.client.counters - before
    assert difference["Udp6OutDatagrams"] == 3
    assert difference["UdpOutDatagrams"] == 0
    assert len(difference) == len(list(difference)) > 100
