"""Several networks and the routers between them: addresses, routes, TTL, MTU, with real packets."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator

import pytest
from processes import FIXED, ORDINARY

from labkit import InvalidValue, Lab, Link, NameTaken, NotAvailableHere, Rule
from labkit.network.addresses import MOST_NETWORKS, subnet
from labkit.network.paths import Wanted, next_hops, wanted_routes
from labkit.network.routes import Route
from labkit.waiting import wait_until

CHAIN = {"inside": ["client", "r1"], "middle": ["r1", "r2"], "outside": ["r2", "server"]}
Require = Callable[[str], str]


@pytest.fixture(autouse=True)
def ping(require_program: Require) -> str:
    return require_program("ping")


@pytest.fixture
def chain() -> Iterator[Lab]:
    """Client and server with two routers between them."""
    with Lab(rtt_ms=4, networks=CHAIN) as lab:
        yield lab


def answered(lab: Lab, *words: str, to: str = "") -> bool:
    """Whether a ping of the client is answered."""
    ping = ["ping", "-n", "-c", "1", "-W", "10", *words, to or lab.server.ip]
    return lab.client.run(ping).returncode == 0


def unanswered(lab: Lab, *words: str, to: str = "") -> bool:
    """Whether it is not: nothing comes back in a time that is long on a lab's wire."""
    return not answered(lab, "-W", "0.3", *words, to=to)


def received(lab: Lab, size: int, port: int = 9) -> int:
    """How many bytes of a datagram of the client arrive at the server; 0 where it gets lost."""
    with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("", port))
        theirs.settimeout(0.2)
        with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.sendto(bytes(size), (lab.server.ip, port))
            assert lab.wire.settle()
            try:
                return len(theirs.recv(65536))
            except TimeoutError:
                return 0


# Which way.


def test_next_hops_are_the_shortest() -> None:
    ring = {"a": ["x", "r1", "r3"], "b": ["r1", "r2"], "c": ["r2", "r3", "y"], "alone": ["z"]}
    hops = next_hops(ring, ["r1", "r2", "r3"])
    assert hops["x"] == {"b": ("a", "r1"), "c": ("a", "r3")}
    assert hops["r1"] == {"c": ("a", "r3")}  # as far as by way of b, which stands later
    assert hops["z"] == {}
    assert wanted_routes(ring, ["r1", "r2", "r3"])[Wanted("x", "c")] == ("a", "r3")


def test_a_host_with_one_way_out_has_a_default_route() -> None:
    assert wanted_routes(CHAIN, ["r1", "r2"]) == {
        Wanted("client", "default"): ("inside", "r1"),
        Wanted("r1", "outside"): ("middle", "r2"),
        Wanted("r2", "inside"): ("middle", "r1"),
        Wanted("server", "default"): ("outside", "r2"),
    }


def test_a_host_with_two_ways_out_has_a_default_route_by_each() -> None:
    two = {"wifi": ["client", "r1"], "cell": ["client", "r2"], "net": ["r1", "r2", "server"]}
    routes = wanted_routes(two, ["r1", "r2"])
    assert routes[Wanted("client", "default", 0)] == ("wifi", "r1")
    assert routes[Wanted("client", "default", 1)] == ("cell", "r2")
    assert (routes[Wanted("r1", "cell")], routes[Wanted("server", "cell")]) == (("net", "r2"), ("net", "r2"))


def test_addresses_are_those_of_documentation_and_no_two_networks_share_one() -> None:
    every = [subnet(number) for number in range(MOST_NETWORKS)]
    assert [each.cidr for each in every[:4]] == [
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/28", "203.0.113.16/28",
    ]  # fmt: skip
    assert len({each.cidr for each in every}) == len({each.cidr6 for each in every}) == len(every) == 18
    assert every[-1].addresses(14) == ("203.0.113.254", "2001:db8:0:11::e")
    with pytest.raises(InvalidValue, match="addresses for 14"):
        every[-1].addresses(15)
    with pytest.raises(InvalidValue, match="network number 19"):
        subnet(MOST_NETWORKS)


# Packets.


def test_packets_cross_two_routers_in_both_protocols_and_lose_a_hop_at_each(chain: Lab) -> None:
    for address in (chain.server.ip, chain.server.ip6):
        said = chain.client.run(["ping", "-n", "-c", "1", "-t", "64", address]).check().stdout
        assert "ttl=62" in said
    assert unanswered(chain, "-t", "2")
    assert answered(chain, "-t", "3")


