"""Frames that were captured, and the views on them: packets, named messages, a table, a ladder, a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import checks
from labkit.capture.frames import Frame, Transit, pair_frames

if TYPE_CHECKING:
    from labkit.capture.keylog import KeyLog
    from labkit.capture.ladder import Ladder
    from labkit.capture.messages import Dissected, Flow


class Result:
    """Frames that stay as they are, and what they say: each thing worked out when it is first asked for, and once.

    Args:
        frames: in any order.
        hosts: host name by the last byte of its MAC address.
        names: host names by IP address. Given (of a file, which does not know a frame's way), nothing counts as lost,
            and each packet is between the names or else the addresses in it (see ``labkit.capture.looks``).
        copied: whether another program has captured them, perhaps at several places.
        until_ns: a moment at which the wire was quiet. What was sent after it is left out: a late acknowledgment, for
            instance, would be seen leaving and not arriving, and be taken for a lost packet.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        hosts: Mapping[int, str],
        until_ns: int | None = None,
        *,
        names: Mapping[str, str] | None = None,
        copied: bool = False,
    ) -> None:
        self._names, self._copied = names, copied
        self._seen = sorted(frames, key=lambda frame: frame.time_ns)
        self._hosts = hosts
        self._until_ns = until_ns
        self._dissected: tuple[KeyLog, tuple[Dissected, ...]] | None = None

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """See ``Captured.frames``."""
        if self._until_ns is None:
            return tuple(self._seen)
        kept = {(ns, transit.data) for transit in self.transits for ns in (transit.sent_ns, transit.received_ns)}
        return tuple(frame for frame in self._seen if (frame.time_ns, frame.data) in kept)

    @cached_property
    def transits(self) -> tuple[Transit, ...]:
        """See ``Captured.transits``."""
        if self._names is not None:
            from labkit.capture.looks import pair_looks, single_looks

            return tuple((pair_looks if self._copied else single_looks)(self._seen, self._names))
        named = []
        for transit in pair_frames(self._seen):
            if self._until_ns is None or transit.sent_ns is None or transit.sent_ns <= self._until_ns:
                destination = transit.destination or self._host(transit.data[5:6])
                source = transit.source or self._host(transit.data[11:12])
                named.append(Transit(transit.sent_ns, transit.received_ns, source, destination, transit.data))
        return tuple(named)

    def _host(self, mac_end: bytes) -> str:
        return self._hosts.get(mac_end[0], "") if mac_end else ""

    def messages(self, secrets: str) -> tuple[Dissected, ...]:
        """See ``Captured.messages``. Worked out again only if this key log has a secret that was missed before.

        A session's log grows with each of its connections, and mostly by secrets of other captures.
        """
        from labkit.capture.dissect import dissect
        from labkit.capture.keylog import KeyLog

        log = KeyLog.parse(secrets)
        if self._dissected is None or not self._dissected[0].answers_as(log):
            self._dissected = log, tuple(dissect(self.transits, log))
        return self._dissected[1]


