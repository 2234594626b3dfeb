"""Pictures of the kernel's queues: made of real runs and of hard cases, and the view that follows a watch."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from looking import boxes, look_at, overlaps, texts

from book.execution.trial import Trial
from book.execution.trials import plot_trials
from labkit import InvalidValue, Lab, LabClosed
from labkit.load.load import Load
from labkit.plots import Picture, live, plot_buffers, plot_queues
from labkit.queues.fill import fill
from labkit.queues.history import ConnectionHistory, History, ListenerHistory, Steps
from labkit.queues.run_queue import ThreadTimes
from labkit.queues.watch import Watch
from labkit.waiting import wait_until

CLIENT = "192.0.2.1:40000"
EMPTY = History(
    host="server", port=8080, syn_queue=Steps(), listeners={}, connections={}, counters={}, looks=0, duration_s=0.0,
    cpu_s=0.0, started_ns=10**18, tier="kernel",
)  # fmt: skip


def listener(limit: int, *depths: int) -> ListenerHistory:
    """A depth each 0.1 s."""
    return ListenerHistory(Steps(tuple(n / 10 for n in range(len(depths))), depths), Steps((0.0,), (limit,)))


def history(*listeners: ListenerHistory, **about: Any) -> History:
    facts = {"duration_s": 1.0, "looks": 1000, "listeners": dict(enumerate(listeners, 100))}
    return replace(EMPTY, **{**facts, **about})


def lines(picture: Picture, axes: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in picture.figure.axes[axes].lines}


def values(line: Any) -> list[float]:
    return [float(y) for y in line.get_ydata()]


def title(picture: Picture) -> str:
    return " ".join(picture.figure.axes[0].get_title(loc="left").split())


# Queues.


@pytest.fixture(scope="module")
def filled() -> History:
    with Lab(rtt_ms=10) as lab:
        return fill(lab.client, lab.server, backlog=4, clients=12, seconds=2).history


def test_queues_that_were_filled(filled: History) -> None:
    picture = plot_queues(filled, prediction=4)
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    drawn = lines(picture)
    assert max(values(drawn["accept queue"])) == 5
    assert max(values(drawn["SYN queue"])) == filled.syn_queue.peak
    assert set(values(drawn["room for 5: limit 4 + 1"])) == {5}
    assert title(picture).startswith("5 connections filled the accept queue: ")
    assert "Accept queue 5, " in picture.alt
    assert " Limit 4. You said 4 connections." in picture.alt
    assert f"TcpExtListenOverflows {filled.counters['TcpExtListenOverflows']}" in picture.alt
    assert "TcpInSegs" not in picture.alt
    assert any(f"{filled.rate_hz:.0f} looks a second at port 8080." in text for text in texts(picture))
    # The guess is marked, and no words hide the mark.
    (mark,) = picture.figure.axes[0].collections
    ((x, y),) = mark.get_offsets()
    assert (x, y) == (filled.duration_s, 4)
    x, y = picture.figure.axes[0].transData.transform((x, y))
    assert [text for text, box in boxes(picture).items() if box.x0 < x < box.x1 and box.y0 < y < box.y1] == []


@pytest.mark.parametrize(
    ("listeners", "said"),
    [
        ([], "Nobody listened on port 8080"),
        ([listener(16, 0)], "No connection had to wait to be accepted"),
        ([listener(16, 0, 1, 0)], "At most 1 connection waited to be accepted"),
        ([listener(16, 0, 9)], "At most 9 connections waited to be accepted"),
        ([listener(0, 0, 1)], "1 connection filled the accept queue"),
        ([listener(8, 0), listener(8, 0)], "None of 2 listeners let a connection wait"),
        ([listener(8, 9), listener(8, 2)], "1 of 2 accept queues filled up: the deepest held 9 connections"),
        ([listener(8, 4), listener(8, 2)], "Of 2 accept queues the deepest held 4 connections, the emptiest 2"),
    ],
)
def test_the_title_of_queues_is_the_finding(listeners: list[ListenerHistory], said: str) -> None:
    picture = plot_queues(history(*listeners))
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    assert title(picture) == said
    assert title(plot_queues(history(*listeners), "Of one's own")) == "Of one's own"


@pytest.mark.parametrize(
    "run", [EMPTY, history(listener(4, 2), duration_s=0.0, looks=1, syn_queue=Steps((0.0,), (1,)))]
)
def test_queues_of_no_look_and_of_one(run: History) -> None:
    picture = plot_queues(run, prediction=0)
    look_at(picture)
    assert "0 looks a second" in " ".join(texts(picture))


@pytest.mark.parametrize(("limit", "drawn"), [(4, True), (16, True), (128, False), (4096, False), (2**31 - 1, False)])
def test_a_huge_limit_is_said_and_does_not_press_the_steps_flat(limit: int, drawn: bool) -> None:
    picture = plot_queues(history(listener(limit, 0, 3, 1)))
    look_at(picture)
    _, top = picture.figure.axes[0].get_ylim()
    assert top < 3 * 7
    label = f"room for {limit + 1}: limit {limit} + 1"
    assert (label in lines(picture)) == drawn
    assert (label if drawn else f"{label},\nfar above") in texts(picture)
    assert f"Limit {limit}." in picture.alt


def test_a_listener_that_was_closed_had_a_limit() -> None:
    closed = ListenerHistory(Steps((0.0, 0.5), (3, 0)), Steps((0.0, 0.5), (8, 0)))
    assert "room for 9: limit 8 + 1" in lines(plot_queues(history(closed)))


def test_several_listeners_have_a_line_each() -> None:
    run = history(listener(8, 1, 2), listener(8, 3), listener(8, 0, 5))
    picture = plot_queues(run, labels={101: "the new server"})
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    drawn = lines(picture)
    assert [max(values(drawn[name])) for name in ("listener 1", "the new server", "listener 3")] == [2, 3, 5]
    assert "room for 9 each: limit 8 + 1" in drawn
    assert "listener 1 2, the new server 3, listener 3 5" in picture.alt
    # Equal lines are all seen: each is thinner than the one below.
    widths = [drawn[name].get_linewidth() for name in ("listener 1", "the new server", "listener 3")]
    assert widths == sorted(set(widths), reverse=True)


def test_very_many_listeners() -> None:
    picture = plot_queues(history(*(listener(8, 0, n % 7) for n in range(64))))
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    named = [line for name, line in lines(picture).items() if name.startswith("listener ")]
    assert len({(line.get_color(), line.get_linestyle()) for line in named}) == len(named) == 12
    assert "the other 52" in texts(picture)


@pytest.mark.parametrize("guess", ["4", -1, True, float("nan")])
def test_predictions_that_cannot_be(guess: Any) -> None:
    with pytest.raises(InvalidValue, match="prediction="):
        plot_queues(EMPTY, prediction=guess)


def test_recorded_pictures_say_so(filled: History) -> None:
    recorded = replace(filled, tier="recorded, Linux 6.18, 2026-11-24")
    for picture in (plot_queues(recorded), plot_buffers(recorded)):
        look_at(picture, None)
        assert any(text.startswith("Recorded, Linux 6.18, 2026-11-24: not on this machine.") for text in texts(picture))


# Buffers.


def connection(**columns: tuple[int, ...]) -> ConnectionHistory:
    """Values in steps of 0.1 s; what is not told is 0."""
    names = ("receive_queue", "unsent", "unacknowledged", "cwnd", "rtt_us", "send_window")
    told = {"cwnd": (10,), **columns}
    return ConnectionHistory(
        **{n: Steps(tuple(k / 10 for k in range(len(told.get(n, (0,))))), told.get(n, (0,))) for n in names}
    )


def areas(picture: Picture) -> dict[str, float]:
    """The highest edge of each area, KiB."""
    found = picture.figure.axes[0].collections
    return {str(a.get_label()): max(float(p.vertices[:, 1].max()) for p in a.get_paths()) for a in found}


@pytest.fixture(scope="module")
def slow_reader() -> tuple[History, History]:
    """A client sends 1 MiB to a server that reads nothing for a while."""
    with Lab(rtt_ms=10) as lab:
        with lab.server:
            accepting = socket.create_server((lab.server.ip, 9000))
        with accepting, lab.watch(9000, "client", connections=True) as there, lab.watch(9000, connections=True) as here:
            with lab.client:
                sender = socket.create_connection((lab.server.ip, 9000))
            reader, _ = accepting.accept()
            with sender, reader:
                thread = threading.Thread(target=sender.sendall, args=[bytes(1 << 20)])
                thread.start()
                wait_until(lambda: any(c.send_window.last == 0 for c in there.so_far().connections.values()))
                time.sleep(0.5)  # for so long, or longer, it is closed
                left = 1 << 20
                while left:
                    left -= len(reader.recv(1 << 16))
                thread.join()
        return there.history, here.history


def test_buffers_of_a_slow_reader(slow_reader: tuple[History, History]) -> None:
    sender, receiver = slow_reader
    picture = plot_buffers(sender, receiver)
    look_at(picture)
    assert overlaps(boxes(picture)) == []
    ((client, seen),) = sender.connections.items()
    unread = receiver.connections[client].receive_queue.peak / 1024
    drawn = areas(picture)
    assert drawn["unread, at the receiver"] == pytest.approx(unread)
    assert drawn["not sent yet"] > unread
    assert "window closed" in drawn
    assert f"Connection of {client}" in picture.alt
    assert f"unread, at the receiver {unread:.0f} KiB" in picture.alt
    assert f"not sent yet {seen.unsent.peak / 1024:.0f} KiB" in picture.alt
    assert title(picture).startswith("The receiver’s window was closed for ")
    (closed_s,) = re.findall(r", closed for (\d+\.\d\d) s", picture.alt)
    assert float(closed_s) >= 0.4
    alone = plot_buffers(sender)
    look_at(alone)
    assert list(areas(alone)) == ["sent, not acknowledged", "not sent yet", "window closed"]


def test_two_histories_are_put_on_one_clock() -> None:
    sends = history(connections={CLIENT: connection(unsent=(4096, 0), send_window=(8192,))})
    reads = history(
        connections={CLIENT: connection(receive_queue=(0, 2048))}, started_ns=EMPTY.started_ns + 500_000_000
    )
    picture = plot_buffers(sends, reads)
    look_at(picture)
    axes = picture.figure.axes[0]
    assert axes.get_xlim() == (0, 1.5)
    unread = next(area for area in axes.collections if area.get_label() == "unread, at the receiver")
    corners = unread.get_paths()[0].vertices
    assert corners[corners[:, 1] > 0][:, 0].min() == pytest.approx(0.6)
    assert areas(picture)["not sent yet"] == 4


def test_moments_of_a_closed_window_are_shaded_to_their_end() -> None:
    columns = {"unsent": (1000, 2000, 2000, 2000), "cwnd": (10, 10, 10, 10, 0), "send_window": (4096, 0, 512, 0, 0)}
    picture = plot_buffers(history(connections={CLIENT: connection(**columns)}))
    look_at(picture)
    assert title(picture).startswith("The receiver’s window was closed for 0.2 s")
    shaded = next(area for area in picture.figure.axes[0].collections if area.get_label() == "window closed")
    spans = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in shaded.get_paths()]
    assert np.allclose(spans, [(0.1, 0.2), (0.3, 0.4)])  # and not when the connection has gone


def test_a_window_far_above_does_not_press_the_rest_flat() -> None:
    picture = plot_buffers(history(connections={CLIENT: connection(unsent=(64 << 10,), send_window=(3 << 20,))}))
    look_at(picture)
    assert picture.figure.axes[0].get_ylim()[1] < 64 * 4
    assert "peer’s receive window,\nup to 3072 KiB" in texts(picture)
    assert "never closed" in title(picture)


def test_kernels_that_do_not_tell_the_window() -> None:
    picture = plot_buffers(history(connections={CLIENT: connection(unsent=(64 << 10,))}))
    look_at(picture)
    assert "did not tell" in picture.alt
    assert "window" not in title(picture)
    assert "window closed" not in areas(picture)


def test_which_connection() -> None:
    run = history(connections={"a:1": connection(unsent=(10,)), "b:2": connection(unacknowledged=(9000,))})
    assert "Connection of b:2" in plot_buffers(run).alt
    assert "Connection of a:1" in plot_buffers(run, client="a:1").alt
    assert "Connection of c:3" in plot_buffers(run, history(connections={"c:3": connection(receive_queue=(9999,))})).alt
    with pytest.raises(InvalidValue, match=r"client='c:3': .* 'a:1', 'b:2'"):
        plot_buffers(run, client="c:3")
    with pytest.raises(InvalidValue, match="none"):
        plot_buffers(EMPTY, client="c:3")
    for nothing in (EMPTY, history(duration_s=0.0)):
        picture = plot_buffers(nothing, nothing)
        look_at(picture)
        assert title(picture) == "No connection was seen"


# Trials.


class Told(SimpleNamespace):
    """A load of which only what a plot reads is known."""

    def percentile_ms(self, p: float) -> float:
        return float("nan") if not self.completed else 2.0 + p * p / 100


def made(
    name: str = "one thread does all", rate: float = 900.0, threads: tuple[ThreadTimes, ...] = (), **about: Any
) -> Any:
    load = Told(throughput=rate, completed=int(rate), errors={}, unfinished=0, busy=0.1, tier="kernel")
    vars(load).update(about)
    return Trial(name, load, history(listener(128, 0, 14, 3, 0)), threads, 1.0)


def thread(name: str, running_s: float = 0.2, waiting_s: float = 0.1) -> ThreadTimes:
    return ThreadTimes(name, 1, 2, running_s, waiting_s, 0, 0)


READERS = tuple(thread(f"reader {n}", 0.02, 0.3) for n in range(1, 17))
NAMES = [
    "listener, acceptor, reader", "one thread does all", "one acceptor, many readers",
    "one acceptor and reader, balanced messages", "many acceptors on one socket", "socket sharding",
]  # fmt: skip


@pytest.mark.parametrize("count", range(1, 7))
def test_trials(count: int) -> None:
    errors = {"timeout": 12, "refused": 3}
    trials = [
        made(name, 300.0 + 200 * place, (thread("main", 0.004), *READERS), errors=errors if place == 1 else {})
        for place, name in enumerate(NAMES[:count])
    ]
    picture = plot_trials(trials)
    look_at(picture)
    assert overlaps(boxes(picture), allowance=2) == []
    said = texts(picture)
    for each in trials:
        assert f"{each.name}: {each.load.throughput:.0f} requests a second" in picture.alt
        assert f"{each.load.throughput:.0f}" in said
        assert each.name in said
    assert picture.alt.count("latency p50 27 ms, p90 83 ms, p99 100 ms, p99.9 102 ms, max 102 ms") == count
    assert picture.alt.count("accept queue 14 at most") == count
    assert picture.alt.count("main 0 + 10 %, 16 × reader 32 + 480 %") == count
    assert ("15 errors: timeout 12, refused 3" in said) == (count > 1)
    _, latency, *strips, _ = picture.figure.axes
    assert len(latency.lines) == len(strips) == count
    assert len({(line.get_color(), line.get_marker()) for line in latency.lines}) == count
    assert [max(strip.lines[0].get_ydata()) for strip in strips] == [14] * count
    assert len({strip.get_ylim() for strip in strips}) == 1
    if count > 1:
        wanted = (
            f"“{NAMES[count - 1]}” completed {(100 + 200 * count) / 300:.1f} times as many requests as “{NAMES[0]}”"
        )
        assert title(picture) == wanted


def test_the_threads_of_a_single_trial_have_a_bar_each() -> None:
    threads = (thread("main", 0.0, 0.001), *(thread(f"worker {n}", n / 10, 0.05) for n in range(1, 5)))
    picture = plot_trials([made(threads=threads)])
    look_at(picture)
    axes = picture.figure.axes[-1]
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"worker {n}" for n in range(1, 5)]
    assert [round(bar.get_width()) for bar in axes.patches] == [10, 5, 20, 5, 30, 5, 40, 5]
    assert "worker 3 30 + 5 %" in picture.alt
    many = plot_trials([made(threads=READERS)])
    assert [text.get_text() for text in many.figure.axes[-1].get_yticklabels()] == ["16 × reader"]


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([], "Nothing was measured yet"),
        ([made(rate=0.0, errors={"timeout": 9})], "“one thread does all”: 0 requests a second"),
        ([made("a"), made("b", 0.0, errors={"refused": 4})], "“b” completed no request"),
        ([made("a"), made("b")], "Both completed about 900 requests a second"),
        ([made("a"), made("b"), made("c", 890.0)], "All 3 completed about 900 requests a second"),
        ([made()], "“one thread does all”: 900 requests a second, 99 % within 100 ms"),
        ([made("x" * 90), made("y" * 90, 450.0)], f"“{'x' * 90}” completed 2.0 times as many requests as “{'y' * 90}”"),
    ],
)
def test_the_title_of_trials_is_the_finding(trials: list[Any], said: str) -> None:
    picture = plot_trials(trials)
    look_at(picture, "kernel" if trials else None)
    assert title(picture) == said


def test_trials_of_several_tiers_and_a_busy_generator() -> None:
    recorded = made("kept", tier="recorded, Linux 6.18, 2026-11-24")
    picture = plot_trials([made("here", busy=0.95), recorded])
    look_at(picture, None)
    small_print = " ".join(" ".join(texts(picture)).split())
    assert "here: Measured on this machine, tier: kernel." in small_print
    assert "kept: Recorded, Linux 6.18, 2026-11-24: not on this machine." in small_print
    assert "here: the load generator was busy 95% and may have been the limit." in small_print


def test_too_many_trials() -> None:
    with pytest.raises(InvalidValue, match="7 trials"):
        plot_trials([made()] * 7)


def test_made_loads_say_what_real_ones_say() -> None:
    assert {"throughput", "percentile_ms", "busy"} <= set(vars(Load))
    assert {"errors", "unfinished", "completed", "tier"} <= set(Load.__dataclass_fields__)


# The view that follows a watch.


class Scripted:
    """A watch of which a test knows everything."""

    def __init__(self) -> None:
        self.closed, self.looks, self.lab_closed = False, 0, False

    def so_far(self) -> History:
        if self.lab_closed:
            raise LabClosed("it is closed")
        self.looks += 1
        return history(listener(4, *range(min(self.looks, 5))))


@pytest.fixture(autouse=True)
def no_thread_is_left(until: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    until(lambda: not followers())
    assert capfd.readouterr() == ("", "")


def followers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "labkit-live"]


def shown(view: Any) -> dict[str, Any]:
    """As a front end asks for it."""
    return dict(view._repr_mimebundle_())


def test_a_view_follows_and_ends_with_its_watch(until: Callable[..., None]) -> None:
    watch = Scripted()
    view = live(watch, every_s=0.1)
    assert followers() == []  # nobody looks yet
    assert "Scripted" in repr(view)
    bundle = shown(view)
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert view.picture.alt in bundle["text/plain"]
    assert bundle["text/html"].startswith('<img alt="No connection had to wait')
    until(lambda: "At most 2 connections" in view._widget.value)
    assert followers() == ["labkit-live"]
    again = shown(view)
    assert followers() == ["labkit-live"]
    assert again["application/vnd.jupyter.widget-view+json"] == bundle["application/vnd.jupyter.widget-view+json"]
    watch.closed = True
    until(lambda: view.closed)
    assert watch.looks >= 4
    assert f'<img alt="{view.picture.alt}"' in view._widget.value


@pytest.mark.parametrize("end", ["close", "close_twice", "widget"])
def test_a_view_ends_when_it_is_closed(end: str, until: Callable[..., None]) -> None:
    watch = Scripted()
    view = live(watch, every_s=60)
    shown(view)
    if end == "widget":
        view._widget.close()
    else:
        view.close()
        assert followers() == []
        view.close()
        assert view.closed
    watch.closed = end == "widget"
    until(lambda: view.closed)


def test_a_watch_that_ended_is_drawn_once() -> None:
    watch = Scripted()
    watch.closed, watch.looks = True, 4
    view = live(watch)
    assert "4 connections" in shown(view)["text/plain"]
    view.close()


def test_a_lab_that_closes_ends_the_view(until: Callable[..., None]) -> None:
    watch = Scripted()
    view = live(watch, every_s=0.1)
    shown(view)
    watch.lab_closed = True
    until(lambda: view.closed)
    assert "connection" in view._widget.value
    assert shown(live(watch)) == {"text/plain": "<LiveView: its lab was closed before it was shown>"}


def test_a_drawing_that_fails_is_said_in_the_view(until: Callable[..., None]) -> None:
    watch = Scripted()

    def draw(run: History) -> Picture:
        if watch.looks > 1:
            raise RuntimeError("<no> ink")
        return plot_queues(run)

    view = live(watch, every_s=0.1, draw=draw)
    shown(view)
    until(lambda: view.closed)
    assert "<pre>RuntimeError: &lt;no&gt; ink</pre>" in view._widget.value
    assert "<img alt=" in view._widget.value
    with pytest.raises(RuntimeError, match="ink"):  # at once: that is the cell's own
        shown(live(watch, draw=draw))


def test_drawing_takes_a_small_share_of_the_time(until: Callable[..., None]) -> None:
    watch = Scripted()

    def slow(run: History) -> Picture:
        began = time.thread_time()
        while time.thread_time() < began + 0.15:
            pass
        return plot_queues(run)

    view = live(watch, every_s=0.1, draw=slow)
    shown(view)
    began = time.monotonic()
    until(lambda: watch.looks >= 3, deadline_s=30)
    assert time.monotonic() - began > 5 * 0.15
    view.close()


def test_a_view_of_a_real_watch(lab: Lab, until: Callable[..., None]) -> None:
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(lab.watch(8080))
        with lab.server:
            listening = stack.enter_context(socket.create_server((lab.server.ip, 8080), backlog=4))
        view = live(watch, every_s=0.1)
        shown(view)
        with lab.client:
            for _ in range(12):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listening.getsockname())
        # The first picture of a run looks through the machine's fonts, which takes long where others do the same.
        until(lambda: "5 connections filled" in view._widget.value, deadline_s=60)
    until(lambda: view.closed)
    assert view.picture.alt == plot_queues(watch.history).alt


@pytest.mark.parametrize("draw", [plot_queues, plot_buffers])
def test_a_real_lab_that_closes_under_its_view(draw: Any, until: Callable[..., None]) -> None:
    with Lab(rtt_ms=10) as lab:
        watch = Watch(lab.server, 8080, connections=True)
        view = live(watch, every_s=0.1, draw=draw)
        shown(view)
    until(lambda: view.closed)
    assert "<pre>" not in view._widget.value


@pytest.mark.parametrize("every_s", [0, 0.01, -1, "1", True])
def test_periods_that_cannot_be(every_s: Any) -> None:
    with pytest.raises(InvalidValue, match="every_s="):
        live(Scripted(), every_s=every_s)
