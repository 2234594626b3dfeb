"""A picture that follows a watch while it runs."""

from __future__ import annotations

import atexit
import html
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from labkit import checks
from labkit.errors import LabError
from labkit.plots.picture import DPI, Picture
from labkit.plots.queues import plot_queues

if TYPE_CHECKING:
    from labkit.queues.history import History

SHARE = 0.2  # of a core, which drawing may take
LOOK_S = 0.05  # how soon the end of the watch is seen


class Watched(Protocol):
    """What a live view needs of a watch."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    def so_far(self) -> History:
        """What was sampled up to this moment."""


class LiveView:
    """A view that follows a watch. Made by ``live``; a notebook shows it, and from then on it follows.

    A thread draws the picture again and again, and ends by itself: with the watch, with the lab, with ``close()``.
    Where widgets are not shown, the picture of the moment stands still.

    Attributes:
        picture: the latest one, None before the first.
    """

    def __init__(self, watch: Watched, every_s: float, draw: Callable[[History], Picture]) -> None:
        self.picture: Picture | None = None
        self._watch, self._every_s, self._draw = watch, every_s, draw
        self._widget: Any = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether it follows no more: its watch has ended, or it was closed."""
        return self._end.is_set()

    def __repr__(self) -> str:
        return repr(self.picture) if self.picture else f"<LiveView of {self._watch!r}>"

    def close(self) -> None:
        """Follow no more; the latest picture stays. Closing twice is fine."""
        self._end.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self._widget is None:
            import ipywidgets

            if not self._redraw():
                return {"text/plain": "<LiveView: its lab was closed before it was shown>"}
            assert self.picture is not None
            height_px = round(self.picture.figure.get_figheight() * DPI)
            # Its height stays while a picture replaces another, or the page would jump.
            self._widget = ipywidgets.HTML(
                _image(self.picture), layout={"min_height": f"{height_px}px", "width": "auto"}
            )
            self._thread = threading.Thread(target=self._follow, name="labkit-live", daemon=True)
            _RUNNING.add(self)
            self._thread.start()
        assert self.picture is not None
        return {**self._widget._repr_mimebundle_(), "text/html": _image(self.picture), "text/plain": repr(self.picture)}

    def _redraw(self) -> bool:
        """Draw what there is now. False where there is nothing any more: its lab was closed."""
        try:
            history = self._watch.so_far()
        except LabError:
            return False
        self.picture = self._draw(history)
        return True

    def _follow(self) -> None:
        try:
            pause_s, over = self._every_s, False
            while not over and self._wait(pause_s):
                over = self._watch.closed  # asked before the look, so that the last one has all
                began, worked_s = time.monotonic(), time.thread_time()
                if not self._redraw():
                    break
                assert self.picture is not None
                self._widget.value = _image(self.picture)
                worked_s = time.thread_time() - worked_s
                pause_s = max(self._every_s - (time.monotonic() - began), worked_s / SHARE - worked_s)
        except Exception as exc:  # of the learner's own draw function: said in the view, because nobody catches it here
            self._widget.value += f"<pre>{html.escape(f'{type(exc).__name__}: {exc}')}</pre>"
        finally:
            self._end.set()
            _RUNNING.discard(self)

    def _wait(self, seconds: float) -> bool:
        """Until the next look is due, or the watch has ended. False where nobody looks any more."""
        until = time.monotonic() + seconds
        while not self._watch.closed and (left_s := until - time.monotonic()) > 0:
            if self._end.wait(min(left_s, LOOK_S)):
                break
        return not self._end.is_set() and self._widget.comm is not None


def live(watch: Watched, *, every_s: float = 0.5, draw: Callable[[History], Picture] = plot_queues) -> LiveView:
    """A picture that follows a watch while it runs: ``display(live(watch))``.

    It ends by itself: with the watch, whose whole history it then shows, with its lab, and with ``close()``.

    Args:
        watch: a running one, from ``lab.watch()``. Of one that has ended the picture is drawn once.
        every_s: from one picture to the next, seconds, from 0.1. Drawing takes some 0.1 s of CPU time of the
            notebook's process; where a picture takes more than a fifth of the period, the period becomes longer.
        draw: makes the picture from the history so far: ``plot_queues``, ``plot_buffers``, a function of one's own.

    Raises:
        InvalidValue: a period that cannot be.
    """
    checks.function("draw", draw)
    return LiveView(watch, checks.number("every_s", every_s, 0.1, 3600, unit="seconds"), draw)


def _image(picture: Picture) -> str:
    return picture._repr_mimebundle_()["text/html"]


_RUNNING: set[LiveView] = set()


@atexit.register
def _end() -> None:
    """An interpreter that ends while a thread draws would abort in matplotlib's C++."""
    for view in list(_RUNNING):
        view.close()
