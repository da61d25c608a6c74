"""Figures of matplotlib that a notebook shows by itself and that belong to nobody: no pyplot, no screen."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 80


class Plot(Figure):
    """What the functions of `mmspec.visualization` return: a matplotlib figure like any other, to change or to save."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, dpi=self.dpi, bbox_inches="tight", format="png")
        return data.getvalue()


def figure(width: float, height: float) -> Plot:
    """An empty figure of so many inches, for plots of your own: `axes = figure(6, 3).subplots()`."""
    plot = Plot(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(plot)
    return plot