def test_traceroute_shows_each_router(chain: Lab, require_program: Require) -> None:
    said = chain.client.run([require_program("traceroute"), "-n", "-q", "1", chain.server.ip]).check().stdout
    hops = re.findall(r"^ *\d+ +([\d.]+) ", said, re.MULTILINE)
    assert hops == [chain.r1.ip, chain.r2.ip, chain.server.ip]
    said = chain.server.run(["traceroute", "-q", "1", "client.lab"]).check().stdout
    assert re.findall(r"^ *\d+ +(\S+) ", said, re.MULTILINE) == ["eth1.r2.lab", "eth1.r1.lab", "client.lab"]


def test_tcp_and_names_cross_routers(chain: Lab) -> None:
    with chain.server, socket.create_server(("", 80)) as listener:
        with chain.client, socket.create_connection(("server.lab", 80)) as client:
            accepted, peer = listener.accept()
            with accepted:
                assert peer[0] == chain.client.ip
                accepted.sendall(bytes(10_000))
                accepted.shutdown(socket.SHUT_WR)
                assert sum(map(len, iter(lambda: client.recv(65536), b""))) == 10_000


def test_a_quiet_router_sends_nothing(chain: Lab) -> None:
    assert answered(chain)
    assert {label: ways["up"].unaddressed for label, ways in chain.wire.counts.items()} == dict.fromkeys(
        ["client", "r1", "r1/middle", "r2", "r2/outside", "server"], 0
    )


def test_a_capture_names_the_hosts_of_every_interface(chain: Lab) -> None:
    with chain.capture() as capture:
        assert received(chain, 100) == 100
    way = [(transit.source, transit.destination) for transit in capture.transits]
    assert way == [("client", "r1"), ("r1", "r2"), ("r2", "server")]


def test_a_rule_and_the_counts_know_each_interface(chain: Lab) -> None:
    with chain.wire.drop(source="r1/middle") as one, chain.wire.drop(source="r1") as all_of_it:
        assert received(chain, 100) == 0
    assert (one.acted, all_of_it.acted) == (1, 0)
    assert chain.wire.counts["r1/middle"]["up"].ruled_out == 1
    with pytest.raises(InvalidValue, match="no host 'r1/outside'"):
        chain.wire.drop(source="r1/outside")


# Routes.


def test_the_longest_prefix_wins_and_routes_come_and_go(chain: Lab) -> None:
    routes = chain.r1.routes
    before = list(routes)
    assert str(chain.client.routes).splitlines()[:2] == [
        "192.0.2.0/24 dev eth0 src 192.0.2.1", "default via 192.0.2.2 dev eth0",
    ]  # fmt: skip
    routes.add("203.0.113.0/24", kind="blackhole")
    assert received(chain, 100) == 100  # 203.0.113.0/28 is longer
    routes.add(f"{chain.server.ip}/32", kind="blackhole")
    assert [str(route) for route in routes.matching("server")] == [
        "blackhole 203.0.113.2/32", "203.0.113.0/28 via 198.51.100.2 dev eth1", "blackhole 203.0.113.0/24",
    ]  # fmt: skip
    assert received(chain, 100) == 0
    routes.add(f"{chain.server.ip}/32", via=chain.r2, metric=0)  # in the place of the black hole
    assert routes.to("server").via == chain.r2.ip
    assert received(chain, 100) == 100
    routes.remove(f"{chain.server.ip}/32")
    routes.remove("203.0.113.0/24")
    assert list(routes) == before
    with pytest.raises(InvalidValue, match=r"no route to .203\.0\.113\.0/24. on r1, which has:\n203"):
        routes.remove("203.0.113.0/24")


def test_a_route_has_a_metric_an_mtu_and_a_ttl(chain: Lab) -> None:
    routes = chain.client.routes
    routes.add(chain.server.ip, via="192.0.2.2", mtu=1400, ttl=2, metric=7)
    assert Route("203.0.113.2/32", "192.0.2.2", "eth0", metric=7, mtu=1400, ttl=2) in list(routes)
    with chain.capture() as capture:
        assert received(chain, 100) == 0
    assert [transit.data[22] for transit in capture.transits if transit.source == "client"] == [2]
    routes.remove(chain.server.ip, metric=7)
    assert received(chain, 100) == 100
    routes.add("::/0", via="2001:db8::2", ttl=3)
    assert answered(chain, to=chain.server.ip6)
    assert [route.ttl for route in routes if route.destination == "default"] == [
        0,
        3,
    ]  # IPv6 has no metric 0: the route that was there is replaced


