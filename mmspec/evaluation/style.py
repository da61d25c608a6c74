"""The looks of plots: what stands for a drafter and for a tree in all of them, and how they are written."""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import cut, printable
from ..files.storage import replacing
from .figures import Row
from .table import PHASE_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for every kind of colour vision, and four of Paul Tol's; grey is for plain
# decoding. Two of one colour, or of colours that some cannot tell apart, differ by marker, hatch and line.
COLOURS: tuple[str, ...] = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D00", "#000000")
COLOURS += ("#332288", "#882255", "#44AA99", "#999933")
GREY = "#888888"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++", "--", "||", "OO", "**", "/.")
MARKERS = "osD^vP*X<>hp"
LINES = ("-", "--", ":", "-.")
# What is often measured keeps its looks from plot to plot, whatever else is in them.
DRAFTERS = (
    "eagle3",
    "eagle",
    "draft_model",
    "ngram",
    "vispec",
    "hivis",
    "specvlm",
    "msd",
    "dream",
    "text_only",
    "medusa",
)
TREES = ("chain", "dynamic", "static", "sage", "auto", "confidence", None)
PHASE_COLOURS = dict(
    zip(PHASE_COLUMNS, ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#F0E442", "#999999"), strict=True)
)
DPI, PALETTE = 110, 128


class Looks:
    """A colour for every drafter, and a marker, hatch and line for its trees: the same in all plots.

    No two methods look alike: there are 12 colours, and of each 12 markers, filled or hollow. What a drafter and a tree
    look like follows from their names; only where two methods have the same of both, or two unknown drafters fall on
    one colour, the second takes what is free.

    Args:
        rows: all that may be shown.
    """

    def __init__(self, rows: Sequence[Row]):
        self._colours: dict[str, int] = {}
        families = {name for row in rows if (name := drafter_of(row)) is not None}
        for name in sorted(families, key=lambda name: (name not in DRAFTERS, name)):
            self._colours[name] = _free(_place(name, DRAFTERS, len(COLOURS)), set(self._colours.values()), len(COLOURS))
        self._numbers: dict[int, int] = {}
        taken: dict[int, set[int]] = {}
        # transformers' own come last, so that our loop has the looks of a tree's name.
        order = {
            id(row): (row.side["engine"] == "transformers", row.side.get("budget") or 0, row.method) for row in rows
        }
        for row in sorted(rows, key=lambda row: order[id(row)]):
            drafter = drafter_of(row)
            if drafter is None:
                continue
            colour = self._colours[drafter]
            tree = _place(row.side.get("tree"), TREES, len(MARKERS)) + 6 * (colour > 7)  # apart from near colours
            used = taken.setdefault(colour, set())
            self._numbers[id(row)] = _free(tree % len(MARKERS), used, 2 * len(MARKERS))
            used.add(self._numbers[id(row)])

    def colour(self, row: Row) -> str:
        """Return the colour of the method's drafter."""
        name = drafter_of(row)
        return GREY if name is None else COLOURS[self._colours[name]]

    def hatch(self, row: Row) -> str:
        """Return what fills the method's bars."""
        number = self._number(row)
        hatch = HATCHES[number % len(HATCHES)]
        return f"{hatch}|" if number >= len(HATCHES) else hatch

    def marker(self, row: Row) -> str:
        """Return the marker of the method's points."""
        return MARKERS[self._number(row) % len(MARKERS)]

    def face(self, row: Row) -> str:
        """Return what fills the marker: its colour, or nothing in the second round of markers."""
        return "none" if self._number(row) >= len(MARKERS) else self.colour(row)

    def line(self, row: Row) -> str:
        """Return the dashes of the method's lines."""
        return LINES[self._number(row) % len(LINES)]

    def _number(self, row: Row) -> int:
        return self._numbers.get(id(row), 0)


def _place(name: str | None, known: Sequence[str | None], count: int) -> int:
    """Return where a name stands: in the list if it is there, anywhere else by its letters."""
    return known.index(name) if name in known else zlib.crc32(str(name).encode()) % count


def _free(wanted: int, taken: Collection[int], count: int) -> int:
    """Return the number wanted or the next one that is free; the one wanted if none is."""
    return next((n for n in ((wanted + i) % count for i in range(count)) if n not in taken), wanted)


def drafter_of(row: Row) -> str | None:
    """Return the drafter that a method's colour stands for, whoever's loop runs it; None for plain decoding."""
    return row.side.get("drafter")


def family(row: Row) -> str | None:
    """Return what a line through several methods stands for: a drafter, and transformers' own apart."""
    drafter = drafter_of(row)
    if drafter is None:
        return None
    return f"{drafter} (transformers)" if row.side["engine"] == "transformers" else drafter


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the method's name, with the target's where methods of several groups have the same.

    It is shown as it is written: a dollar sign begins no formula.
    """
    shared = sum(other.method == row.method for other in rows) > 1
    name = f"{row.method} [{row.conditions['target']}, {row.conditions['dtype']}]" if shared else row.method
    return literal(name)


def literal(name: str) -> str:
    """Return a name as plots take it: bounded, printable, and no formula."""
    return cut(printable(name), 60).replace("$", r"\$")


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure that belongs to nobody: pyplot would keep it, and choose a screen. Sizes are in inches."""
    from ..visualization.figures import figure

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
    picture = Image.open(data).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    with replacing(path) as unfinished:
        picture.save(unfinished, format="png", optimize=True)
