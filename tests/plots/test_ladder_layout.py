"""A ladder's picture: nothing lies on anything, times at both ends, long waits as breaks, hosts that are passed by."""

from __future__ import annotations

from functools import partial

import pytest
from looking import look_at, texts

from labkit.capture.ladder import Ladder, Row, in_words
from labkit.plots import plot_ladder
from labkit.plots.ladder_layout import LABEL_LINE, TIME_HEIGHT, Layout, _box, lay_out

C, S, P = "client", "server", "proxy"
TLS = [  # as a machine with other work to do sends them: a request under way while tickets come
    (C, S, 0, 20.2, "SYN"),
    (S, C, 20.3, 40.3, "SYN-ACK"),
    (C, S, 40.4, 62.4, "ACK"),
    (C, S, 40.9, 62.5, "ClientHello"),
    (S, C, 64.3, 86.4, "ServerHello\nEncryptedExtensions\nCertificate\nFinished"),
    (C, S, 88.3, 110.4, "Finished"),
    (C, S, 90.6, 111.2, "GET / HTTP/1.1"),
    (S, C, 110.9, 130.9, "NewSessionTicket"),
    (S, C, 111.0, 131.0, "NewSessionTicket"),
    (S, C, 115.1, 138.3, "HTTP/1.1 200"),
    (S, C, 115.2, 138.3, "Alert close_notify"),
]
THREE = [
    (C, P, 0, 22.5, "SYN"),
    (P, C, 22.6, 45.1, "SYN-ACK"),
    (C, P, 45.2, 67.7, "GET / HTTP/1.1"),
    (P, S, 68.7, 71.2, "SYN"),
    (S, P, 71.3, None, "SYN-ACK"),
    (P, S, 1091.8, 1094.6, "again: SYN"),
    (S, P, 1094.7, 1097.1, "again: SYN-ACK"),
    (P, S, 1097.2, 1100.0, "GET / HTTP/1.1"),
    (S, P, 1101.0, 1103.5, "HTTP/1.1 200"),
    (P, C, 1103.6, 1123.7, "HTTP/1.1 200"),
]
ROLES = {"GET": "request", "HTTP": "response"}


def ladder_of(packets: list[tuple[str, str, float, float | None, str]], *hosts: str) -> Ladder:
    rows = []
    for number, (source, destination, sent, received, label) in enumerate(packets, 1):
        role = ROLES.get(label[:4].split()[0], "")
        parts = tuple(label.split("\n"))
        rows.append(Row(number, sent, received, source, destination, parts, "tcp", "", received is None, False, role))
    return Ladder(hosts, tuple(rows), 0, "kernel")


def laid_out(ladder: Ladder) -> Layout:
    columns = {host: float(place) for place, host in enumerate(ladder.hosts)}
    return lay_out(
        ladder.rows,
        columns,
        ladder.waits,
        wrap=40,
        width=partial(lambda text, is_time: len(text) * 0.0135),
        time="{:.1f}".format,
    )


@pytest.mark.parametrize("ladder", [ladder_of(TLS, C, S), ladder_of(THREE, C, S, P)], ids=["two hosts", "three"])
def test_nothing_lies_on_a_label(ladder: Ladder) -> None:
    layout = laid_out(ladder)
    assert layout.crowded == []
    labels = []
    for placed in layout.labels:
        lines = placed.text.split("\n")
        labels.append(_box(placed, LABEL_LINE * len(lines), max(map(len, lines)) * 0.0135))
    times = [_box(placed, TIME_HEIGHT, len(placed.text) * 0.0135, middle=True) for placed in layout.times]
    for number, box in enumerate(labels):
        assert [other for other in layout.arrows if other.crosses(box)] == []
        assert [other for place, other in enumerate([*labels, *times]) if place != number and other.meets(box)] == []
        assert not any(box.left < column < box.right for column in range(len(ladder.hosts)))
    for number, box in enumerate(times):
        assert [other for place, other in enumerate(times) if place != number and other.meets(box)] == []


def test_times_stand_at_both_ends() -> None:
    """Of sending always; of arrival once for those that come at the same time."""
    said = [placed.text for placed in laid_out(ladder_of(TLS, C, S)).times]
    assert {f"{sent:.1f}" for _, _, sent, _, _ in TLS} <= set(said)
    assert {f"{received:.1f}" for _, _, _, received, _ in TLS} <= set(said)
    assert said.count("138.3") == 1


def test_time_runs_down() -> None:
    layout = laid_out(ladder_of(THREE, C, S, P))
    starts = [arrow.y0 for arrow in layout.arrows]
    assert starts == sorted(starts)
    assert all(arrow.y1 > arrow.y0 for arrow in layout.arrows)


def test_a_long_wait_is_a_break_with_its_length() -> None:
    ladder = ladder_of(THREE, C, S, P)
    assert list(ladder.waits) == [1091.8]
    ((top, bottom, length_ms),) = laid_out(ladder).breaks
    assert length_ms == pytest.approx(1091.8 - 71.3)
    assert all(not top < y < bottom for arrow in laid_out(ladder).arrows for y in (arrow.y0, arrow.y1))
    assert "1.02 seconds pass" in texts(plot_ladder(ladder))
    lines = str(ladder).splitlines()
    (number,) = [number for number, line in enumerate(lines) if "1.02 seconds pass" in line]
    assert "again: SYN" in lines[number + 1] and lines[number].count(":") == 3
    assert laid_out(ladder_of(TLS, C, S)).breaks == []
    assert in_words(230) == "230 milliseconds pass"


def test_a_host_that_is_passed_by_stays_visible() -> None:
    lines = str(ladder_of(THREE, C, S, P)).splitlines()
    middle = lines[4].index("|", 20)
    assert [line[middle] for line in lines[1:4]] == ["|"] * 3
    assert "SYN-ACK" in lines[2][middle:]  # in the gap of its sender


def test_requests_and_responses_have_their_colours_and_the_small_print_says_so() -> None:
    picture = plot_ladder(ladder_of(THREE, C, S, P))
    look_at(picture)
    assert any("Blue: requests, purple: responses." in " ".join(text.split()) for text in texts(picture))
    drawn = {
        arrow.arrow_patch.get_edgecolor()
        for arrow in picture.figure.axes[0].texts
        if getattr(arrow, "arrow_patch", None)
    }
    assert len(drawn) == 4  # control, request, response, lost


def test_a_very_long_ladder_says_what_it_leaves_out() -> None:
    many = [(C, S, number * 1.0, number + 20.0, f"packet {number}") for number in range(5000)]
    ladder = ladder_of(many, C, S)
    lines = str(ladder).splitlines()
    assert len(lines) == 502
    assert lines[-1].strip().endswith("the first 500 of 5000 packets: choose by connection, stream, between")
    picture = plot_ladder(ladder)
    assert len(picture.alt.splitlines()) < 70
    assert any("The first 60 of 5000 packets are drawn." in " ".join(text.split()) for text in texts(picture))
