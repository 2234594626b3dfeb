"""The lab as a notebook uses it."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest

from labkit import Lab, LabClosed, Link


def test_a_lab_shows_what_it_is(lab: Lab) -> None:
    assert list(lab.hosts) == ["client", "server"]
    assert (lab.client.ip, lab.server.ip) == ("192.0.2.1", "192.0.2.2")
    assert (lab.client.fqdn, lab.server.fqdn) == ("client.lab", "server.lab")
    assert lab["client"] is lab.client is lab.hosts["client"]
    assert lab.client.lab is lab
    assert repr(lab) == "<Lab client.lab 192.0.2.1, server.lab 192.0.2.2, RTT 10 ms, tier kernel>"
    assert repr(lab.wire) == "<Wire client 10 ms, server 0 ms>"


def test_hosts_by_name_and_by_link() -> None:
    with Lab(rtt_ms=0, hosts={"proxy": Link(), "far": Link(rtt_ms=30)}) as lab:
        assert lab.far.link.rtt_ms == 30
        assert [host.ip for host in lab.hosts.values()] == [f"192.0.2.{number}" for number in (1, 2, 3, 4)]
        for source, destination in ((lab.proxy, lab.far), (lab.server, lab.proxy), (lab.far, lab.client)):
            with destination, socket.create_server(("", 80)), source:
                socket.create_connection((destination.fqdn, 80), timeout=10).close()


def test_many_hosts_reach_each_other() -> None:
    with Lab(rtt_ms=0, hosts=[f"h{number}" for number in range(18)]) as lab:
        hosts = list(lab.hosts.values())
        for source, destination in zip(hosts, hosts[1:] + hosts[:1], strict=True):
            with destination, socket.create_server(("", 80)), source:
                socket.create_connection((destination.fqdn, 80), timeout=10).close()


def test_a_new_lab_of_the_same_name_closes_the_first() -> None:
    first = Lab(rtt_ms=0, name="mine")
    with Lab(rtt_ms=0, name="another"), Lab(rtt_ms=0, name="mine") as second:
        assert first.closed
        assert not second.closed
        with pytest.raises(LabClosed, match="mine is closed"):
            first.client.socket()
        second.client.socket().close()


def test_files_of_a_lab_are_its_owners(lab: Lab) -> None:
    directory = lab.directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(lab.keylog_path.stat().st_mode) == 0o600
    assert lab.client.run(["sh", "-c", "echo $SSLKEYLOGFILE"]).stdout == f"{lab.keylog_path}\n"
    lab.close()
    assert not directory.exists()


def test_what_a_lab_owns_ends_with_it_even_where_one_fails() -> None:
    ended = []

    class Owned:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            ended.append(self.name)
            if self.name == "bad":
                raise ValueError("bad")

    lab = Lab(rtt_ms=0)
    for name in ("first", "bad", "last"):
        lab.register(Owned(name))
    capture = lab.capture()
    with pytest.raises(ValueError, match="bad"):
        lab.close()
    assert ended == ["last", "bad", "first"]
    assert capture.closed
    assert lab.closed
    assert not lab.directory.exists()


def test_registering_a_name_again_closes_the_earlier(lab: Lab) -> None:
    first, second = lab.capture(), lab.capture()
    lab.register(first, name="capture")
    lab.register(second, name="capture")
    assert first.closed
    assert not second.closed


def test_a_lab_serves_many_threads(lab: Lab) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with lab.client:
                    socket.socket().close()
                lab.client.counters  # noqa: B018
                assert lab.wire.in_flight == 0
            assert lab.client.run(["echo", "fine"]).stdout == "fine\n"
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_no_descriptor_of_a_lab_is_inheritable(lab: Lab) -> None:
    with lab.client, socket.socket() as sock, lab.capture():
        assert not sock.get_inheritable()
        for name in os.listdir("/proc/self/fd"):
            try:
                inheritable = os.get_inheritable(int(name))
            except OSError:
                continue
            assert not inheritable or int(name) < 3 or not os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
