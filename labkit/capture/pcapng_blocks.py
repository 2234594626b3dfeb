"""pcapng, block by block, as any program may have written it.

Source: draft-ietf-opsawg-pcapng (blocks in section 4, options in 3.5; the section numbers below are that draft's).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from labkit.capture.fields import without_controls
from labkit.capture.file_content import CUT, CaptureFile, Damaged

SECTION = b"\x0a\x0d\x0d\x0a"  # the same in both byte orders, so that it is found in both
_INTERFACE, _OBSOLETE_PACKET, _SIMPLE_PACKET, _NAMES, _STATISTICS, _PACKET, _SECRETS = 1, 2, 3, 4, 5, 6, 10
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_TLS_KEY_LOG = 0x544C534B
# Options: shb_userappl; if_name, if_tsresol, if_tsoffset; epb_flags; isb_ifdrop and isb_osdrop.
_APPLICATION, _NAME, _RESOLUTION, _OFFSET, _FLAGS, _INTERFACE_DROPS, _SYSTEM_DROPS = 4, 2, 9, 14, 2, 5, 7
_NAME_IPV4, _NAME_IPV6 = 1, 2
_INBOUND, _OUTBOUND = 1, 2


@dataclass(slots=True)
class _Interface:
    link_type: int
    snap_length: int
    name: str
    place: str  # its name where no other has it
    units: int = 10**6  # of a time stamp, in a second
    offset_s: int = 0
    dropped: int = 0

    def time_ns(self, high: int, low: int) -> int:
        return (high << 32 | low) * 10**9 // self.units + self.offset_s * 10**9


def read_blocks(content: bytes) -> CaptureFile:
    """Read a pcapng file that begins with a section header. Raises Damaged."""
    return _Reader().read(content)


def _split(content: bytes) -> Iterator[tuple[int, int, str, bytes]]:
    """Yield each block's offset, type, byte order and body."""
    order, at = "<", 0
    head = struct.Struct("<II")
    while at < len(content):
        left = len(content) - at
        if left < 12:
            raise Damaged(at, f"a block has 12 bytes at least, {left} are left: {CUT}")
        if content[at : at + 4] == SECTION:
            magic = content[at + 8 : at + 12]
            if magic not in _ORDERS:
                raise Damaged(at + 8, f"a section begins with {magic.hex(' ')}, which is no byte-order magic: damaged")
            order = _ORDERS[magic]
            head = struct.Struct(order + "II")
        kind, length = head.unpack_from(content, at)
        if length < 12 or length % 4:
            raise Damaged(at + 4, f"a block of {length:,} bytes; each has 12 or more, by 4: damaged")
        if length > left:
            raise Damaged(at, f"a block of {length:,} bytes, {left:,} are left: {CUT}")
        if content[at + length - 4 : at + length] != content[at + 4 : at + 8]:
            raise Damaged(at, f"a block of {length:,} bytes does not repeat its length at its end: damaged")
        yield at, kind, order, content[at + 8 : at + length - 4]
        at += length


