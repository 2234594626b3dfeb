"""What stands in a capture file of any program, and how it is told that something in it is damaged."""

from __future__ import annotations

from dataclasses import dataclass, field

from labkit.capture.frames import Frame
from labkit.capture.link_layers import as_ethernet, name_of, reads

CUT = "damaged, or cut while it was written; `editcap damaged.pcapng whole.pcapng` keeps the packets before it"
_LAST_NS = 2**63 - 1  # in the year 2262


class Damaged(Exception):
    """What a file has at an offset, and cannot have there."""

    def __init__(self, offset: int, words: str) -> None:
        super().__init__(words)
        self.offset, self.words = offset, words


@dataclass(slots=True)
class CaptureFile:
    """What stands in a capture file.

    Attributes:
        frames: in the order of the file, with an Ethernet header. ``host`` is the interface on which it was seen (a
            host's name where labkit wrote the file); ``sent`` says that the capturing host sent it, as far as the file
            knows.
        interfaces: names of the interfaces, in the order of the file.
        secrets: key logs that stand in the file (NSS format).
        names: host names by IP address.
        dropped: frames that the capturing program says it has lost.
        application: the program that wrote it, "" where the file does not say.
    """

    frames: list[Frame] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    secrets: str = ""
    names: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    application: str = ""

    @property
    def by_labkit(self) -> bool:
        """Whether labkit wrote it: then the names of the interfaces are those of hosts."""
        return self.application == "labkit"

    def add(
        self,
        offset: int,
        time_ns: int | None,
        link_type: int,
        packet: bytes,
        length: int,
        *,
        interface: str = "",
        outbound: bool | None = None,
    ) -> None:
        """Take in a packet.

        Args:
            offset: where in the file it stands.
            time_ns: since 1970; None where it has no time stamp: then that of the packet before it.
            link_type: LINKTYPE_ number.
            packet: as captured.
            length: bytes that it had on the wire.
            interface: on which it was seen.
            outbound: whether the capturing host sent it, None where only the link header may tell.

        Raises:
            Damaged: a link type that is not known here, or a time that no clock shows.
        """
        if not reads(link_type):
            raise Damaged(
                offset,
                f"a packet of link type {name_of(link_type)}. labkit reads Ethernet, Linux cooked, raw IP and "
                "loopback: capture on such an interface, or save only its packets (Wireshark: frame.interface_id)",
            )
        if time_ns is None:
            time_ns = self.frames[-1].time_ns if self.frames else 0
        if not 0 <= time_ns <= _LAST_NS:
            raise Damaged(offset, f"a time stamp {time_ns // 10**9} seconds after 1970, which no clock shows: damaged")
        data, longer, sent, place = as_ethernet(link_type, packet)
        sent = sent if outbound is None else outbound
        where = f"{interface} {place}" if place else interface
        self.frames.append(Frame(time_ns, data, where, sent, max(length + longer, len(data))))
