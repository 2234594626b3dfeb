"""``record("tls13")`` gives what real peers said to each other a moment ago. See ``scenarios_*.py``."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from labkit.capture.dissect import dissect
from labkit.capture.frames import Frame, Transit, pair_frames
from labkit.capture.keylog import KeyLog
from labkit.capture.messages import Dissected, Message

NO_NAMESPACES = 77  # recorder.py's exit status
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recording:
    frames: list[Frame]
    keylog_text: str

    @property
    def transits(self) -> list[Transit]:
        return pair_frames(self.frames)

    @property
    def secrets(self) -> KeyLog:
        return KeyLog.parse(self.keylog_text)

    @cached_property
    def packets(self) -> list[Dissected]:
        return dissect(self.transits, self.secrets)

    @property
    def lines(self) -> list[str]:
        """What was said, without pure acknowledgments: "> " before what the client sent, "< " before answers."""
        return [
            f"{'>' if packet.from_client else '<'} {packet.what}" for packet in self.packets if packet.label != "ACK"
        ]

    def messages(self, name: str) -> list[Message]:
        """All messages of one name, each once, in order."""
        found = (message for packet in self.packets for message in packet.messages if message.name == name)
        return list({id(message): message for message in found}.values())

    def connections(self) -> list[Recording]:
        """One recording for each connection. The last packets of one may come after the first of the next."""
        ports = [set(struct.unpack_from("!HH", frame.data, 34)) for frame in self.frames]  # the client's is its own
        return [
            Recording([frame for frame, of in zip(self.frames, ports, strict=True) if of == wanted], self.keylog_text)
            for wanted in map(set, dict.fromkeys(map(frozenset, ports)))
        ]


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recording]:
    """Run a scenario in a process with namespaces of its own; once a session for each scenario."""
    folder = tmp_path_factory.mktemp("recordings")

    @cache
    def run(scenario: str) -> Recording:
        output = folder / scenario
        path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
        finished = subprocess.run(
            [sys.executable, str(HERE / "recorder.py"), scenario, str(output)],
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        if finished.returncode == NO_NAMESPACES and not os.environ.get("CI"):
            pytest.skip(finished.stderr)
        assert finished.returncode == 0, finished.stderr
        return Recording(*pickle.loads(output.read_bytes()))

    return run
