"""Judges the exercises of the section "Multiplexing and demultiplexing", and makes its hidden trace."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong, recorded
from book.learn.grading import describe
from book.patterns.multiplexing_experiments import installed
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.services import Envoy

TEXT = Text(__file__)

SOON_S = 4.0  # to wait for what needs no time at all
PAUSES_S = (0.05, 0.2, 0.6)


@installed(Envoy)
@recorded
def two_streams(lab: Lab) -> Captured:
    """Two requests to an Envoy, one after the other, over one HTTP/2 connection."""
    import httpx  # no judge needs it

    with Envoy(lab.server), lab.capture() as capture, lab.client:
        with httpx.Client(http1=False, http2=True, base_url="http://server.lab", timeout=10) as client:
            for team in ("home", "away"):
                client.get(f"/{team}")
    return capture


# Exercise 1


class Connection:
    """What a pool holds. It knows who has it.

    Args:
        database: that has opened it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.closed = self.used = False

    def close(self) -> None:
        with self.database.lock:
            if not self.closed:
                self.database.open -= 1
            self.closed = True

    def __repr__(self) -> str:
        return "<Connection>"


class Database:
    """Opens connections, and counts them.

    Args:
        size: so many may be open.
        moods: what becomes of the first attempts: "slow" waits for ``goes``, "refuse" raises ConnectionError.
    """

    def __init__(self, size: int, *moods: str) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.open = self.most = self.opened = 0
        self.goes, self.asked = threading.Event(), threading.Event()
        self.moods = iter(moods)

    def connect(self) -> Connection:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
            self.opened += 1
            mood = next(self.moods, "")
        if mood == "slow":
            self.asked.set()
            self.goes.wait(60)
        if mood == "refuse":
            with self.lock:
                self.open -= 1
            raise ConnectionError("refused")
        return Connection(self)

    def look(self) -> None:
        if self.most > self.size:
            raise Wrong(f"{self.most} connections were open at a time, and the size of the pool is {self.size}")


def _taken(pool: Any, seconds: float, why: str) -> Connection:
    """Acquire what must be there. Raises Wrong with the reason where it is not."""
    try:
        connection = pool.acquire(seconds)
    except TimeoutError:
        raise Wrong(why) from None
    if not isinstance(connection, Connection):
        raise Wrong(f"acquire returned {connection!r}, which connect() never gave")
    return connection


def _refused(pool: Any, seconds: float, why: str) -> None:
    try:
        given = pool.acquire(seconds)
    except TimeoutError:
        return
    raise Wrong(f"{why}: acquire returned {given!r}, and should raise TimeoutError")


def _judge_reuse(make: Callable[..., Any], size: int) -> None:
    database = Database(size)
    pool = make(database.connect, size)
    for _ in range(3):
        pool.release(_taken(pool, SOON_S, "nobody uses the pool, and acquire raised TimeoutError"))
    if database.opened > size:
        raise Wrong(f"three acquires one after the other opened {database.opened} connections: use them again")
    mine = [_taken(pool, SOON_S, f"fewer than {size} are in use, and acquire raised TimeoutError") for _ in range(size)]
    if len({id(each) for each in mine}) < size:
        raise Wrong("the same connection was given to two at a time")
    _refused(pool, 0, f"all {size} are in use, and the time-out is 0")
    _refused(pool, 0.05, f"all {size} are in use, and nobody gives one back")
    pool.release(mine.pop())
    mine.append(_taken(pool, 0, "one that waited in vain still stands in the queue: what came back was kept for it"))
    pool.release(mine[0], broken=True)
    if not mine[0].closed:
        raise Wrong("a connection was given back as broken, and is not closed")
    fresh = _taken(pool, SOON_S, "a broken connection was given back, and its place is lost: open a new one")
    if fresh.closed:
        raise Wrong("a broken connection was given to the next one")
    database.look()


def _judge_refusal(make: Callable[..., Any]) -> None:
    database = Database(1, "refuse")
    pool = make(database.connect, 1)
    try:
        pool.acquire(SOON_S)
    except ConnectionError:
        pass
    except TimeoutError:
        raise Wrong("connect raised ConnectionError, and acquire TimeoutError: let the caller see why") from None
    _taken(pool, SOON_S, "connect raised once, and its place in the pool is lost")


