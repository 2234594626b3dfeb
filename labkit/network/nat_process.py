"""The process that translates addresses on a host of the lab. Runs there as a program, without site-packages.

::

    inside ── eth0 ── kernel ── nat0 ═ nat1 ── this process ── eth1 ── outside

The kernel does what a router does: it takes a hop off, splits, and says what is too long, between the inside and the
interface ``nat0``. At the other end of that pair is this process, and it alone has the public address, so that the
kernel answers nothing that is sent there. It needs no module of the kernel. IPv6 is routed as before.

Arguments: the public address, the length of its prefix, the outside interface and its MTU, the kind, the time-out of
a mapping in seconds, a seed. It says "ready", then a line of JSON for each mapping.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time

from labkit.network.netlink import (
    IFF_MULTICAST,
    IFF_NOARP,
    IFF_UP,
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_RP_FILTER,
    IPV4_DEVCONF_SEND_REDIRECTS,
    NDA_DST,
    NDA_LLADDR,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    ROUTE,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTPROT_STATIC,
    RouteSocket,
    attribute,
    attributes,
    turn_offloads_off,
)
from labkit.network.ring import Ring
from labkit.network.translation import ICMP, TCP, UDP, Translator

BEHIND = 1000  # metric of the routes out of the outside interface, which only this process takes
MACS = bytes([2, 0, 0, 0, 2, 0]), bytes([2, 0, 0, 0, 2, 1])
NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}
BATCH = 64


def main() -> None:
    public, bits, outside, mtu, kind, timeout_s, seed = sys.argv[1:8]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    index = socket.if_nametoindex(outside)
    with RouteSocket() as route:
        set_up(route, public, int(bits), outside, index, int(mtu))
    translator = Translator(socket.inet_aton(public), kind, float(timeout_s), int(seed))
    gc.disable()  # packets make no cycles, and a collection would hold them up
    inner, outer = Port("nat1"), Port(outside)
    hops = NextHops(index)
    source = own_mac(outside)
    print("ready", flush=True)
    while True:
        for ring in select.select([inner.ring, outer.ring], [], [])[0]:
            now_s = time.monotonic()
            for frame in ring.frames(BATCH):
                if frame.data[12:14] != b"\x08\x00":
                    continue
                packet = frame.data[14 : 14 + int.from_bytes(frame.data[16:18], "big")]
                if ring is inner.ring:
                    sent = translator.outbound(packet, now_s)
                    tell(translator)  # before the packet goes: who has seen it finds its mapping
                    if sent is not None and sent[16:20] == translator.public:  # to the outside of a mapping of its own
                        sent, target = translator.inbound(sent, now_s), None
                    else:
                        target = None if sent is None else hops.mac(sent[16:20])
                        sent = sent if target else None
                else:
                    sent, target = translator.inbound(packet, now_s), None
                if sent is None:
                    continue
                if target is None:
                    inner.send(MACS[0] + MACS[1] + b"\x08\x00" + sent)
                else:
                    outer.send(target + source + b"\x08\x00" + sent)


def tell(translator: Translator) -> None:
    """Say which mappings were made."""
    for each in translator.fresh:
        inside = f"{socket.inet_ntoa(each.inside[0])}:{each.inside[1]}"
        outside = f"{socket.inet_ntoa(translator.public)}:{each.port}"
        print(json.dumps({"protocol": NAMES[each.protocol], "inside": inside, "outside": outside}), flush=True)
    translator.fresh.clear()


class Port:
    """An interface from which packets come and to which they go."""

    def __init__(self, interface: str) -> None:
        self.ring = Ring(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.ring.bind(interface)

    def send(self, frame: bytes) -> None:
        try:
            self.ring.socket.send(frame)
        except OSError as exc:
            if exc.errno not in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENETDOWN):  # lost, as on any router
                raise


class NextHops:
    """Link addresses on the outside network, as the host's kernel knows them."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._known: dict[bytes, bytes] = {}

    def mac(self, address: bytes) -> bytes | None:
        """That of the neighbour which takes packets for an address; None where there is none."""
        if address not in self._known and (found := self._find(address)) is not None:
            self._known[address] = found
        return self._known.get(address)

    def _find(self, address: bytes) -> bytes | None:
        question = ROUTE.pack(socket.AF_INET, 32, *[0] * 7) + attribute(RTA_DST, address)
        question += attribute(RTA_OIF, struct.pack("=I", self._index))
        with RouteSocket() as route:
            try:
                (answer,) = route.ask(RTM_GETROUTE, question)
            except OSError:
                return None
            hop = attributes(answer[ROUTE.size :]).get(RTA_GATEWAY, address)
            return neighbours(route, self._index).get(hop)


