"""Captures as pcapng files, which Wireshark opens decrypted because the session's secrets are inside, and back.

Written here with ``struct``: of the two ready-made writers, scapy's has neither nanoseconds nor secrets, and
python-pcapng 2.1 has no Decryption Secrets Block.

Source: draft-ietf-opsawg-pcapng (blocks in section 4; the section numbers below are that draft's).
"""

from __future__ import annotations

import gzip
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from labkit.capture.capture_file import read_file
from labkit.capture.frames import Frame
from labkit.errors import InvalidValue

_SECTION, _INTERFACE, _PACKET, _SECRETS = 0x0A0D0D0A, 1, 6, 10
_BYTE_ORDER_MAGIC, _ETHERNET, _TLS_KEY_LOG = 0x1A2B3C4D, 1, 0x544C534B
_OPTION_APPLICATION, _OPTION_NAME, _OPTION_DESCRIPTION, _OPTION_RESOLUTION = 4, 2, 3, 9
_OPTION_FLAGS, _INBOUND, _OUTBOUND = 2, 1, 2


def write_pcapng(
    target: str | os.PathLike[str] | BinaryIO,
    frames: Iterable[Frame],
    secrets_text: str = "",
    *,
    arrivals: bool = False,
    interfaces: Mapping[str, str] | None = None,
    copied: bool = False,
) -> int:
    """Write frames as pcapng.

    Args:
        target: path, compressed where it ends in ".gz", or a file open for writing bytes (it stays open).
        frames: in time order.
        secrets_text: key log (NSS format); "" writes none.
        arrivals: write a packet's arrival too where its sending is in the file. By default each packet is
            there once, at its first appearance, though a capture on the wire sees it twice.
        interfaces: descriptions by host; each host that has frames becomes an interface of that name.
        copied: the frames are of another program's capture, and the interfaces are no hosts.

    Returns:
        the number of packets written. Raises OSError where the file cannot be written.
    """
    seen = Appearances()
    chosen = [frame for frame in frames if arrivals or seen.first(frame)]
    numbers = {host: number for number, host in enumerate(dict.fromkeys(frame.host for frame in chosen))}
    blocks = [section_block("labkit, of another capture" if copied else "labkit")]
    blocks += [interface_block(host, (interfaces or {}).get(host, "")) for host in numbers]
    if secrets_text:  # before the packets that need them
        blocks.append(secrets_block(secrets_text))
    blocks += [packet_block(frame, numbers[frame.host]) for frame in chosen]
    content = b"".join(blocks)
    if isinstance(target, (str, os.PathLike)):
        compressed = os.fspath(target).endswith(".gz")
        # No time stamp inside, so that the same frames give the same file.
        Path(target).write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    else:
        target.write(content)
    return len(chosen)


def read_pcapng(path: str | os.PathLike[str]) -> tuple[list[Frame], str]:
    """Read what ``write_pcapng`` has written, "arrivals" included. ``Captured.open`` reads other programs' files, too.

    Args:
        path: of the file, compressed or not.

    Returns:
        the frames and the secrets. Raises OSError; InvalidValue for a file that is damaged or not from here.
    """
    found = read_file(path)
    if not found.by_labkit or any(not name or "\ufffd" in name for name in found.interfaces):
        raise InvalidValue(
            f"{os.fspath(path)!r} is no file that labkit has written: open it with Captured.open, or save it anew with "
            "capture.save()"
        )
    return found.frames, found.secrets


class Appearances:
    """Which looks at frames are the first, while they come in time order: the arrival of one that was sent is not."""

    def __init__(self) -> None:
        self._in_flight: Counter[bytes] = Counter()

    def first(self, frame: Frame) -> bool:
        """Whether this is a frame's first appearance."""
        if frame.sent:
            self._in_flight[frame.data] += 1
        elif frame.data in self._in_flight:
            self._in_flight[frame.data] -= 1
            if not self._in_flight[frame.data]:
                del self._in_flight[frame.data]  # a stream goes on for hours
            return False
        return True


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    """A block repeats its length at its end, so that files can be read backwards (section 3.1)."""
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(*options: tuple[int, bytes]) -> bytes:
    """Options with values; those without are left out (section 3.5)."""
    written = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options if value]
    return b"".join(written) + bytes(4) if written else b""


def section_block(application: str = "labkit") -> bytes:
    """What a file begins with (section 4.1)."""
    unknown_length = 0xFFFFFFFFFFFFFFFF
    body = struct.pack("<IHHQ", _BYTE_ORDER_MAGIC, 1, 0, unknown_length)
    return _block(_SECTION, body + _options((_OPTION_APPLICATION, application.encode())))


def interface_block(host: str, description: str = "") -> bytes:
    """A host as an interface; the first is number 0 (section 4.2)."""
    no_limit = 0
    options = _options(
        (_OPTION_NAME, host.encode()),
        (_OPTION_DESCRIPTION, description.encode()),
        (_OPTION_RESOLUTION, bytes([9])),  # time stamps count 10^-9 s
    )
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, no_limit) + options)


def secrets_block(text: str) -> bytes:
    """A key log (NSS format), for the packets after it (section 4.7)."""
    secrets = text.encode()
    return _block(_SECRETS, struct.pack("<II", _TLS_KEY_LOG, len(secrets)) + _padded(secrets))


def packet_block(frame: Frame, interface: int) -> bytes:
    """A frame, seen at an interface of this number (section 4.3)."""
    high, low = frame.time_ns >> 32, frame.time_ns & 0xFFFFFFFF
    head = struct.pack("<IIIII", interface, high, low, len(frame.data), frame.length)
    flags = struct.pack("<I", _OUTBOUND if frame.sent else _INBOUND)
    return _block(_PACKET, head + _padded(frame.data) + _options((_OPTION_FLAGS, flags)))