def _judge_slow(make: Callable[..., Any]) -> None:
    """One connect hangs: others must be able to give back and take."""
    database = Database(2)
    pool = make(database.connect, 2)
    first = _taken(pool, SOON_S, "nobody uses the pool, and acquire raised TimeoutError")
    database.moods = iter(["slow"])
    with ThreadPoolExecutor(3) as threads:
        try:
            hangs = threads.submit(pool.acquire, 30)
            if not database.asked.wait(SOON_S):
                raise Wrong("one of two is in use, and the second acquire did not call connect()")

            def back_and_again() -> Connection:
                pool.release(first)
                return _taken(pool, SOON_S, "one connect hangs, and another caller could not take what came back")

            again = threads.submit(back_and_again)
            try:
                again.result(2 * SOON_S)
            except TimeoutError:
                raise Wrong("one connect hangs, and release hangs with it: hold no lock while you connect") from None
        finally:
            database.goes.set()
        hangs.result(SOON_S)


def _overtaken(make: Callable[..., Any], pause_s: float) -> str:
    """Whether one who comes later is served before one who waits. Returns what went wrong, or ""."""
    database = Database(1)
    pool = make(database.connect, 1)
    mine = _taken(pool, SOON_S, "nobody uses the pool, and acquire raised TimeoutError")
    waiters: list[Future[None]] = []
    order: list[int] = []

    def wait(place: int) -> None:
        connection = _taken(pool, 10, "a connection was given back, and one who waited for it raised TimeoutError")
        order.append(place)
        pool.release(connection)

    with ThreadPoolExecutor(3) as threads:
        for place in range(3):
            waiters.append(threads.submit(wait, place))
            threading.Event().wait(pause_s)  # so that it waits before the next one comes
        early = ""
        try:
            pool.release(mine, broken=True)
            try:
                mine = pool.acquire(0)
                early = (
                    "three wait, one gives its connection back and asks again at once: it got it before those who wait"
                )
                pool.release(mine)
            except TimeoutError:
                pass
            for waiter in waiters:
                waiter.result(15)
        except TimeoutError as exc:
            raise Wrong("one gave its connection back as broken, and one who waits was not told") from exc
    if not early and order != [0, 1, 2]:
        early = f"three waited in the order 0, 1, 2, and were served in the order {order}"
    return early


def _judge_crowd(make: Callable[..., Any], size: int, random_: random.Random) -> None:
    """Many threads, each with what it has taken for itself, and now and then a broken one."""
    database = Database(size)
    pool = make(database.connect, size)
    broken = [random_.random() < 0.2 for _ in range(120)]
    clash = threading.Event()

    def use(each: bool) -> None:
        connection = _taken(pool, 30, "120 short uses, and one waited for 30 s")
        with database.lock:
            if connection.used or connection.closed:
                clash.set()
            connection.used = True
        with database.lock:
            connection.used = False
        pool.release(connection, broken=each)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(use, broken))
    if clash.is_set():
        raise Wrong("two had the same connection at a time, or one got a closed one")
    database.look()
    if database.opened > size + sum(broken):
        raise Wrong(f"{database.opened} connections were opened for a pool of {size}: use them again")


def _judge_pool(make: Callable[..., Any]) -> str:
    random_ = random.Random()
    size = random_.randrange(2, 6)
    _judge_reuse(make, size)
    _judge_reuse(make, 1)
    _judge_refusal(make)
    _judge_slow(make)
    _judge_crowd(make, size, random_)
    for pause_s in PAUSES_S:  # whoever waits may be late on a busy machine: wrong is what is wrong each time
        overtaken = _overtaken(make, pause_s)
        if not overtaken:
            return f"Never more than {size}, in turn, and a broken one costs one connect."
    raise Wrong(overtaken)


POOL = TEXT.exercise("pool", _judge_pool, deadline_s=40.0)


# Exercise 2


