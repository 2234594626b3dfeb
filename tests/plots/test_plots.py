"""Pictures of real results: they are images, say what was found, and nothing lies on top of something else."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import Any

import pytest
from looking import boxes, look_at, overlaps, texts

from book.https.gap import plot_gap
from labkit import InvalidValue, Lab
from labkit.capture.ladder import Ladder
from labkit.handshakes import VARIANTS, Race, race, variant
from labkit.plots import Picture, plot_ladder, plot_race
from labkit.servers import HttpServer


@pytest.fixture(scope="module")
def finished() -> Race:
    with Lab(rtt_ms=40) as lab:
        return race(lab, runs=1)


@pytest.fixture(scope="module")
def relayed() -> Ladder:
    """Three hosts: the client asks a proxy, the proxy asks the server, whose first SYN-ACK is lost."""
    with Lab(rtt_ms=20, hosts=["proxy"]) as lab:
        proxy = lab["proxy"]
        with proxy, socket.create_server((proxy.ip, 8080)) as listener, HttpServer(lab.server):

            def relay() -> None:
                connection, _ = listener.accept()
                with connection, proxy, socket.create_connection((lab.server.ip, 80)) as onward:
                    onward.sendall(connection.recv(65536))
                    connection.sendall(onward.recv(65536))

            thread = threading.Thread(target=relay)
            with lab.wire.drop(source="server", tcp_flags="SA", count=1), lab.capture() as capture:
                thread.start()
                with lab.client, socket.create_connection((proxy.ip, 8080)) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n")
                    assert sock.recv(65536)
                thread.join()
        return capture.ladder(acks=True)


# The race.

PREDICTIONS: dict[str, Any] = {
    "none": None,
    "no guess": {v.name: None for v in VARIANTS},
    "right": {v.name: v.theory_rtts for v in VARIANTS},
    "one more": {v.name: v.theory_rtts + 1 for v in VARIANTS},
    "a half": {"tcp": 2.5, "quic": 0.5, "tls1.2": None},
    "far": {"tcp": 99},
}
SUBSETS = {
    "all": [v.name for v in VARIANTS],
    "eight": [v.name for v in VARIANTS[3:]],
    "seven": [v.name for v in VARIANTS[:7]],
    "two": ["tcp", "quic-0rtt"],
    "one": ["tls1.3"],
}


@pytest.mark.parametrize(
    ("subset", "prediction"),
    [("all", prediction) for prediction in PREDICTIONS]
    + [(subset, "one more") for subset in SUBSETS if subset != "all"],
)
def test_race(finished: Race, subset: str, prediction: str) -> None:
    part = replace(finished, measurements=tuple(finished[name] for name in SUBSETS[subset]))
    picture = plot_race(part, PREDICTIONS[prediction])
    look_at(picture)
    found = boxes(picture)
    assert overlaps(found) == []
    for measured in part:
        assert f"{measured.name} {measured.measured_rtts:.2f} (theory {measured.theory_rtts})" in picture.alt
        assert f"{measured.measured_rtts:.2f} RTT, {measured.measured_ms:.0f} ms" in texts(picture)
    # A guess is marked, and no words hide the mark.
    guesses = {n: g for n, g in (PREDICTIONS[prediction] or {}).items() if g is not None and n in SUBSETS[subset]}
    axes = picture.figure.axes[0]
    marks = [tuple(xy) for collection in axes.collections for xy in collection.get_offsets()]
    assert sorted(x for x, _ in marks) == sorted(guesses.values())
    assert ("you said" in texts(picture)) == bool(guesses)
    for mark in marks:
        x, y = axes.transData.transform(mark)
        hidden = [text for text, box in found.items() if box.x0 < x < box.x1 and box.y0 < y < box.y1]
        assert hidden == []


def test_the_title_of_a_race_is_the_finding(finished: Race) -> None:
    def title(*names: str) -> str:
        return plot_race(replace(finished, measurements=tuple(finished[name] for name in names))).alt.split(". Round")[
            0
        ]

    def finding(*names: str) -> str:
        """By the clock, which a busy machine can turn round."""
        quick, slow = sorted((finished[name] for name in names), key=lambda measured: measured.measured_rtts)
        factor = slow.measured_rtts / quick.measured_rtts
        return f"{slow.name} waits {factor:.1f} times as long for its first byte as {quick.name}"

    assert title("tls1.2", "quic-0rtt", "tfo") == finding("tls1.2", "quic-0rtt")  # of those that say HTTPS
    assert title("tcp", "tfo") == finding("tcp", "tfo")
    assert title("tcp", "quic-0rtt") == finding("tcp", "quic-0rtt")
    assert title("tcp") == f"tcp takes {finished['tcp'].measured_rtts:.2f} round trips to the first byte"


def test_a_claim_that_does_not_hold_is_marked(finished: Race) -> None:
    good = finished["tfo"]
    runs = tuple(replace(run, proof={**run.proof, "holds": False}) for run in good.runs)
    part = replace(finished, measurements=(replace(good, runs=runs), finished["tcp"]))
    picture = plot_race(part)
    assert [text for text in texts(picture) if text.endswith("  not proven")] == [
        f"{good.measured_rtts:.2f} RTT, {good.measured_ms:.0f} ms  not proven"
    ]
    assert overlaps(boxes(picture)) == []


@pytest.mark.parametrize("guess", ["3", -1, 101, float("nan"), float("inf"), True, [3]])
def test_predictions_that_cannot_be(finished: Race, guess: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        plot_race(finished, {"tls1.3": guess})
    assert f"prediction['tls1.3']={guess!r}" in str(caught.value)


def test_predictions_for_what_does_not_exist(finished: Race) -> None:
    with pytest.raises(InvalidValue, match=r"variant 'tls1\.4'"):
        plot_race(finished, {"tls1.4": 3})
    # Of one that did not run: nothing to mark.
    part = replace(finished, measurements=(finished["tcp"],))
    assert "you said" not in texts(plot_race(part, {"quic": 2}))


# The gap.


def test_gap(finished: Race) -> None:
    four = ["tls1.2", "tls1.3", "quic", "quic-0rtt"]
    points = {rtt: {name: finished[name].measured_rtts * rtt for name in four} for rtt in (40.0, 200.0, 5.0)}
    picture = plot_gap(points, tier="kernel")
    look_at(picture)
    far = points[200]
    slowest, quickest = (
        max(far, key=far.__getitem__),
        min(far, key=far.__getitem__),
    )  # a run that was held up may be either
    gap = far[slowest] - far[quickest]
    assert picture.alt.startswith(
        f"At 200 ms of round-trip time, {slowest} waits {gap:.0f} ms longer than {quickest}. "
    )
    for column in points.values():
        for name, ms in column.items():
            assert f"{name} {ms:.0f} ms" in picture.alt
    for name in four:
        assert f" {name}: {variant(name).theory_rtts} RTT" in texts(picture)
    assert overlaps(boxes(picture)) == []


def test_gap_of_all_variants(finished: Race) -> None:
    """Several lie on one line: each still has a look of its own."""
    picture = plot_gap({40: {m.name: m.measured_ms for m in finished}}, tier="kernel")
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    markers = [line for line in picture.figure.axes[0].lines if line.get_label() in [v.name for v in VARIANTS]]
    assert len({(line.get_color(), line.get_marker()) for line in markers}) == len(VARIANTS)
    assert {v.name for v in VARIANTS} <= set(texts(picture))


@pytest.mark.parametrize(
    ("points", "title"),
    [
        ({}, "Nothing was measured yet"),
        ({40: {}}, "Nothing was measured yet"),
        ({40: {"tcp": 81.0}}, "At 40 ms of round-trip time, tcp waits 81 ms"),
    ],
)
def test_gap_of_little(points: Any, title: str) -> None:
    picture = plot_gap(points, tier="kernel, fixed sysctls")
    look_at(picture, "kernel, fixed sysctls")
    assert picture.alt.split(". ")[0].rstrip(".") == title


def test_gap_of_what_does_not_exist() -> None:
    with pytest.raises(InvalidValue, match=r"variant 'tls1\.4'"):
        plot_gap({40: {"tls1.4": 3}}, tier="kernel")


# Ladders.


def arrows(picture: Picture) -> int:
    return sum(1 for text in picture.figure.axes[0].texts if getattr(text, "arrow_patch", None) is not None)


@pytest.mark.parametrize("name", ["tfo", "tls1.2", "tls1.3-0rtt", "quic", "quic-0rtt"])
def test_ladder(finished: Race, name: str) -> None:
    ladder = finished[name].ladder()
    picture = plot_ladder(ladder, title=f"{name}: {finished[name].measured_rtts:.2f} round trips", rtt_ms=40)
    look_at(picture)
    assert picture.alt.startswith(f"{name}: ")
    assert str(ladder) in picture.alt
    assert arrows(picture) == len(ladder.rows)
    said = texts(picture)
    assert "0.00 RTT" in said
    for row in ladder.rows:
        assert any("".join("".join(row.label).split()) == "".join(text.split()) for text in said), row.label
    assert overlaps(boxes(picture), allowance=3) == []


def test_ladder_of_three_hosts_with_a_lost_packet(relayed: Ladder) -> None:
    picture = plot_ladder(relayed)
    look_at(picture)
    last = max(row.received_ms or row.sent_ms for row in relayed.rows)
    assert picture.alt.startswith(f"{len(relayed.rows)} packets in {last:.1f} ms.")
    said = texts(picture)
    assert {"client", "proxy", "server"} <= set(said)
    assert said.count("SYN-ACK — lost") == 1
    assert any("X lost on the wire" in line for line in picture.alt.splitlines())
    found = boxes(picture)
    hosts = {text: box for text, box in found.items() if text.split(": ")[1] in ("client", "proxy", "server")}
    assert len(hosts) == 3
    covered = [pair for pair in overlaps(found) if set(pair) & set(hosts)]
    assert covered == []


def test_a_long_ladder_is_cut_and_says_so(finished: Race) -> None:
    rows = finished["tls1.2"].capture.ladder(acks=True).rows
    many = tuple(
        replace(row, number=row.number + 100 * copy, sent_ms=row.sent_ms + 1000 * copy,
                received_ms=None if row.received_ms is None else row.received_ms + 1000 * copy)
        for copy in range(4) for row in rows
    )  # fmt: skip
    picture = plot_ladder(Ladder(("client", "server"), many, 7, "kernel"))
    look_at(picture)
    assert arrows(picture) == 60 < len(many)
    small_print = " ".join(" ".join(texts(picture)).split())
    assert f"The first 60 of {len(many)} packets are drawn." in small_print
    assert "Bare acknowledgments left out: 7." in small_print


def test_an_empty_ladder() -> None:
    picture = plot_ladder(Ladder((), (), 0, "kernel"))
    look_at(picture)
    assert "no packets" in picture.alt


def test_a_ladder_on_the_last_line_of_a_cell_is_a_picture(relayed: Ladder) -> None:
    assert "<img alt=" in relayed._repr_mimebundle_()["text/html"]


# Pictures.


@pytest.fixture
def hostile(finished: Race) -> Picture:
    return plot_ladder(finished["tcp"].ladder(), title="\"><script>alert(1)</script> & 'x'")


def test_alternative_text_is_escaped(hostile: Picture) -> None:
    look_at(hostile)
    assert "<script>" not in hostile._repr_mimebundle_()["text/html"]


def test_saving(finished: Race, tmp_path: Any) -> None:
    picture = plot_race(finished)
    for ending, magic in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
        path = picture.save(tmp_path / f"race.{ending}")
        assert path.read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="doc"):
        picture.save(tmp_path / "race.doc")
    with pytest.raises(OSError, match="No such file"):
        picture.save(tmp_path / "nowhere/race.png")
