"""book: what the textbook "Backend Engineering, Live" says and asks, for its notebooks.

::

    from book import Choice, ask, done                        # the learner's loop
    from book.execution import processes as section           # what one section asks

``labkit`` is the engine below: labs, captures, queues, load, plots. It never imports this package.
The public names are loaded when they are used, so that judging one function does not load widgets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labkit.lazy import lazy
from labkit.recorded import FOLDERS, HOMES

if TYPE_CHECKING:
    from book.learn.contents import Chapter, Contents, Section, contents
    from book.learn.exercise import Exercise, Mistake
    from book.learn.grading import Outcome, Verdict, Wrong
    from book.learn.live import recorded
    from book.learn.overview import Overview, done, overview
    from book.learn.predictions import Choice, Number, Order, Panel, Prediction, ask, predict
    from book.learn.progress import Progress, progress
    from book.learn.quiz import Option, Question, Quiz
    from book.learn.text import Text
    from book.learn.trace import Blank, HiddenTrace

_MODULES = {
    "contents": ("Chapter", "Contents", "Section", "contents"),
    "exercise": ("Exercise", "Mistake"),
    "grading": ("Outcome", "Verdict", "Wrong"),
    "live": ("recorded",),
    "overview": ("Overview", "done", "overview"),
    "predictions": ("Choice", "Number", "Order", "Panel", "Prediction", "ask", "predict"),
    "progress": ("Progress", "progress"),
    "quiz": ("Option", "Question", "Quiz"),
    "text": ("Text",),
    "trace": ("Blank", "HiddenTrace"),
}
_HOME = {name: f"book.learn.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [
    "Blank",
    "Chapter",
    "Choice",
    "Contents",
    "Exercise",
    "HiddenTrace",
    "Mistake",
    "Number",
    "Option",
    "Order",
    "Outcome",
    "Overview",
    "Panel",
    "Prediction",
    "Progress",
    "Question",
    "Quiz",
    "Section",
    "Text",
    "Verdict",
    "Wrong",
    "ask",
    "contents",
    "done",
    "overview",
    "predict",
    "progress",
    "recorded",
]

FOLDERS.insert(0, Path(__file__).parent / "recordings")
HOMES.append("book.execution.trial")


__getattr__, __dir__ = lazy(__name__, _HOME)
