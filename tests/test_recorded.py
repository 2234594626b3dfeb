"""Recorded runs: what goes in comes out, they are labelled, and what lower tiers may ask for is there."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from book import contents
from book.learn.recording import record
from labkit import InvalidValue, Lab, NotAvailableHere, recorded
from labkit.capture.captured import Captured
from labkit.handshakes import TlsClient, race
from labkit.network.host import Counters
from labkit.network.tiers import KERNEL, origin
from labkit.servers import HttpServer

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = sorted(path.parent for folder in recorded.FOLDERS for path in folder.glob("*/recording.json"))


def one_connection(lab: Lab) -> Captured:
    with lab.server, socket.create_server(("server.lab", 80)), lab.capture() as capture:
        with lab.client, socket.create_connection(("server.lab", 80)):
            pass
    return capture


def test_a_value_comes_back_as_it_was(lab: Lab, tmp_path: Path) -> None:
    capture = one_connection(lab)
    value = {"one": [capture, lab.client.counters], ("a", 1): (None, True, 2, 0.5, "text", b"\0\xff")}
    recorded.keep("t.s/a value", value, tmp_path)
    again = recorded.recall("t.s/a value", folder=tmp_path)
    assert again["a", 1] == value["a", 1]
    (kept, counters), original = again["one"], value["one"][1]
    assert counters == original
    assert isinstance(counters, Counters)
    assert [frame.data for frame in kept.frames] == [frame.data for frame in capture.frames]
    assert kept.transits == capture.transits
    assert kept.messages == capture.messages
    assert str(kept.ladder()) == str(capture.ladder())
    assert (kept.at, kept.hosts) == (capture.at, capture.hosts)


def test_a_recorded_capture_says_so_wherever_it_is_shown(lab: Lab, tmp_path: Path) -> None:
    recorded.keep("t.s/one", one_connection(lab), tmp_path)
    kept = recorded.recall("t.s/one", folder=tmp_path)
    index = json.loads((tmp_path / "t.s" / recorded.INDEX).read_text())
    assert kept.tier == f"recorded, {index['kernel']}, {index['date']}"
    assert kept.tier in repr(kept)
    assert origin(kept.ladder().tier) == f"R{kept.tier[1:]}: not on this machine."


def test_a_capture_keeps_its_own_secrets(lab: Lab, tmp_path: Path) -> None:
    """Two TLS connections, one of them captured: the other's secrets stay out of the file."""
    with HttpServer(lab.server, tls="1.3") as server:
        client = TlsClient(lab.client, server, version="1.3")
        client.fetch()
        with lab.capture() as capture:
            client.fetch()
    recorded.keep("t.s/tls", capture, tmp_path)
    kept = recorded.recall("t.s/tls", folder=tmp_path)
    randoms = {line.split()[1] for line in kept.secrets.splitlines()}
    assert len(randoms) == 1
    assert len({line.split()[1] for line in capture.secrets.splitlines() if not line.startswith("#")}) == 2
    whats = [packet.what for packet in kept.messages]
    assert any("GET / HTTP/1.1" in what for what in whats)


def test_recording_again_replaces(lab: Lab, tmp_path: Path) -> None:
    for value in ([one_connection(lab), one_connection(lab)], one_connection(lab), 5):
        recorded.keep("t.s/again", value, tmp_path)
    assert recorded.recall("t.s/again", folder=tmp_path) == 5
    assert [path.name for path in (tmp_path / "t.s").iterdir()] == [recorded.INDEX]


@pytest.mark.parametrize("key", ["", "name", "t.s/", "../t.s/name", "t.s/../name", "t.s/a/b", 5])
def test_keys_that_cannot_be(lab: Lab, key: Any) -> None:
    with pytest.raises(InvalidValue, match="key="):
        lab.live_or_recorded(key, lambda: 1)


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="a set cannot be recorded"):
        recorded.keep("t.s/set", {"a": {1, 2}}, tmp_path)


def test_live_where_the_tier_can(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lab.tier == KERNEL
    assert lab.live_or_recorded("t.s/live", lambda a, b: a + b, 1, 2) == 3
    monkeypatch.setenv("LABKIT_RECORD", str(tmp_path))
    assert lab.live_or_recorded("t.s/live", lambda: 4) == 4
    assert recorded.recall("t.s/live", folder=tmp_path) == 4
    with pytest.raises(InvalidValue, match="needs='luck': one of kernel, sysctls"):
        lab.live_or_recorded("t.s/live", lambda: 4, needs="luck")


@pytest.mark.parametrize(("tier", "live"), [("fixed-sysctls", {"kernel"}), ("loopback", set())])
def test_recorded_where_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tier: str, live: set[str]) -> None:
    monkeypatch.setenv("LABKIT_TIER", tier)
    monkeypatch.setattr(recorded, "FOLDERS", [tmp_path])
    recorded.keep("t.s/there", "recorded", tmp_path)
    with Lab(rtt_ms=0) as lab:
        for need in ("kernel", "sysctls"):
            expected = "live" if need in live else "recorded"
            assert lab.live_or_recorded("t.s/there", lambda: "live", needs=need) == expected
        with pytest.raises(NotAvailableHere, match=r"Recorded for t\.s was: 'there'"):
            lab.live_or_recorded("t.s/not there", lambda: "live", needs="sysctls")


def test_the_message_stands_alone_in_a_notebook() -> None:
    (line,) = NotAvailableHere("no kernel")._render_traceback_()
    assert line == "Not available here: no kernel"


@pytest.mark.parametrize("folder", RECORDINGS, ids=lambda path: path.name)
def test_the_books_recordings_are_whole_and_small(folder: Path) -> None:
    index = json.loads((folder / recorded.INDEX).read_text(encoding="utf-8"))
    assert index["kernel"].startswith("Linux ")
    assert folder.name == "race" or contents()[folder.name]
    named = set()
    for name in index["values"]:
        recorded.recall(f"{folder.name}/{name}")
        named |= set(_files(index["values"][name]))
    assert named | {recorded.INDEX} == {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 250_000


def _files(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*([value["capture"]] if "capture" in value else []), *(f for v in value.values() for f in _files(v))]
    return [file for item in value for file in _files(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("tier", ["fixed-sysctls", "loopback"])
def test_the_race_takes_fast_open_from_a_recording(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    monkeypatch.setenv("LABKIT_TIER", tier)
    with Lab(rtt_ms=20) as lab:
        results = race(lab, ["tfo", "tcp", "tfo+tls1.3-0rtt"], runs=1)
        assert results["tcp"].tier == lab.tier == results.tier
    for name in ("tfo", "tfo+tls1.3-0rtt"):
        assert results[name].tier.startswith("recorded, Linux")
        assert results[name].whole_rtts == 1
        assert results[name].proof["holds"]
        assert results[name].rtt_ms == 40
    assert results["tcp"].whole_rtts == 2
    assert str(results).count("(recorded, Linux") == 2


def test_only_the_highest_tier_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with pytest.raises(NotAvailableHere, match="recordings are made on the tier 'kernel'"):
        record(contents(), ROOT, ["race"])
    with pytest.raises(InvalidValue):
        record(contents(), ROOT, ["no.such"])


def test_recording_a_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The race, the quickest of them: into another folder, with the same keys as the book's."""
    monkeypatch.setattr(recorded, "OWN", tmp_path)
    assert record(contents(), ROOT, ["race"]) == [tmp_path / "race"]
    new, old = (
        json.loads((folder / "race" / recorded.INDEX).read_text())["values"]
        for folder in (tmp_path, Path(recorded.__file__).parent / "recordings")
    )
    assert set(new) == set(old)
