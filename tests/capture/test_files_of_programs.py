"""Captures as other programs write them: dumpcap and tshark on a lab's host, editcap, mergecap and text2pcap."""

from __future__ import annotations

import gzip
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from blocks import ethernet, udp

from labkit import Captured, InvalidValue, Lab
from labkit.servers import HttpServer, Response
from labkit.waiting import wait_until

Require = Callable[[str], str]


def complete(path: Path) -> bool:
    """Whether both sides' FINs are in the file. It may be looked at in the middle of a packet."""
    try:
        return sum("FIN" in packet.flags for packet in Captured.open(path).messages) >= 2
    except (InvalidValue, FileNotFoundError):
        return False


@pytest.fixture(scope="session")
def tool(require_program: Require) -> Require:
    """``tool("editcap")``: a program of dumpcap's package, or another one."""
    beside = {"editcap", "mergecap", "text2pcap"}

    def find(name: str) -> str:
        return str(Path(require_program("dumpcap")).with_name(name)) if name in beside else require_program(name)

    return find


@dataclass
class Https:
    file: Path
    keylog: Path
    wire: Captured


@pytest.fixture(scope="module", params=["dumpcap", "tshark"])
def https(request: pytest.FixtureRequest, require_program: Require, tmp_path_factory: pytest.TempPathFactory) -> Https:
    """A curl on a lab's host, captured there by another program: Ethernet by dumpcap, cooked by tshark on "any"."""
    program, curl, folder = require_program(request.param), require_program("curl"), tmp_path_factory.mktemp("https")
    made = Https(folder / "curl.pcapng", folder / "keys.log", None)  # type: ignore[arg-type]
    words = {"dumpcap": ["-i", "eth0"], "tshark": ["-i", "any", "-p"]}[request.param]
    with Lab(rtt_ms=10) as lab, HttpServer(lab.server, lambda _: Response(body=bytes(5000)), tls="1.3") as server:
        with lab.client.start([program, *words, "-w", str(made.file)]) as running:
            wait_until(made.file.exists, what=f"the file of {program}")
            wait_until(lambda: "Capturing on" in running.stderr, what=f"the start of {program}")
            with lab.capture() as made.wire:
                command = [curl, "-sS", "-o", "/dev/null", f"https://server.lab:{server.port}/pages/1"]
                lab.client.run(command, env={"SSLKEYLOGFILE": str(made.keylog)}).check()
                wait_until(lambda: complete(made.file), what="the end of the connection in the file")
    return made


def said(capture: Captured) -> list[tuple[bool, str, str]]:
    """Who said what: each message of HTTP once, without what depends on the place of the capture."""
    found = {message: packet.from_client for packet in capture.messages for message in packet.messages}
    return [(sender, message.name, message.detail) for message, sender in found.items() if message.protocol == "HTTP"]


def test_https_of_curl_with_the_key_log_beside(https: Https) -> None:
    """The file says what the wire saw, under TLS; without the secrets it does not."""
    capture = Captured.open(https.file, keylog=https.keylog)
    assert [name for _, name, _ in said(capture)] == ["GET /pages/1 HTTP/1.1", "HTTP/1.1 200"]
    assert said(capture) == said(https.wire)
    assert len(capture.messages) == len(https.wire.messages)
    assert not any(packet.lost for packet in capture.messages)
    clients = {packet.flow.client for packet in https.wire.messages}
    assert {capture.transits[0].source} == clients
    assert "GET /pages/1 HTTP/1.1" in str(capture.ladder())
    assert "Application data (encrypted)" in Captured.open(https.file).table()


def test_secrets_inside(https: Https, tool: Require, tmp_path: Path) -> None:
    file = tmp_path / "secrets.pcapng"
    run([tool("editcap"), "--inject-secrets", f"tls,{https.keylog}", str(https.file), str(file)])
    capture = Captured.open(file)
    assert said(capture) == said(https.wire)
    saved = Captured.open(capture.save(tmp_path / "saved.pcapng.gz"))
    assert (said(saved), saved.table()) == (said(capture), capture.table())


