"""How plots look: what stands for a drafter and for a tree in all of them, and how they are written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import Row
from .table import PHASE_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for every kind of colour vision; grey is for plain decoding.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D00", "#000000")
GREY = "#888888"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++", "--")
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
PHASE_COLOURS = dict(
    zip(PHASE_COLUMNS, ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#F0E442", "#999999"), strict=True)
)
DPI, PALETTE = 110, 128


class Looks:
    """One colour per drafter and one hatch, line and marker per tree, in all plots.

    Args:
        rows: all that may be shown.
    """

    def __init__(self, rows: Sequence[Row]):
        drafters = sorted({name for row in rows if (name := family(row)) is not None})
        self._colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(drafters)}
        self._numbers: dict[int, int] = {}
        numbers: dict[tuple, int] = {}
        used: set[tuple] = set()
        # transformers' own come last, so that the smallest trees of our loop are the solid ones.
        for row in sorted(rows, key=lambda row: (row.side["engine"] == "transformers", row.side.get("budget") or 0)):
            shape, again = (row.side.get("tree"), row.side.get("budget")), 0
            while (family(row), *shape, again) in used:  # such as another verifier, or another target
                again += 1
            used.add((family(row), *shape, again))
            if family(row) is not None:
                self._numbers[id(row)] = numbers.setdefault((*shape, again), len(numbers))

    def colour(self, row: Row) -> str:
        name = family(row)
        return GREY if name is None else self._colours[name]

    def hatch(self, row: Row) -> str:
        return HATCHES[self._numbers.get(id(row), 0) % len(HATCHES)]

    def marker(self, row: Row) -> str:
        return MARKERS[self._numbers.get(id(row), 0) % len(MARKERS)]

    def line(self, row: Row) -> str:
        return LINES[self._numbers.get(id(row), 0) % len(LINES)]


def family(row: Row) -> str | None:
    """Return what a method's colour stands for: its drafter, and transformers' own apart; None for plain decoding."""
    drafter = row.side.get("drafter")
    if drafter is None:
        return None
    return f"{drafter} (transformers)" if row.side["engine"] == "transformers" else drafter


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the method's name, with the target's where methods of several groups have the same."""
    shared = sum(other.method == row.method for other in rows) > 1
    return f"{row.method} [{row.conditions['target']}, {row.conditions['dtype']}]" if shared else row.method


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure that belongs to nobody: pyplot would keep it, and choose a screen. Sizes are in inches."""
    from ..seeing.figures import figure

    return figure(width, height)


def axes_of(figure: Figure, title: str) -> Axes:
    """Return the only axes of a figure."""
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=11, loc="left")
    return axes


def legend(axes: Axes) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def write(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: half the size, and the eye sees no difference."""
    from PIL import Image

    data = io.BytesIO()
    figure.savefig(data, dpi=DPI, bbox_inches="tight", format="png")
    Image.open(data).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)
