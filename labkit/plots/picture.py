"""A figure and its words: what a notebook shows, a file keeps and a screen reader reads."""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from labkit import checks

DPI = 110
PALETTE = 64
FORMATS = (".png", ".svg", ".pdf")


class Picture:
    """A matplotlib figure with alternative text.

    A notebook shows it as an image with an ``alt`` attribute, which JupyterLab gives no other image. The figure is
    made without pyplot, so no global state holds it and any thread may draw it.

    Args:
        figure: the figure.
        alt: what it shows, in words, with the figures that matter.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        self.alt = alt

    def __repr__(self) -> str:
        return f"<Picture: {self.alt}>"

    def png(self) -> bytes:
        """The picture as PNG bytes."""
        drawn, buffer = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
        # Lines and letters need few colours, and a notebook with ten ladders is a quarter of the size.
        few = Image.open(drawn).convert("RGB").quantize(PALETTE, method=Image.Quantize.FASTOCTREE)
        few.save(buffer, format="png")
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file; the ending chooses the format (.png, .svg, .pdf). Raises OSError, InvalidValue."""
        target = checks.path("path", path)
        if target.suffix.lower() not in FORMATS:
            raise checks.wrong("path", path, f"end it in {', '.join(FORMATS)}")
        self.figure.savefig(target, dpi=2 * DPI, bbox_inches="tight")
        return target

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        source = base64.b64encode(self.png()).decode("ascii")
        image = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{source}" style="max-width:100%">'
        return {"text/html": image, "text/plain": repr(self)}