def test_routes_that_cannot_be(chain: Lab) -> None:
    for wrong, words in [
        ({"destination": "203.0.113.1/24", "via": "192.0.2.2"}, "host bits"),
        ({"destination": "somewhere", "via": "192.0.2.2"}, "Give a prefix"),
        ({"destination": "default", "via": "server"}, "it is on no network of client, which is on inside"),
        ({"destination": "default"}, "goes via a router"),
        ({"destination": "default", "via": "192.0.2.2", "kind": "blackhole"}, "goes via a router"),
        ({"destination": "default", "kind": "black"}, "choose from 'unicast', 'blackhole'"),
        ({"destination": "default", "via": "192.0.2.2", "mtu": 1.5}, "mtu=1.5"),
        ({"destination": "default", "via": "192.0.2.2", "ttl": 0}, "ttl=0"),
        ({"destination": "default", "via": "nobody.lab"}, "give a host of this lab"),
    ]:
        with pytest.raises(InvalidValue, match=words):
            chain.client.routes.add(**wrong)  # type: ignore[arg-type]


# How long.


def narrow(lab: Lab, mtu: int = 1300) -> None:
    """Make the middle of the chain narrow, at both ends."""
    for router in (lab.r1, lab.r2):
        router.interfaces["middle"].set_link(mtu=mtu)


def test_what_is_too_long_is_split_or_sent_back(chain: Lab) -> None:
    narrow(chain)
    with chain.capture() as capture:
        assert unanswered(chain, "-M", "do", "-s", "1400")
    errors = [transit.data for transit in capture.transits if transit.source == "r1" and transit.data[23] == 1]
    (told,) = errors
    assert (told[34], told[35], int.from_bytes(told[40:42], "big")) == (3, 4, 1300)  # RFC 1191 section 4
    assert chain.client.routes.to("server").mtu == 1300
    with chain.capture() as capture:
        assert answered(chain, "-M", "dont", "-s", "3000")
    fragments = [transit for transit in capture.transits if int.from_bytes(transit.data[20:22], "big") & 0x3FFF]
    by_router = [transit for transit in fragments if transit.source == "r1" and transit.destination == "r2"]
    assert max(len(transit.data) for transit in by_router) <= 14 + 1300
    assert len(by_router) >= 3


def test_ipv6_is_never_split_on_the_way(chain: Lab) -> None:
    narrow(chain)
    with chain.capture(at="r1") as capture:
        assert unanswered(chain, "-s", "1400", "-M", "do", to=chain.server.ip6)
    said = [
        transit.data for transit in capture.transits if transit.data[12:14] == b"\x86\xdd" and transit.data[54] == 2
    ]
    assert [int.from_bytes(data[58:62], "big") for data in said] == [1300]  # packet too big: RFC 4443 section 3.2
    assert chain.client.routes.to(chain.server.ip6).mtu == 1300


def fetched(lab: Lab, size: int, seconds: float = 10) -> int:
    """How many bytes of a response come through."""
    with lab.server, socket.create_server(("", 80)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)  # all of it fits, whether or not it leaves
        with lab.client, socket.create_connection(("server.lab", 80)) as client:
            client.settimeout(seconds)
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(bytes(size))
                got = 0
                try:
                    while got < size:
                        got += len(client.recv(65536))
                except TimeoutError:
                    pass
                return got


def test_path_mtu_discovery_finds_the_narrow_link(chain: Lab) -> None:
    narrow(chain)
    with chain.capture() as capture:
        assert fetched(chain, 50_000) == 50_000
    sent = [len(transit.data) - 14 for transit in capture.transits if transit.source == "server"]
    assert max(sent) == 1500
    assert chain.server.routes.to("client").mtu == 1300


def test_a_black_hole_takes_what_is_long_and_passes_what_is_short(chain: Lab) -> None:
    narrow(chain)
    with chain.wire.drop(protocol="icmp", icmp_type=3, icmp_code=4) as silent:
        assert fetched(chain, 100) == 100
        assert fetched(chain, 50_000, seconds=0.4) == 0
        assert silent.acted > 0
        chain.server.sysctl["net.ipv4.tcp_mtu_probing"] = 1  # RFC 4821: it tries by itself what passes
        assert fetched(chain, 50_000) == 50_000
        chain.server.sysctl["net.ipv4.tcp_mtu_probing"] = 0
        chain.server.routes.add("default", via=chain.r2, mtu=1300)
        assert fetched(chain, 50_000) == 50_000


