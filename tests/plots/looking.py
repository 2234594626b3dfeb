"""What tests ask of a picture: its texts, where they stand, and what holds for every picture of the book."""

from __future__ import annotations

import html
import io
import re
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from labkit.plots import Picture


def texts(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.figure.findobj(Text) if text.get_visible() and text.get_text()]


def look_at(picture: Picture, tier: str | None = "kernel") -> None:
    """What holds for every picture of the book."""
    png = picture.png()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = imread(io.BytesIO(png)).shape
    assert 500 <= width <= 1100
    assert 100 <= height <= 4500
    said = texts(picture)
    assert tier is None or any(f"tier: {tier}." in text for text in said)
    title = " ".join(picture.figure.axes[0].get_title(loc="left").split())
    assert title
    assert picture.alt.startswith(title)
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    (alt,) = re.findall(
        r'<img alt="([^"]*)" src="data:image/png;base64,[A-Za-z0-9+/=]+" style="[^"]*">', bundle["text/html"]
    )
    assert "<" not in alt
    assert html.unescape(alt) == picture.alt
    assert picture.alt in repr(picture)


def boxes(picture: Picture) -> dict[str, Bbox]:
    """Where each text stands, once the picture is drawn: title, labels, ticks, legend as a whole, small print."""
    figure = picture.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    aside = {text for legend in legends for text in legend.findobj(Text)}
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            # matplotlib makes ticks beyond the ends, too, and does not draw them.
            beyond = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            aside |= {tick.label1 for tick in beyond}
    found = {}
    for number, text in enumerate(figure.findobj(Text)):
        if text.get_visible() and text.get_text().strip() and text not in aside:
            found[f"{number}: {text.get_text()}"] = text.get_window_extent(renderer)
    for number, legend in enumerate(legends):
        found[f"legend {number}"] = legend.get_window_extent(renderer)
    return found


def overlaps(found: dict[str, Bbox], allowance: float = 1.0) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other by more than a pixel."""
    pairs = []
    for (one, a), (other, b) in combinations(found.items(), 2):
        common = Bbox.intersection(a, b)
        if common is not None and min(common.width, common.height) > allowance:
            pairs.append((one, other))
    return pairs
