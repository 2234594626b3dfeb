"""Results as pictures: matplotlib, one style for the whole book, every picture with a tier and a text of its own."""

from labkit.plots.gap import plot_gap
from labkit.plots.ladder import plot_ladder
from labkit.plots.picture import Picture
from labkit.plots.race import plot_race

__all__ = ["Picture", "plot_gap", "plot_ladder", "plot_race"]
