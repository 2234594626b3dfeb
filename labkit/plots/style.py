"""One style for the whole book: sizes for a notebook's width, colours that colour-blind readers tell apart."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#6b6b6b"
INK = "#222222"

# What a phase or a protocol is drawn in, everywhere.
COLOURS = {
    "tcp": GREY,
    "tls": ORANGE,
    "quic": SKY,
    "request": BLUE,
    "response": PURPLE,
    "http": BLUE,
    "data": GREEN,
}

WIDTH_INCHES = 8.6
SIZE = 9.5  # of ordinary text, points
TITLE_SIZE = 11.5
NOTE_SIZE = 8


def new_figure(height_inches: float) -> tuple[Figure, Axes]:
    """A figure of the book's width with one set of axes, without pyplot."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=SIZE, colors=INK)
    return figure, axes


def set_title(axes: Axes, finding: str) -> None:
    """The title says what was found, not what was drawn."""
    axes.set_title(finding, fontsize=TITLE_SIZE, loc="left", color=INK, pad=10)


def add_note(figure: Figure, text: str) -> None:
    """Small print below the picture: the tier, how it was measured."""
    figure.supxlabel(text, fontsize=NOTE_SIZE, color=GREY, x=0.01, ha="left")
