"""The learner's loop: predict, see, exercise, quiz, and go on where you stopped.

::

    contents.toml ─▶ contents ─▶ navigation          what the book holds
    predictions, exercise, trace, quiz               what a section asks
    grading ─▶ verdict                               whether it is right, and why not
    progress                                         what was predicted, solved and read
    overview                                         the contents with ticks, and where to go on
    panel                                            predictions as widgets

What is right stands apart from how it is shown: nothing here needs a browser.
"""

from labkit.learn.contents import Chapter, Contents, Section, contents
from labkit.learn.exercise import Exercise, Mistake
from labkit.learn.grading import Outcome, Verdict, Wrong
from labkit.learn.overview import Overview, done, overview
from labkit.learn.predictions import Choice, Number, Order, Panel, Prediction, ask, predict
from labkit.learn.progress import Progress, progress
from labkit.learn.quiz import Option, Question, Quiz
from labkit.learn.trace import Blank, HiddenTrace

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
    "Verdict",
    "Wrong",
    "ask",
    "contents",
    "done",
    "overview",
    "predict",
    "progress",
]