def test_a_link_narrower_than_what_comes_loses_it_and_counts_it(require_program: Require) -> None:
    ip = require_program("ip")
    with Lab(rtt_ms=2, hosts={"narrow": Link(mtu=1400)}) as lab:
        with lab.narrow.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
            theirs.bind(("", 9))
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.sendto(bytes(1372), (lab.narrow.ip, 9))
                ours.sendto(bytes(1373), (lab.narrow.ip, 9))
            assert len(theirs.recv(2000)) == 1372
            assert lab.wire.settle()
        assert lab.wire.counts["narrow"]["down"].too_long == 1
        assert lab.wire.counts["narrow"]["down"].delivered == 1
        assert "mtu 1400" in lab.narrow.run([ip, "link", "show", "eth0"]).check().stdout
        lab.narrow.set_link(mtu=None)
        assert "mtu 1500" in lab.narrow.run([ip, "link", "show", "eth0"]).check().stdout


@pytest.mark.parametrize("mtu", [1279, 1501, 1400.0, True, "1400"])
def test_an_mtu_that_cannot_be(mtu: object) -> None:
    with pytest.raises(InvalidValue, match="from 1280 to 1500"):
        Link(mtu=mtu)  # type: ignore[arg-type]


# A lab that grows.


def test_a_lab_grows_networks_routers_and_interfaces(lab: Lab) -> None:
    assert lab.add_network("outside").cidr == "198.51.100.0/24"
    far = lab.add_host("far", Link(rtt_ms=2), network="outside")
    assert far.ip == "198.51.100.1"
    assert unanswered(lab, to=far.ip)
    router = lab.add_router("router", ["lab", "outside"])
    assert router.forwarding
    assert answered(lab, to=far.ip)
    assert answered(lab, to=far.ip6)
    late = lab.add_host("late", network="outside")
    assert answered(lab, to=late.ip)
    second = lab.add_interface("client", "outside")
    assert (second.name, second.ip) == ("eth1", "198.51.100.4")
    assert not lab.client.forwarding
    with lab.capture() as capture:
        assert answered(lab, "-I", second.ip, to=far.ip)  # at once now, without the router
    assert [(transit.source, transit.destination) for transit in capture.transits] == [
        ("client", "far"), ("far", "client"),
    ]  # fmt: skip
    assert [route.destination for route in lab.client.routes if route.via and not route.ipv6] == []


def test_a_client_on_two_networks_goes_on_by_the_second_when_the_first_is_gone() -> None:
    networks = {"wifi": ["client", "r1"], "cell": ["client", "r2"], "net": ["r1", "r2", "server"]}
    with Lab(rtt_ms=2, networks=networks) as lab:
        assert not lab.client.forwarding
        cell = lab.client.interfaces["cell"]
        with lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, lab.capture() as capture:
            server.bind(("", 9))
            server.settimeout(10)
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as on_the_second:
                on_the_second.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, cell.name.encode())
                on_the_second.sendto(b"by the other", (lab.server.ip, 9))
                assert server.recvfrom(100)[1][0] == cell.ip
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as either:
                for ip in (lab.client.ip, cell.ip):
                    either.sendto(b"as the routes say", (lab.server.ip, 9))
                    assert server.recvfrom(100)[1][0] == ip
                    if ip == lab.client.ip:
                        lab.client.routes.remove("default")
        assert {packet.forwarded_by for packet in capture.messages if packet.before is not None} == {("r1",), ("r2",)}
        assert answered(lab, to=lab.server.ip6)


def test_a_router_that_does_not_forward_is_a_wall(chain: Lab) -> None:
    chain.r2.forwarding = False
    assert unanswered(chain)
    assert unanswered(chain, to=chain.server.ip6)
    chain.r2.forwarding = True
    assert answered(chain)


def test_names_and_networks_that_cannot_be(lab: Lab) -> None:
    lab.add_network("outside")
    for raised, call in [
        (NameTaken, lambda: lab.add_network("outside")),
        (InvalidValue, lambda: lab.add_network("Out side")),
        (InvalidValue, lambda: lab.add_host("far", network="nowhere")),
        (InvalidValue, lambda: lab.add_router("router", ["lab"])),
        (InvalidValue, lambda: lab.add_router("router", ["lab", "nowhere"])),
        (InvalidValue, lambda: lab.add_router("router", ["lab", "outside", "lab"])),
        (NameTaken, lambda: lab.add_interface("client", "lab")),
        (InvalidValue, lambda: lab.add_interface("nobody", "outside")),
    ]:
        with pytest.raises(raised):
            call()
    assert list(lab.hosts) == ["client", "server"]


@pytest.mark.parametrize(
    "networks",
    [
        {"inside": ["client"]},
        {"inside": ["client", "server", "client"]},
        {"inside": "client"},
        {"in side": ["client", "server"]},
        {"inside": ["client", "server", "9"]},
        {"inside": ["client"], "outside": ["server"], "third": [f"host{number}" for number in range(15)]},
        {"inside": ["client", "server"], **{f"net{number}": [] for number in range(18)}},
        {},
        ["client"],
    ],
)
def test_networks_that_cannot_be(networks: object) -> None:
    with pytest.raises(InvalidValue):
        Lab(networks=networks)  # type: ignore[arg-type]