@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "pcapng"])
def test_formats(https: Https, tool: Require, tmp_path: Path, kind: str) -> None:
    """The same packets at the same times, as far as the format has them."""
    file = tmp_path / "converted"
    run([tool("editcap"), "-F", kind, str(https.file), str(file)])
    file.write_bytes(gzip.compress(file.read_bytes()))
    whole, capture = Captured.open(https.file), Captured.open(file)
    exact = 1000 if kind == "pcap" else 1
    assert [f.time_ns for f in capture.frames] == [f.time_ns // exact * exact for f in whole.frames]
    assert [f.data for f in capture.frames] == [f.data for f in whole.frames]


def test_what_an_error_suggests_helps(https: Https, tool: Require, tmp_path: Path) -> None:
    whole, cut = Captured.open(https.file), tmp_path / "cut.pcapng"
    cut.write_bytes(https.file.read_bytes()[:-300])
    with pytest.raises(InvalidValue, match="editcap"):
        Captured.open(cut)
    subprocess.run([tool("editcap"), cut, tmp_path / "whole.pcapng"], capture_output=True)
    kept = Captured.open(tmp_path / "whole.pcapng").frames
    assert 0 < len(kept) < len(whole.frames) and kept == whole.frames[: len(kept)]


def test_packets_cut_by_a_limit(https: Https, tool: Require, tmp_path: Path) -> None:
    """Payload that was not captured still counts; what it says is not known."""
    file = tmp_path / "short.pcapng"
    run([tool("editcap"), "-s", "80", str(https.file), str(file)])
    whole, capture = Captured.open(https.file), Captured.open(file)
    assert [packet.payload for packet in capture.messages] == [packet.payload for packet in whole.messages]
    assert max(len(frame.data) for frame in capture.frames) <= 80


def test_merged_files_have_several_interfaces(https: Https, tool: Require, tmp_path: Path) -> None:
    """Of different link types and resolutions, packets of one between those of the other."""
    times = [frame.time_ns for frame in Captured.open(https.file).frames]
    hexdump = text_of(udp(b"hello", "192.0.2.7"), times[len(times) // 2])
    raw, both = str(tmp_path / "raw.pcapng"), str(tmp_path / "both.pcapng")
    run([tool("text2pcap"), "-q", "-t", "%s.%f", "-l", "101", "-", raw], hexdump)
    run([tool("mergecap"), "-w", both, str(https.file), raw])
    capture = Captured.open(both, keylog=https.keylog)
    assert len(capture.frames) == len(times) + 1
    assert said(capture) == said(https.wire)
    assert [m.data for p in capture.messages for m in p.messages if m.protocol == "UDP"] == [b"hello"]


def test_both_ends_merged_show_when_each_packet_left_and_arrived(tool: Require, tmp_path: Path) -> None:
    curl, dumpcap, files = tool("curl"), tool("dumpcap"), [tmp_path / "client.pcapng", tmp_path / "server.pcapng"]
    with Lab(rtt_ms=20) as lab, HttpServer(lab.server, lambda _: Response(body=bytes(3000))) as server:
        hosts = [lab.client, lab.server]
        running = [
            host.start([dumpcap, "-i", "eth0", "-w", str(file)]) for host, file in zip(hosts, files, strict=True)
        ]
        for each in running:
            wait_until(lambda each=each: "File: " in each.stderr, what="the start of dumpcap")
        lab.client.run([curl, "-sS", "-o", "/dev/null", f"http://server.lab:{server.port}/x"]).check()
        for file in files:
            wait_until(lambda file=file: complete(file), what="the end of the connection in the file")
        for each in running:
            each.close()
    run([tool("mergecap"), "-I", "none", "-w", str(tmp_path / "both.pcapng"), *map(str, files)])
    capture = Captured.open(tmp_path / "both.pcapng")
    whole = [p for p in capture.messages if p.transit.sent_ns is not None and p.transit.received_ns is not None]
    assert len(whole) >= len(capture.messages) - 2  # an ACK of a FIN may have come when one of them had stopped
    assert not any(p.retransmission or p.lost for p in capture.messages)
    assert all(p.transit.received_ns - p.transit.sent_ns >= 9_000_000 for p in whole)
    assert [name for _, name, _ in said(capture)] == ["GET /x HTTP/1.1", "HTTP/1.1 200"]


@pytest.mark.parametrize(("link_type", "data"), [("1", ethernet(udp(b"hello"))), ("101", udp(b"hello"))])
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_text2pcap(tool: Require, tmp_path: Path, link_type: str, data: bytes, kind: str) -> None:
    file = tmp_path / "x"
    text = text_of(data, 1_700_000_000_123_456_789)
    run([tool("text2pcap"), "-q", "-F", kind, "-l", link_type, "-t", "%s.%f", "-", str(file)], text)
    (packet,) = Captured.open(file).messages
    assert packet.messages[0].data == b"hello"
    assert packet.transit.time_ns // 1000 == 1_700_000_000_123_456


@pytest.mark.parametrize("header", ["LINUX_SLL", "LINUX_SLL2", "EN10MB"])
def test_link_headers_of_dumpcap(require_program: Require, tmp_path: Path, header: str) -> None:
    """Two datagrams by their own headers, seen by a host on all of its interfaces or on one."""
    file, interface = tmp_path / "x.pcap", "eth0" if header == "EN10MB" else "any"
    words = [require_program("dumpcap"), "-P", "-i", interface, "-y", header, "-a", "packets:2", "-w", str(file)]
    with Lab(rtt_ms=2) as lab, lab.client.start(words) as dumpcap:
        with lab.client.socket(kind=socket.SOCK_DGRAM) as ours, lab.server.socket(kind=socket.SOCK_DGRAM) as theirs:
            theirs.bind(("", 9999))
            theirs.settimeout(10)
            wait_until(lambda: "File: " in dumpcap.stderr, what="the start of dumpcap")
            ours.sendto(b"question", (lab.server.ip, 9999))
            theirs.sendto(b"answer", theirs.recvfrom(100)[1])
            assert dumpcap.wait() == 0
        ends = [(lab.client.ip, lab.server.ip), (lab.server.ip, lab.client.ip)]
    capture = Captured.open(file)
    assert [(t.source, t.destination) for t in capture.transits] == ends
    assert [m.data for p in capture.messages for m in p.messages] == [b"question", b"answer"]
    assert interface == "eth0" or [frame.sent for frame in capture.frames] == [True, False]


def test_names_that_wireshark_writes(https: Https, require_program: Require, tmp_path: Path) -> None:
    server = Captured.open(https.file).transits[0].destination
    (tmp_path / "hosts").write_text(f"{server} shop.example\n")
    named = tmp_path / "named.pcapng"
    run(
        [
            require_program("tshark"),
            "-r",
            str(https.file),
            "-H",
            str(tmp_path / "hosts"),
            "-N",
            "n",
            "-P",
            "-W",
            "n",
            "-w",
            str(named),
        ]
    )
    assert Captured.open(named).transits[0].destination == "shop.example"


def text_of(data: bytes, time_ns: int) -> str:
    """As text2pcap reads it."""
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}\n0000 {data.hex(' ')}\n"


def run(command: list[str], stdin: str | None = None) -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
