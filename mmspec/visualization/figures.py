"""Matplotlib figures that a notebook shows by itself, without pyplot and without a screen."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 80


class Plot(Figure):
    """A matplotlib figure, as the functions of `mmspec.visualization` return it: it can be changed and saved like any
    other."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, dpi=self.dpi, bbox_inches="tight", format="png")
        return data.getvalue()


def figure(width: float, height: float) -> Plot:
    """Return an empty figure, `width` by `height` inches, for plots of your own: `axes = figure(6, 3).subplots()`."""
    plot = Plot(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(plot)
    return plot


def titled(axes: Axes, title: str) -> Axes:
    """Give axes the look that all plots share, and return them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=11, loc="left")
    return axes


def legend(axes: Axes) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