# Cut links.


def test_a_cut_link_carries_nothing_until_it_is_mended(lab: Lab) -> None:
    with lab.client.cut() as cut:
        assert received(lab, 10) == 0
        assert cut.lost == 1
    assert received(lab, 10) == 10
    counts = lab.wire.counts["client"]["up"]
    assert (counts.cut, counts.ruled_out) == (1, 0)
    lab.client.cut("down")
    assert received(lab, 10) == 10  # the other direction
    assert unanswered(lab)
    lab.client.mend()
    assert answered(lab)
    with pytest.raises(InvalidValue, match="way='left'"):
        lab.client.cut("left")


def test_what_a_cut_link_took_is_lost_in_the_capture(lab: Lab) -> None:
    with lab.capture() as capture, lab.server.cut("down"):
        assert received(lab, 10) == 0
    assert [packet.lost for packet in capture.messages] == [True]


def test_a_router_is_cut_at_one_interface_or_at_all(chain: Lab) -> None:
    with chain.r1.interfaces["middle"].cut():
        assert unanswered(chain)
        assert answered(chain, to=chain.r1.ip)
    with chain.r1.cut():
        assert unanswered(chain, to=chain.r1.ip)
    assert answered(chain)


# Rules.


def test_rules_match_icmp_by_type_and_code(lab: Lab) -> None:
    with lab.wire.drop(protocol="icmp", icmp_type=0) as replies, lab.wire.drop(protocol="icmpv6", icmp_type=128) as six:
        assert unanswered(lab)
        assert unanswered(lab, to=lab.server.ip6)
        assert (replies.acted, six.acted) == (1, 1)
    with lab.wire.drop(protocol="icmp", icmp_type=8, icmp_code=1) as other:
        assert answered(lab)
        assert other.matched == 0


@pytest.mark.parametrize(
    "conditions",
    [
        {"icmp_type": 8},
        {"protocol": "udp", "icmp_type": 8},
        {"protocol": "icmp", "icmp_type": 256},
        {"protocol": "icmp", "icmp_code": 1.0},
        {"protocol": "icmp", "icmp_code": True},
    ],
)
def test_icmp_rules_that_cannot_be(conditions: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="icmp_"):
        Rule("drop", **conditions)  # type: ignore[arg-type]


# Other tiers, other users.

ON_A_TIER = """
from labkit import Lab
with Lab(rtt_ms=2, networks={"inside": ["client", "router"], "outside": ["router", "server"]}) as lab:
    lab.router.interfaces["outside"].set_link(mtu=1300)
    ping = ["ping", "-n", "-c", "1", "-W", "10"]
    print(lab.tier)
    print([lab.client.run([*ping, *words]).returncode for words in
           ([lab.server.ip], ["-t", "1", lab.server.ip], ["-M", "do", "-s", "1400", lab.server.ip])])
    print(lab.client.routes.to(lab.server).mtu, lab.client.run([*ping, lab.server.ip6]).returncode)
"""


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (ORDINARY, ["kernel", "[0, 1, 1]", "1300 0"]),
        # IPv6 is forwarded where the kernel's setting can be made, and nowhere else.
        ((*FIXED, *ORDINARY), ["kernel, fixed sysctls", "[0, 1, 1]", "1300 2"]),
    ],
)
def test_routers_of_an_ordinary_user(prefix: tuple[str, ...], said: list[str], python: Callable[..., object]) -> None:
    process = python(ON_A_TIER, prefix=prefix)
    out, err = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert (out.splitlines(), err) == (said, "")


def test_on_loopback_there_is_one_network_and_nothing_is_left_of_the_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with pytest.raises(NotAvailableHere, match="one network"):
        Lab(networks=CHAIN)
    with Lab(rtt_ms=2) as lab:
        with pytest.raises(NotAvailableHere, match="MTU"):
            lab.set_link(mtu=1300)
        with pytest.raises(NotAvailableHere, match="one network"):
            lab.add_network("outside")
        with pytest.raises(NotAvailableHere, match="no ICMP"):
            lab.wire.drop(protocol="icmp")
        with lab.client.cut() as cut, lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
            theirs.bind((lab.server.ip, 9))
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.sendto(b"into nothing", (lab.server.ip, 9))
                wait_until(lambda: cut.lost == 1)
        assert lab.client.link == Link(rtt_ms=2)
