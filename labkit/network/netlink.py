"""Links, addresses, neighbours and routes by rtnetlink: the requests that a host needs.

pyroute2 does all of this and more, but importing it takes longer than a whole lab takes to come up.
Sources: rtnetlink(7), veth(4), linux/rtnetlink.h, linux/if_link.h, linux/ip.h, linux/ethtool.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping

RTM_GETLINK, LINK_HEADER_BYTES, IFLA_OPERSTATE, IF_OPER_UP, UP_S = 18, 16, 16, b"\6", 10.0
RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWNEIGH, RTM_GETNEIGH = 16, 20, 21, 28, 30
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_DUMP, NLM_F_CREATE = 1, 4, 0x100, 0x200, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE, HEADER_BYTES = 2, 3, 16
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 18, 26, 28
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_SEND_REDIRECTS, IPV4_DEVCONF_RP_FILTER = 1, 1, 6, 8
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD, IFA_F_PERMANENT = 1, 2, 8, 0x02, 0x80
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
IFF_UP, IFF_NOARP, IFF_MULTICAST = 0x1, 0x80, 0x1000
RT_TABLE_MAIN, RTPROT_STATIC, RTM_F_CLONED = 254, 4, 0x200
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE, RTN_UNICAST = 0, 253, 255, 1
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
SIOCETHTOOL = 0x8946
NLA_TYPE_MASK = 0x3FFF
ETHERNET_MTU = 1500
OFFLOADS = {"rx-checksum": 0x15, "tx-checksum": 0x17, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}  # ETHTOOL_S…
ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths of destination and source, …, scope, type, flags


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The netlink attributes that stand one after the other, by their kinds."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def link_header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """struct ifinfomsg."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


class RouteSocket:
    """A NETLINK_ROUTE socket of the namespace it is opened in; every request is acknowledged or raises OSError."""

    def __init__(self, netlink: socket.socket | None = None) -> None:
        """Args: netlink: one of protocol NETLINK_ROUTE, which is owned from now on; by default one opened here."""
        self._socket = netlink or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        self._send(kind, flags | NLM_F_ACK, payload)
        answer = self._socket.recv(65536)
        _, answer_kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
        if answer_kind != NLMSG_ERROR or error:
            raise OSError(-error, f"rtnetlink request {kind}: {os.strerror(-error)}")

    def ask(self, kind: int, payload: bytes, flags: int = 0) -> Iterator[bytes]:
        """What the kernel answers, each message without its header: one, or with NLM_F_DUMP all that there are."""
        self._send(kind, flags, payload)
        while True:
            answer, at = self._socket.recv(1 << 18), 0
            while at + HEADER_BYTES <= len(answer):
                length, answer_kind = struct.unpack_from("=IH", answer, at)
                body = answer[at + HEADER_BYTES : at + length]
                if answer_kind == NLMSG_DONE:
                    return
                if answer_kind == NLMSG_ERROR:
                    error = -struct.unpack_from("=i", body)[0]
                    raise OSError(error, f"rtnetlink request {kind}: {os.strerror(error)}")
                yield body
                at += (length + 3) & ~3
            if not flags & NLM_F_DUMP:
                return

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        length = HEADER_BYTES + len(payload)
        header = struct.pack("=IHHII", length, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + payload)

    def add_veth(self, name: str, address: bytes, peer: str, peer_address: bytes, peer_namespace: int) -> None:
        """A veth pair: `name` here, `peer` in the namespace behind a descriptor."""
        peer_message = link_header() + b"".join(
            [
                attribute(IFLA_IFNAME, peer.encode() + b"\0"),
                attribute(IFLA_ADDRESS, peer_address),
                attribute(IFLA_NET_NS_FD, struct.pack("=I", peer_namespace)),
            ]
        )
        link_info = attribute(IFLA_INFO_KIND, b"veth") + attribute(
            IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer_message)
        )
        message = link_header() + attribute(IFLA_IFNAME, name.encode() + b"\0")
        message += attribute(IFLA_ADDRESS, address) + attribute(IFLA_LINKINFO, link_info)
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message)

    def set_flags(self, index: int, flags: int, change: int) -> None:
        """Set the interface flags named in `change` to `flags`."""
        self.request(RTM_NEWLINK, 0, link_header(index, flags, change))

    def wait_until_up(self, index: int) -> None:
        """Wait until the kernel sends on an interface whose other end came up after it.

        Until then it drops every frame and says nothing: a worker of the kernel's has to see the carrier first, which
        takes up to 20 ms on a busy machine. Asked about one link, newer kernels (6.18 for one) do that work at once.

        Raises:
            OSError: ETIMEDOUT. Source: net/core/link_watch.c, rtnl_getlink() in net/core/rtnetlink.c.
        """
        deadline = time.monotonic() + UP_S
        while True:
            (answer,) = self.ask(RTM_GETLINK, link_header(index))
            if attributes(answer[LINK_HEADER_BYTES:]).get(IFLA_OPERSTATE, b"")[:1] == IF_OPER_UP:
                return
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"interface {index} did not come up in {UP_S:g} s")
            time.sleep(0.0005)

    def no_link_local(self, index: int) -> None:
        """No fe80:: address, hence no router solicitation when the link comes up."""
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        family = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))
        self.request(RTM_NEWLINK, 0, link_header(index) + family)

    def set_mtu(self, index: int, mtu: int) -> None:
        """How long the IP packets of an interface may be, bytes."""
        self.request(RTM_NEWLINK, 0, link_header(index) + attribute(IFLA_MTU, struct.pack("=I", mtu)))

    def configure_ipv4(self, index: int, settings: Mapping[int, int]) -> None:
        """An interface's settings by their numbers: those of net.ipv4.conf, also where /proc/sys is read-only."""
        values = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in settings.items())
        family = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(IFLA_INET_CONF, values)))
        self.request(RTM_NEWLINK, 0, link_header(index) + family)

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """An IPv4 or IPv6 address, without duplicate address detection."""
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address_message(index, address, prefix))

    def remove_address(self, index: int, address: str, prefix: int) -> None:
        """The way back from ``add_address``, and with the address goes the route to its network."""
        self.request(RTM_DELADDR, 0, address_message(index, address, prefix))

    def add_neighbour(self, index: int, address: str, link_address: bytes) -> None:
        """A permanent neighbour: without it the first packet waits one round trip for ARP."""
        family, packed = pack_address(address)
        message = struct.pack("=BxxxiHBB", family, index, NUD_PERMANENT, 0, 0)
        message += attribute(NDA_DST, packed) + attribute(NDA_LLADDR, link_address)
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, message)


def address_message(index: int, address: str, prefix: int) -> bytes:
    """struct ifaddrmsg and the address."""
    family, packed = pack_address(address)
    message = struct.pack("=BBBBI", family, prefix, IFA_F_NODAD | IFA_F_PERMANENT, 0, index)
    return message + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)


def pack_address(address: str) -> tuple[int, bytes]:
    """Family and network-order bytes of a textual address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def turn_offloads_off(name: str) -> None:
    """Make the interface carry the segments that a real wire would: whole checksums, no 64 KiB super-frames.

    With them on, the frames that the wire reads have no checksum yet, and the receiver drops UDP silently.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)  # struct ethtool_value
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(value)))
