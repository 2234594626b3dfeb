"""Results as pictures: matplotlib, one style for the whole book, every picture with a tier and a text of its own."""

from labkit.plots import own as own  # before all that imports matplotlib

# isort: split
from labkit.plots.buffers import plot_buffers
from labkit.plots.ladder import plot_ladder
from labkit.plots.live import live
from labkit.plots.picture import Picture
from labkit.plots.queues import plot_queues
from labkit.plots.race import plot_race
from labkit.plots.tcp import plot_tcp

__all__ = ["Picture", "live", "plot_buffers", "plot_ladder", "plot_queues", "plot_race", "plot_tcp"]