@dataclass(slots=True)
class _Reader:
    """Reads the blocks of one file, section by section."""

    found: CaptureFile = field(default_factory=CaptureFile)
    interfaces: list[_Interface] = field(default_factory=list)  # of the section: each has numbers of its own
    all_interfaces: list[_Interface] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    secrets: list[str] = field(default_factory=list)
    at: int = 0  # where the block begins
    order: str = "<"

    def read(self, content: bytes) -> CaptureFile:
        readers = {
            int.from_bytes(SECTION, "big"): self._section, _INTERFACE: self._interface, _PACKET: self._packet,
            _OBSOLETE_PACKET: self._obsolete_packet, _SIMPLE_PACKET: self._simple_packet, _NAMES: self._names,
            _STATISTICS: self._statistics, _SECRETS: self._secrets,
        }  # fmt: skip
        for self.at, kind, self.order, body in _split(content):
            if reader := readers.get(kind):
                reader(body)
        self.found.interfaces = [interface.name for interface in self.all_interfaces]
        self.found.secrets = "".join(self.secrets)
        self.found.dropped = sum(interface.dropped for interface in self.all_interfaces)
        return self.found

    def _fields(self, layout: str, body: bytes) -> tuple[int, ...]:
        size = struct.calcsize("<" + layout)
        if len(body) < size:
            raise Damaged(self.at, f"a block's fields have {size} bytes, {len(body)} are here: damaged")
        return struct.unpack_from(self.order + layout, body)

    def _options(self, options: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at + 4 <= len(options):
            code, size = struct.unpack_from(self.order + "HH", options, at)
            if code == 0:
                return
            if at + 4 + size > len(options):
                raise Damaged(self.at, f"option {code} of a block has {size} bytes, {len(options) - at - 4} are left")
            yield code, options[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4

    def _number(self, value: bytes, signed: bool = False) -> int:
        return int.from_bytes(value[:8], "little" if self.order == "<" else "big", signed=signed)

    def _section(self, body: bytes) -> None:
        _, major, minor, _, _ = self._fields("IHHII", body)
        if major != 1:
            raise Damaged(self.at, f"pcapng of version {major}.{minor}: labkit reads version 1")
        self.interfaces = []
        options = dict(self._options(body[16:]))
        self.found.application = _text(options.get(_APPLICATION, b""))

    def _interface(self, body: bytes) -> None:
        link_type, _, snap_length = self._fields("HHI", body)
        options = dict(self._options(body[8:]))
        name, number = _text(options.get(_NAME, b"")), len(self.all_interfaces)
        place = f"{name or 'interface'} {number}" if not name or name in self.places else name
        self.places.add(place)
        interface = _Interface(link_type, snap_length, name, place)
        if resolution := options.get(_RESOLUTION):  # section 4.2: the first bit says 2 for a base, else 10
            interface.units = (2 if resolution[0] & 0x80 else 10) ** (resolution[0] & 0x7F)
        interface.offset_s = self._number(options.get(_OFFSET, b""), signed=True)
        self.interfaces.append(interface)
        self.all_interfaces.append(interface)

    def _known(self, number: int) -> _Interface:
        if number >= len(self.interfaces):
            raise Damaged(self.at, f"interface {number}, but the section has described {len(self.interfaces)}: damaged")
        return self.interfaces[number]

    def _packet(self, body: bytes) -> None:
        number, high, low, captured, length = self._fields("IIIII", body)
        outbound = None
        if options := body[20 + captured + -captured % 4 :]:
            direction = self._number(dict(self._options(options)).get(_FLAGS, b"")) & 3
            outbound = {_INBOUND: False, _OUTBOUND: True}.get(direction)
        self._add(number, high, low, body[20:], captured, length, outbound)

    def _obsolete_packet(self, body: bytes) -> None:
        number, _, high, low, captured, length = self._fields("HHIIII", body)
        self._add(number, high, low, body[20:], captured, length, None)

    def _add(
        self, number: int, high: int, low: int, rest: bytes, captured: int, length: int, outbound: bool | None
    ) -> None:
        interface = self._known(number)
        if captured > len(rest):
            raise Damaged(
                self.at, f"a packet of {captured:,} bytes in a block that has room for {len(rest):,}: damaged"
            )
        self._take(interface, interface.time_ns(high, low), rest[:captured], length, outbound)

    def _take(
        self, interface: _Interface, time_ns: int | None, data: bytes, length: int, outbound: bool | None = None
    ) -> None:
        place = interface.place
        self.found.add(self.at, time_ns, interface.link_type, data, length, interface=place, outbound=outbound)

    def _simple_packet(self, body: bytes) -> None:
        (length,) = self._fields("I", body)
        interface = self._known(0)
        captured = min(length, interface.snap_length or length)
        if captured > len(body) - 4:
            raise Damaged(
                self.at, f"a packet of {captured:,} bytes in a block that has room for {len(body) - 4:,}: damaged"
            )
        self._take(interface, None, body[4 : 4 + captured], length)

    def _names(self, body: bytes) -> None:
        at = 0
        while at + 4 <= len(body):
            kind, size = struct.unpack_from(self.order + "HH", body, at)
            if kind == 0:
                return
            value = body[at + 4 : at + 4 + size]
            if len(value) < size:
                raise Damaged(self.at, f"a name record of {size} bytes, {len(value)} are left: damaged")
            width, family = {_NAME_IPV4: (4, socket.AF_INET), _NAME_IPV6: (16, socket.AF_INET6)}.get(kind, (0, 0))
            name = value[width:].partition(b"\0")[0]
            if width and len(value) > width and name:
                self.found.names.setdefault(socket.inet_ntop(family, value[:width]), _text(name))
            at += 4 + size + -size % 4

    def _statistics(self, body: bytes) -> None:
        number, _, _ = self._fields("III", body)
        options = dict(self._options(body[12:]))  # the latest block counts from the beginning
        self._known(number).dropped = sum(
            self._number(options.get(code, b"")) for code in (_INTERFACE_DROPS, _SYSTEM_DROPS)
        )

    def _secrets(self, body: bytes) -> None:
        kind, length = self._fields("II", body)
        if length > len(body) - 8:
            raise Damaged(
                self.at, f"secrets of {length:,} bytes in a block that has room for {len(body) - 8:,}: damaged"
            )
        if kind == _TLS_KEY_LOG:
            text = body[8 : 8 + length].decode(errors="replace")
            self.secrets.append(text if text.endswith("\n") else f"{text}\n")


def _text(value: bytes) -> str:
    """UTF-8 as text that is safe to show."""
    return without_controls(value[:200].decode(errors="replace"), "\ufffd")