class Captured:
    """Frames seen at one place of a lab. A live capture is one (see labkit.capture.capture), a recorded one is another.

    Args:
        frames: at every place they were seen.
        hosts: host name by the last byte of its MAC address.
        at: "wire", or the name of the host.
        tier: tier of the lab, or where and when it was recorded; it stands on every picture.
        secrets: the session's key log (NSS format).
        names: host names by IP address, for frames of which each was seen once (see ``Result``).
        dropped: frames that are missing.
        copied: whether another program has captured them: their places are then its interfaces, and no hosts.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        hosts: Mapping[int, str],
        at: str,
        tier: str,
        secrets: str = "",
        names: Mapping[str, str] | None = None,
        dropped: int = 0,
        copied: bool = False,
    ) -> None:
        self.at = at
        self.tier = tier
        self.hosts = dict(hosts)
        self._secrets_read = secrets
        self._names, self._dropped, self._copied = names, dropped, copied
        self._result = Result(frames, self.hosts, names=names, copied=copied)

    @staticmethod
    def open(path: str | os.PathLike[str], *, keylog: str | os.PathLike[str] | None = None) -> Captured:
        """Open a capture file of Wireshark, tcpdump, dumpcap or labkit: pcapng or pcap, compressed by gzip or not.

        In such a file each packet stands once, so nothing is known of losses and arrivals. Its hosts are named as the
        file names them, else by their addresses. A file that labkit saved knows the lab's hosts.

        Args:
            path: of the file. Its packets have Ethernet, Linux cooked, raw IP or loopback headers.
            keylog: path of the key log of the TLS or QUIC sessions in it (what SSLKEYLOGFILE names), where the secrets
                are not in the file itself.

        Returns:
            the capture. Raises OSError where a file cannot be read; InvalidValue, with file and offset, for what is no
            capture, is damaged or has other headers, and for a key log without secrets.
        """
        from labkit.capture.opened import open_file

        return Captured(**open_file(path, keylog))

    def __repr__(self) -> str:
        return f"<Captured at {self.at}, {len(self.frames)} frames, tier: {self.tier}>"

    @property
    def dropped(self) -> int:
        """Frames that there was no room for. Any but 0 means that the capture has holes."""
        return self._dropped

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Every frame so far, at every place it was seen, in the order of the time stamps."""
        return self._now().frames

    @property
    def secrets(self) -> str:
        """The session's key log (NSS format), as far as it is written."""
        return self._secrets_read

    @property
    def transits(self) -> tuple[Transit, ...]:
        """Each frame once, with the times of its sending and its arrival, and both hosts' names."""
        return self._now().transits

    @property
    def packets(self) -> Any:
        """scapy's packets, a PacketList: each frame once, ``.time`` in seconds, ``.sniffed_on`` the sender's name.

        New ones each time, because scapy's packets can be changed.
        """
        from scapy.layers.inet import TCP  # noqa: F401  IPv4, TCP, UDP are dissected once their module is loaded
        from scapy.layers.inet6 import IPv6  # noqa: F401
        from scapy.layers.l2 import Ether
        from scapy.packet import Packet
        from scapy.plist import PacketList

        packets: list[Packet] = []
        for transit in self.transits:
            packet = Ether(transit.data)
            packet.time = transit.time_ns / 1e9
            packet.sniffed_on = transit.source
            packets.append(packet)
        return PacketList(packets, name=f"capture at {self.at}")

    @property
    def messages(self) -> tuple[Dissected, ...]:
        """What each packet carries, TLS and QUIC decrypted with the session's own secrets."""
        return self._now().messages(self.secrets)

    def table(
        self,
        hosts: Sequence[str] | None = None,
        *,
        connection: Flow | int | None = None,
        stream: int | None = None,
        between: tuple[float, float] | None = None,
    ) -> str:
        """The packets as a table of text, a line each. Arguments and errors as of ``ladder``."""
        from labkit.capture.ladder import table
        from labkit.capture.narrowing import Choice

        checks.optional(checks.texts, "hosts", hosts, ["client", "server"])
        choice = Choice(connection, stream, between, hosts, self.hosts.values())
        return table(self.messages, choice) + self._holes()

    def ladder(
        self,
        hosts: Sequence[str] | None = None,
        *,
        acks: bool = False,
        connection: Flow | int | None = None,
        stream: int | None = None,
        between: tuple[float, float] | None = None,
    ) -> Ladder:
        """A time–sequence diagram: ``str()`` of it is text, a notebook shows it as a picture.

        Args:
            hosts: names of the hosts from left to right, and of no others; by default all, in the order in which the
                lab made them; of a file, in which they send.
            acks: show packets that only acknowledge.
            connection: only this one: a packet's ``flow``, or a port of either end.
            stream: only packets with something of the stream of this ID, in protocols that have streams.
            between: only what was sent or arrived between these two moments, milliseconds after the first packet.

        Raises:
            InvalidValue: a host, a connection or a stream that is not there, or a span without a packet.
        """
        from labkit.capture.ladder import build_ladder
        from labkit.capture.narrowing import Choice

        checks.optional(checks.texts, "hosts", hosts, ["client", "server"])
        checks.flag("acks", acks)
        choice = Choice(connection, stream, between, hosts, self.hosts.values())
        if hosts is None:
            hosts = list(dict.fromkeys(self.hosts.values())) or list(
                dict.fromkeys(transit.source for transit in self.transits)
            )
        ladder = build_ladder(self.messages, hosts, acks, choice)
        return replace(ladder, tier=self.tier, missing=self.dropped)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a pcapng file with the session's secrets inside: Wireshark opens it decrypted.

        Returns:
            the path. Raises OSError where it cannot be written.
        """
        from labkit.capture.pcapng import write_pcapng

        target = checks.path("path", path)
        whole = self._names is not None
        write_pcapng(target, self.frames, self.secrets, arrivals=whole, copied=self._copied)
        return target

    def _now(self) -> Result:
        return self._result

    def _holes(self) -> str:
        lost = self.dropped
        return f"\n{lost} frames are missing: the kernel had no room for them.\n" if lost else ""
