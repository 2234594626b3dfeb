"""Capture files of other programs: of Wireshark, dumpcap, tcpdump, and of what reads and writes files with them.

``read_file`` takes pcapng and classic pcap, in both byte orders, compressed by gzip or not. What is damaged is told by
file and offset. Ours, because no library does all of this: scapy's reader knows no if_tsoffset and no names, and puts
secrets into a global; python-pcapng knows no secrets and no pcap; dpkt knows one interface and no secrets.

Source of classic pcap: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator

from labkit import checks
from labkit.capture.file_content import CUT, CaptureFile, Damaged
from labkit.capture.pcapng_blocks import SECTION, read_blocks
from labkit.errors import InvalidValue

_GZIP = b"\x1f\x8b"
MOST_DECOMPRESSED = 2**30
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zX": "xz", b"BZh": "bzip2"}
_PCAP_MAGIC = {0xA1B2C3D4: 10**6, 0xA1B23C4D: 10**9}  # how many units of a time stamp's fraction a second has


def read_file(path: str | os.PathLike[str]) -> CaptureFile:
    """Read a capture file.

    Args:
        path: of a pcapng or pcap file, compressed by gzip or not, whatever its name ends in.

    Returns:
        all that stands in it. Raises OSError where it cannot be read; InvalidValue, with the offset, for what is no
        capture, is damaged, or has packets of a link type that is not known here.
    """
    content = checks.path("path", path).read_bytes()
    name = os.fspath(path)
    where = "byte"
    if content.startswith(_GZIP):
        where = "decompressed byte"
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MOST_DECOMPRESSED + 1)
        except (OSError, EOFError, zlib.error) as exc:
            raise InvalidValue(f"{name!r}: the gzip data in it is damaged or was cut ({exc}): copy it again") from exc
        if len(content) > MOST_DECOMPRESSED:
            raise InvalidValue(
                f"{name!r} has more than {MOST_DECOMPRESSED:,} bytes when it is decompressed, too many at once: "
                "decompress it, and split it by `editcap -c 100000`"
            )
    try:
        return _parse(content)
    except Damaged as exc:
        raise InvalidValue(f"{name!r}, {where} {exc.offset:,}: {exc.words}") from exc


def _parse(content: bytes) -> CaptureFile:
    if content[:4] == SECTION:
        return read_blocks(content)
    for order in "<", ">":
        if len(content) >= 4 and (units := _PCAP_MAGIC.get(struct.unpack_from(order + "I", content)[0])):
            return _read_pcap(content, order, units)
    if not content:
        raise Damaged(0, "the file is empty: was the capture written to another place, or is it still running?")
    known = next((name for magic, name in _COMPRESSED.items() if content.startswith(magic)), "")
    if known:
        raise Damaged(0, f"the file is compressed by {known}: decompress it first, labkit reads gzip only")
    raise Damaged(0, f"{content[:4].hex(' ')} begins no pcapng and no pcap file: save it in Wireshark as one of these")


def _read_pcap(content: bytes, order: str, units: int) -> CaptureFile:
    if len(content) < 24:
        raise Damaged(0, f"a pcap file's header has 24 bytes, {len(content)} are here: the file was cut")
    major, minor, zone, link_type = struct.unpack_from(order + "HHi8xI", content, 4)
    if major != 2:
        raise Damaged(4, f"pcap of version {major}.{minor}: labkit reads 2.4, which `editcap -F pcap` writes")
    found = CaptureFile(interfaces=[""])
    for offset, seconds, fraction, length, packet in _records(content, order):
        time_ns = (seconds + zone) * 10**9 + fraction * 10**9 // units
        found.add(offset, time_ns, link_type & 0xFFFF, packet, length)  # above: how long a frame check sequence is
    return found


def _records(content: bytes, order: str) -> Iterator[tuple[int, int, int, int, bytes]]:
    header = struct.Struct(order + "IIII")
    at = 24
    while at < len(content):
        if len(content) - at < header.size:
            raise Damaged(at, f"a packet's header has 16 bytes, {len(content) - at} are left: {CUT}")
        seconds, fraction, captured, length = header.unpack_from(content, at)
        end = at + header.size + captured
        if end > len(content):
            raise Damaged(at, f"a packet of {captured:,} bytes, {len(content) - at - 16:,} are left: {CUT}")
        yield at, seconds, fraction, length, content[at + header.size : end]
        at = end
