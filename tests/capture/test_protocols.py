"""What every protocol keeps to, and that one is added by a file of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from labkit.capture import protocol as about
from labkit.capture.dialogue import Piece, read_dialogue
from labkit.capture.messages import Found
from labkit.capture.protocols import stream_protocols

# The example that the module's docstring gives.
NEW = "from labkit.capture.protocol import Certainty, Opening, Side, StreamProtocol\n\n" + textwrap.dedent(
    "\n".join(line for line in (about.__doc__ or "").splitlines() if line.startswith("    ") or not line)
)
USE = """
import json, sys
import labkit.capture.protocols as protocols
protocols.__path__.append(sys.argv[1])
from labkit.capture.dialogue import Piece, read_dialogue
from labkit.capture.messages import Found
pieces = [Piece(n, Found("DATA", "data", "", "", n, n + 2, 2, b"x\\n", role="data")) for n in (0, 2)]
found = [read_dialogue(pieces[:1], pieces[1:], (True, True), port) for port in (7, 8)]
print(json.dumps([[message.name for side in sides for message in side] for sides in found]))
"""


def test_a_protocol_is_added_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(NEW)
    printed = subprocess.check_output([sys.executable, "-c", textwrap.dedent(USE), str(tmp_path)], text=True)
    assert json.loads(printed) == [["line", "line"], ["data", "data"]]


def test_protocols_are_imported_when_a_capture_is_looked_at() -> None:
    source = "import sys, labkit.capture.captured; print([name for name in sys.modules if 'capture.protocol' in name])"
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "[]\n"


def pieces(*data: bytes, start: int = 0, arrivals: list[int] | None = None) -> list[Piece]:
    """The segments of one side, one after the other."""
    made = []
    for number, each in enumerate(data):
        found = Found("DATA", "data", f"{len(each)} bytes", "", start, start + len(each), len(each), each, role="data")
        made.append(Piece(arrivals[number] if arrivals else 2 * number, found))
        start += len(each)
    return made


@pytest.mark.parametrize("protocol", stream_protocols(), ids=lambda protocol: protocol.__name__)
def test_nothing_is_recognised_in_nothing(protocol) -> None:
    from labkit.capture.protocol import Certainty, Opening

    for begins in (False, True):
        for port in (1, *protocol.ports):
            assert protocol.recognise(Opening(b"", b"", begins, begins, port)) is Certainty.NO


def test_what_no_protocol_knows_is_data_for_each_segment() -> None:
    client, server = read_dialogue(pieces(b"\0\1\2", b"\3"), pieces(b"\4\5", arrivals=[1]), (True, True), 9)
    assert [(m.name, m.role, m.data, m.start, m.end) for m in client] == [
        ("data", "data", b"\0\1\2", 0, 3),
        ("data", "data", b"\3", 3, 4),
    ]
    assert [message.data for message in server] == [b"\4\5"]


def test_zeros_are_data_and_no_frames_of_a_protocol() -> None:
    _, found = read_dialogue([], pieces(*[bytes(1448)] * 8), (False, True), 80)  # the client said nothing
    assert [(message.protocol, message.length) for message in found] == [("DATA", 1448)] * 8