def _sent(frames: Callable[..., Any], streams: dict[int, bytes], size: int, late: dict[int, bytes]) -> list[Any]:
    """Take all frames. After the third one, further streams come."""
    whole = {**streams, **late}
    most = sum(max(1, -(-len(data) // size)) for data in whole.values())
    taken: list[Any] = []
    try:
        for frame in frames(streams, size):
            if not (isinstance(frame, tuple) and len(frame) == 3):
                raise Wrong(f"yours yielded {frame!r}: yield (stream, piece, last)")
            taken.append(frame)
            if len(taken) == 3:
                streams.update(late)
            if len(taken) > most:
                raise Wrong(f"{most} frames of {size} bytes are enough, and yours go on: frames without data?")
    except RuntimeError as exc:
        raise Wrong(f"a stream came while you were sending, and yours raised {describe(exc)}") from exc
    return taken


def _judge_sent(taken: list[Any], whole: dict[int, bytes], late: dict[int, bytes], size: int) -> None:
    for name, data in whole.items():
        pieces = [(piece, last) for stream, piece, last in taken if stream == name]
        if not pieces:
            why = "it came while the others were being sent" if name in late else f"it has {len(data)} bytes"
            raise Wrong(f"stream {name} has no frame: {why}, and its receiver waits for its end")
        if any(len(piece) > size for piece, _ in pieces):
            raise Wrong(f"a frame has more than {size} bytes")
        if b"".join(piece for piece, _ in pieces) != data:
            raise Wrong(f"the pieces of stream {name} are not what it had to send")
        if [bool(last) for _, last in pieces] != [False] * (len(pieces) - 1) + [True]:
            raise Wrong(f"stream {name}: the last frame, and no other, says that it is the last")
    if extra := {stream for stream, _, _ in taken} - whole.keys():
        raise Wrong(f"frames of streams that there are not: {sorted(extra)}")


def _judge_turns(taken: list[Any], whole: dict[int, bytes]) -> None:
    """Between two frames of one stream, each other one that is open has at least one."""
    begins = {name: next(at for at, frame in enumerate(taken) if frame[0] == name) for name in whole}
    ends = {name: max(at for at, frame in enumerate(taken) if frame[0] == name) for name in whole}
    for name in whole:
        mine = [at for at, frame in enumerate(taken) if frame[0] == name]
        for one, next_one in itertools.pairwise(mine):
            between = {taken[at][0] for at in range(one + 1, next_one)}
            left_out = [each for each in whole if begins[each] < one < next_one < ends[each] and each not in between]
            left_out = [each for each in left_out if each != name]
            if left_out:
                raise Wrong(f"stream {name} sends two frames, and stream {left_out[0]} none in between: take turns")


def _judge_frames(frames: Callable[..., Any]) -> str:
    random_ = random.Random()
    for _ in range(5):
        size = random_.randrange(3, 40)
        names = random_.sample(range(1, 1000), 8)
        sizes = [0, 1, size, size + 1, *(random_.randrange(5 * size, 20 * size) for _ in range(4))]
        random_.shuffle(sizes)
        data = {name: random_.randbytes(length) for name, length in zip(names, sizes, strict=True)}
        late = {name: data[name] for name in names[6:]}
        first = {name: data[name] for name in names[:6]}
        taken = _sent(frames, dict(first), size, late)
        _judge_sent(taken, data, late, size)
        _judge_turns(taken, data)
        open_first = [frame[0] for frame in taken[: len(first)]]
        if len(set(open_first)) < len(first):
            raise Wrong(
                f"six streams wait, and the first six frames belong to {len(set(open_first))} of them: take turns"
            )
        begun = {name: next(at for at, frame in enumerate(taken) if frame[0] == name) for name in late}
        if max(begun.values()) > 3 + 2 * len(data):
            raise Wrong("a stream that came while you were sending waited until others had ended: take turns")
    if list(frames({}, 10)):
        raise Wrong("without a stream there is no frame")
    if list(frames({7: b""}, 10)) != [(7, b"", True)]:
        raise Wrong("a stream without data needs one frame, empty and the last")
    return "All bytes, each stream in its turn, those that came later, too."


FRAMES = TEXT.exercise("frames", _judge_frames)

EXERCISES = (POOL, FRAMES)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab) -> HiddenTrace:
    """Two requests over one HTTP/2 connection, with three blanks."""
    capture = two_streams(lab)
    messages = [packet for packet in capture.messages if packet.flow.server_port == 80]
    if sum(any(each.role == "request" for each in packet.messages) for packet in messages) != 2:
        raise MeasurementFailed("the two requests are not in two packets: run the cell again")
    return TEXT.trace(
        messages,
        [
            Blank("GET /home", "round trip", "HTTP/2 over TCP begins when the connection is there"),
            Blank("GET /away", "round trip", "the client waited for the first response, and opened no connection"),
            Blank(
                "HEADERS 3: 200",
                "what",
                "a response comes on the stream of its request: HEADERS, the number, the status",
            ),
        ],
        tier=capture.tier,
    )