def set_up(route: RouteSocket, public: str, bits: int, outside: str, index: int, mtu: int) -> None:
    """Lead what goes outside to nat0. Of a process before this one all of it may stand."""
    if "nat0" not in [name for _, name in socket.if_nameindex()]:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        route.add_veth("nat1", MACS[1], "nat0", MACS[0], namespace)
        os.close(namespace)
        for name in ("nat0", "nat1"):
            turn_offloads_off(name)
            if os.path.exists("/proc/net/if_inet6"):
                route.no_link_local(socket.if_nametoindex(name))
            here = socket.if_nametoindex(name)
            route.set_flags(here, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP | IFF_MULTICAST)
    nat0 = socket.if_nametoindex("nat0")
    for name in ("nat0", "nat1"):
        route.wait_until_up(socket.if_nametoindex(name))
    route.set_mtu(nat0, mtu)
    quiet = {IPV4_DEVCONF_RP_FILTER: 0, IPV4_DEVCONF_SEND_REDIRECTS: 0}
    route.configure_ipv4(nat0, {IPV4_DEVCONF_FORWARDING: 1, **quiet})
    route.configure_ipv4(index, {IPV4_DEVCONF_FORWARDING: 0, **quiet})
    ways, known = routes_out(route, index), neighbours(route, index)
    try:
        route.remove_address(index, public, bits)
    except OSError as exc:
        if exc.errno != errno.EADDRNOTAVAIL:  # a process before this one has
            raise
    for address, mac in known.items():  # the kernel has forgotten them with the address
        route.add_neighbour(index, socket.inet_ntoa(address), mac)
    # Those of the link before those by way of a router on it.
    for length, prefix, gateway in sorted(ways, key=lambda way: bool(way[2])):
        add_route(route, length, prefix, b"", nat0, 0)
        add_route(route, length, prefix, gateway, index, BEHIND)


def neighbours(route: RouteSocket, index: int) -> dict[bytes, bytes]:
    """The link addresses of an interface's IPv4 neighbours."""
    found = {}
    for body in route.ask(RTM_GETNEIGH, struct.pack("=BxxxiHBB", socket.AF_INET, 0, 0, 0, 0), NLM_F_DUMP):
        said = attributes(body[12:])
        if struct.unpack_from("=i", body, 4)[0] == index and NDA_DST in said and NDA_LLADDR in said:
            found[said[NDA_DST]] = said[NDA_LLADDR]
    return found


def routes_out(route: RouteSocket, index: int) -> list[tuple[int, bytes, bytes]]:
    """The routes of an interface: length of the prefix, the prefix, the router."""
    found = []
    for body in list(route.ask(RTM_GETROUTE, ROUTE.pack(socket.AF_INET, *[0] * 8), NLM_F_DUMP)):
        said = attributes(body[ROUTE.size :])
        out = int(struct.unpack("=I", said[RTA_OIF])[0]) if RTA_OIF in said else 0
        if out == index and body[4] == RT_TABLE_MAIN:
            found.append((body[1], said.get(RTA_DST, b""), said.get(RTA_GATEWAY, b"")))
    return found


def add_route(route: RouteSocket, length: int, prefix: bytes, gateway: bytes, index: int, metric: int) -> None:
    scope = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
    message = ROUTE.pack(socket.AF_INET, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0)
    message += attribute(RTA_DST, prefix) if prefix else b""
    message += attribute(RTA_GATEWAY, gateway) if gateway else b""
    message += attribute(RTA_OIF, struct.pack("=I", index)) + attribute(RTA_PRIORITY, struct.pack("=I", metric))
    route.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, message)


def own_mac(interface: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packet_socket:
        packet_socket.bind((interface, 0))
        return bytes(packet_socket.getsockname()[4])
