"""The plots: one function each, from rows to a figure; `save_plots` writes those that have something to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import cut, printable
from ..files.storage import replacing
from ..metrics import SHOWN
from ..visualization.colours import COLOURS, GREY, LINES, MARKERS, NEAR, PHASE_COLOURS
from ..visualization.figures import Plot, figure, legend, titled
from .figures import Estimate, Figures, Row
from .table import PHASE_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Drafters and trees that are often measured keep their looks from plot to plot, whatever else is in them.
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
FILLS = ("full", "none", "left", "top", "right", "bottom")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++", "--", "OO", "**", "/.", "-o")
BESIDE = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none"}  # hides a line behind a text
DPI = 110
SPREAD = 4  # of the longest prompts over the shortest, for a plot against their length


class Look(NamedTuple):
    """The look of a method in all plots: the colour is its drafter's, and a number stands for its tree."""

    colour: str = GREY
    number: int = 0

    @property
    def bar(self) -> dict[str, Any]:
        """The look of its bars."""
        again, hatch = divmod(self.number, len(HATCHES))
        return {"color": self.colour, "hatch": HATCHES[hatch] + "|" * again}

    @property
    def point(self) -> dict[str, Any]:
        """The look of its points, with and without a line."""
        again, marker = divmod(self.number, len(MARKERS))
        return {"color": self.colour, "marker": MARKERS[marker], "fillstyle": FILLS[again % len(FILLS)]}

    @property
    def line(self) -> str:
        """The dashes of its lines."""
        return LINES[self.number % len(LINES)]


Looks = dict[int, Look]
"""Looks of rows, by their `id`."""


def looks_of(rows: Sequence[Row]) -> Looks:
    """Return a look for every row, no two of which are alike.

    Drafters that are not known take the colours that are left, in the order of the alphabet; where a colour has a tree
    already, the next method takes the next number.
    """
    drafting = [row for row in rows if row.side.get("drafter") is not None]
    drafters, trees = ({row.side[name] for row in drafting} for name in ("drafter", "tree"))
    colours = {name: place for place, name in enumerate(DRAFTERS)}
    free = set(range(len(COLOURS))) - {colours[name] for name in drafters & colours.keys()}
    colours |= dict(zip(sorted(drafters - colours.keys()), cycle(sorted(free) or range(len(COLOURS))), strict=False))
    numbers = [*TREES, *sorted(trees - set(TREES))]
    looks, taken = {id(row): Look() for row in rows}, set()
    # transformers' own come last, so that our loop has the looks of a tree's name.
    drafting.sort(key=lambda row: (row.side["engine"] == "transformers", row.side.get("budget") or 0, row.method))
    for row in drafting:
        place = colours[row.side["drafter"]]
        first = numbers.index(row.side.get("tree")) + 6 * (COLOURS[place] in NEAR)
        look = next(look for number in count(first) if (look := Look(COLOURS[place], number)) not in taken)
        taken.add(look)
        looks[id(row)] = look
    return looks


def save_plots(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Write a PNG per plot into an existing folder; return those that had something to show."""
    looks, written = looks_of(rows), []
    for name, drawn in PLOTS.items():
        plot = drawn.draw(rows, looks)
        if plot is not None:
            written.append(Path(folder) / f"{name}.png")
            write(plot, written[-1])
    return written


def write(plot: Plot, path: Path) -> None:
    """Write a PNG."""
    with replacing(path) as unfinished:
        plot.savefig(unfinished, dpi=DPI, bbox_inches="tight", format="png")


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the method's name, with the target's or the batch size where methods of several groups have the same."""
    shared = [other.conditions for other in rows if other.method == row.method]
    if len(shared) == 1:
        return literal(row.method)
    names = [name for name in ("target", "dtype", "batch") if len({str(one[name]) for one in shared}) > 1]
    where = [f"batch {row.conditions[name]}" if name == "batch" else row.conditions[name] for name in names]
    where = where or [row.conditions["target"], row.conditions["dtype"]]
    return literal(f"{row.method} [{', '.join(where)}]")


def literal(name: str) -> str:
    """Return a name as plots take it: bounded, printable, and no formula, which a dollar sign begins."""
    return cut(printable(name), 60).replace("$", r"\$")


def _canvas(height: float, title: str) -> tuple[Plot, Axes]:
    """Return a figure of that height in inches, and its only axes."""
    plot = figure(8.2, height)
    return plot, titled(plot.add_subplot(), title)


def _by_task(rows: Sequence[Row], looks: Looks, name: str, title: str, line: str) -> Plot | None:
    """Draw a panel per task and one for the mean, a bar per method, from the best at the top."""
    shown = [row for row in rows if not row.baseline and not row.control and row.overall is not None]
    if not shown:
        return None
    tasks = list(dict.fromkeys(task for row in shown for task in row.tasks))
    panels: dict[str, list[Figures | None]] = {task: [row.tasks.get(task) for row in shown] for task in tasks}
    if len(tasks) > 1:
        panels["mean of tasks"] = [row.mean for row in shown]
    plot = figure(2.6 + 2.1 * len(panels), 1.1 + 0.3 * len(shown))
    places = np.arange(len(shown))[::-1]
    all_axes = plot.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    widest = max(one[name].high or one[name].value for panel in panels.values() for one in panel if one is not None)
    bars = [looks[id(row)].bar for row in shown]
    style = {key: [bar[key] for bar in bars] for key in bars[0]} | {"edgecolor": "white", "lw": 0}
    for axes, (panel, figures) in zip(all_axes, panels.items(), strict=True):
        found = [Estimate(0.0) if one is None else one[name] for one in figures]
        values, *ends = (np.array([getattr(one, end) for one in found], float) for end in ("value", "low", "high"))
        errors = np.nan_to_num(abs(ends - values))
        drawn = axes.barh(places, values, 0.72, xerr=errors, error_kw={"lw": 1.1}, **style)
        texts = ["not measured" if one is None else f"{one[name].value:.2f}" for one in figures]
        axes.bar_label(drawn, texts, padding=4, fontsize=8, bbox=BESIDE)
        axes.axvline(1, color="black", lw=0.8, ls=":", zorder=2.5)
        axes.set_title(literal(panel), fontsize=10, weight="bold" if panel == "mean of tasks" else "normal")
        axes.set_xlim(0, widest * 1.28)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelsize=8)
    all_axes[0].set_yticks(places, [name_of(row, rows) for row in shown])
    plot.suptitle(title, fontsize=11, x=0.01, ha="left")
    plot.supxlabel(line, fontsize=8.5)
    return plot


def plot_speedup(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw the speed-up per task with its confidence interval."""
    base = next((row.side["label"] for row in rows if row.baseline), "plain")
    note = "tokens per second over the baseline's; black lines: 95 % interval over prompts; dotted: the baseline"
    return _by_task(rows, looks, "speedup", f"{SHOWN['speedup'].capitalize()}, over {literal(base)}", note)


def plot_acceptance(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw the accepted length per task with its confidence interval."""
    note = "the target's own token included; black lines: 95 % interval over prompts; dotted: no drafts"
    name = "mean_acceptance_length"
    return _by_task(rows, looks, name, SHOWN[name].capitalize(), note)


def plot_positions(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw how far the target follows: the share of passes that accepted at least so many drafted tokens."""
    name = "acceptance_rate_per_position"
    shown = [(row, 100 * np.array(one[name])) for row in _drafting(rows) if (one := row.overall) and one[name]]
    if not shown:
        return None
    plot, axes = _canvas(4.4, "Acceptance by position, all tasks pooled")
    for row, rates in shown:
        look = looks[id(row)]
        axes.plot(np.arange(len(rates)) + 1, rates, label=name_of(row, rows), ls=look.line, ms=5, lw=1.6, **look.point)
    deepest = max(len(rates) for _, rates in shown)
    axes.set_xticks(range(1, deepest + 1, 1 + deepest // 16))
    axes.set(ylim=(0, 102), xlabel="drafted token", ylabel="passes that accepted it, %")
    axes.grid(alpha=0.25)
    legend(axes)
    return plot


def plot_rounds(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw where the time of a round goes."""
    shown = [(row, one.round_seconds) for row in rows if (one := row.overall) and one.round_seconds]
    if not shown:
        return None
    plot, axes = _canvas(1.3 + 0.3 * len(shown), "Where a round's time goes, all tasks pooled")
    places, left = np.arange(len(shown))[::-1], np.zeros(len(shown))
    for phase in PHASE_COLUMNS:
        widths = np.array([1e3 * seconds.get(phase, 0.0) for _, seconds in shown])
        if widths.any():
            axes.barh(places, widths, 0.72, left=left, color=PHASE_COLOURS[phase], label=phase)
            left += widths
    for place, end in zip(places, left, strict=True):
        axes.text(end + 0.01 * left.max(), place, f"{end:.1f}", va="center", fontsize=8)
    axes.set_yticks(places, [name_of(row, rows) for row, _ in shown], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("milliseconds in a round of draft, score, verify, commit and observe")
    legend(axes)
    return plot


def plot_budget(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw the speed-up against the nodes that are drafted; the points of one drafter are joined."""
    points = _points(rows, "nodes", "speedup")
    if not points:
        return None
    plot, axes = _canvas(4.4, "Speed-up against tree budget")
    _draw(axes, rows, points, looks)
    for _, group in groupby(sorted(points, key=_family), _family):
        members = sorted(group, key=lambda point: point.at)
        look = looks[id(members[0].row)]
        heights = [point.height.value for point in members]
        axes.plot(
            [point.at for point in members], heights, lw=1.2, alpha=0.7, zorder=2, color=look.colour, ls=look.line
        )
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set(xlabel=SHOWN["nodes"], ylabel=f"{SHOWN['speedup']}, mean of tasks")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    legend(axes)
    return plot


def plot_pareto(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw accepted length against draft cost: what is up and left of all others is on the front."""
    points = _points(rows, "draft_cost", "mean_acceptance_length")
    if not points:
        return None
    plot, axes = _canvas(4.6, f"{SHOWN['mean_acceptance_length'].capitalize()} against {SHOWN['draft_cost']}")
    costs, lengths = [point.at for point in points], [point.height.value for point in points]
    right, top, bottom = max(costs) * 1.15 + 0.05, max(lengths) * 1.12, min(1.0, *lengths) - 0.1
    for predicted in _predictions(max(length / (1 + cost) for length, cost in zip(lengths, costs, strict=True))):
        line = np.array([0, right])
        axes.plot(line, predicted * (1 + line), color=GREY, lw=0.7, ls="--", zorder=1)
        at = min(right, 0.985 * top / predicted - 1)
        if at > 0.04 * right and predicted * (1 + at) > bottom:
            style: dict[str, Any] = {"fontsize": 7.5, "color": "#555555", "ha": "right", "va": "center", "bbox": BESIDE}
            axes.text(at, predicted * (1 + at), f"{predicted:g} x", **style)
    best = [points[i] for i in front(costs, lengths)]
    ends = [point.at for point in best], [point.height.value for point in best]
    axes.plot(*ends, color="black", lw=1.2, zorder=2, label="front")
    _draw(axes, rows, points, looks)
    axes.plot(*ends, "o", ms=13, mfc="none", mec="black", mew=1.0, zorder=4)
    axes.set(xlim=(0, right), ylim=(bottom, top), ylabel=f"{SHOWN['mean_acceptance_length']}, bonus included")
    axes.set_xlabel(f"{SHOWN['draft_cost']} of a round, in passes of plain decoding, mean of tasks")
    legend(axes)
    plot.supxlabel(f"dashed: {SHOWN['speedup_decode']}, if scoring a tree cost as much as a plain pass", fontsize=8.5)
    return plot


def plot_batches(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw the speed-up over plain decoding of the same batch against the batch size; a line per method."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.competes:
            lines.setdefault(row.method, []).append(row)
    lines = {name: sorted(found, key=_batch) for name, found in lines.items() if len(set(map(_batch, found))) > 1}
    if not lines or any(len(set(map(_batch, found))) < len(found) for found in lines.values()):
        return None  # one size, or the same sizes under several other conditions
    plot, axes = _canvas(4.4, f"{SHOWN['speedup_decode'].capitalize()}, against batch size")
    for name, found in lines.items():
        look, heights = looks[id(found[0])], [row.mean.speedup_decode.value for row in found if row.mean]
        axes.plot(list(map(_batch, found)), heights, label=literal(name), ms=6, lw=1.4, ls=look.line, **look.point)
    _scaled(axes, sorted({_batch(row) for found in lines.values() for row in found}))
    axes.set(xlabel="prompts answered together", ylabel="over plain decoding of the same batch, mean of tasks")
    return plot


def plot_lengths(rows: Sequence[Row], looks: Looks) -> Plot | None:
    """Draw the end-to-end speed-up against the length of the prompt, a line per method and a point per task, where the
    longest prompts have at least `SPREAD` times the tokens of the shortest."""
    shown = [(row, [one for one in row.tasks.values() if one is not None]) for row in rows if row.competes]
    lengths = sorted({one.prompt_tokens for _, found in shown for one in found})
    if not lengths or lengths[-1] < SPREAD * max(lengths[0], 1):
        return None
    plot, axes = _canvas(4.8, f"{SHOWN['speedup'].capitalize()}, against the tokens of the prompt")
    for row, found in shown:
        look, found = looks[id(row)], sorted(found, key=lambda one: one.prompt_tokens)
        ends = [one.prompt_tokens for one in found], [one.speedup.value for one in found]
        axes.plot(*ends, label=name_of(row, rows), ms=6, lw=1.4, ls=look.line, **look.point)
    _scaled(axes, lengths)
    axes.set(xlabel="tokens of the prompt, visual ones included, median of the task", ylabel="over the baseline")
    return plot


def _scaled(axes: Axes, sizes: Sequence[float]) -> None:
    """Draw the logarithmic axis of the sizes that were measured, the baseline and the legend."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axes.minorticks_off()
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    legend(axes)


def _batch(row: Row) -> int:
    return int(row.conditions["batch"])


def front(costs: Sequence[float], lengths: Sequence[float]) -> list[int]:
    """Return the indices of what no other beats in one without being worse in the other, by cost."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -lengths[i])):
        if not found or lengths[i] > lengths[found[-1]]:
            found.append(i)
    return found


def _predictions(best: float) -> list[float]:
    """Return the speed-ups for which a line is drawn: some six of them, up to a little more than the best."""
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 1e9) if (best - 1) / step <= 5)
    return [0.5, *(1 + step * i for i in range(max(0, int((best - 1) / step)) + 2))]


class Point(NamedTuple):
    """A method in a plane: its place, and its height with an interval."""

    row: Row
    at: float
    height: Estimate


def _drafting(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.side.get("drafter") is not None]


def _points(rows: Sequence[Row], at: str, height: str) -> list[Point]:
    """Return the methods that have both figures in the mean of tasks."""
    means = [(row, row.mean) for row in _drafting(rows) if row.mean is not None]
    return [Point(row, mean[at], mean[height]) for row, mean in means if mean[at] is not None]


def _family(point: Point) -> tuple[str, bool]:
    """Return what a line through several methods stands for: a drafter, and transformers' own apart."""
    return point.row.side["drafter"], point.row.side["engine"] == "transformers"


def _draw(axes: Axes, rows: Sequence[Row], points: Sequence[Point], looks: Looks) -> None:
    """Draw a point per method with the interval of its height."""
    for row, at, height in points:
        look = looks[id(row)]
        if height.low is not None and height.high is not None:
            axes.plot([at, at], [height.low, height.high], color=look.colour, lw=1, alpha=0.6)
        axes.plot([at], [height.value], label=name_of(row, rows), ms=7, ls="", zorder=3, **look.point)


class Drawn(NamedTuple):
    """A plot: what it shows, and the function that draws it, or returns None where there is nothing to show."""

    caption: str
    draw: Callable[[Sequence[Row], Looks], Plot | None]


PLOTS = {
    "speedup": Drawn("Speed-up, end to end, by task", plot_speedup),
    "acceptance": Drawn("Tokens per pass by task", plot_acceptance),
    "positions": Drawn("Acceptance by position", plot_positions),
    "rounds": Drawn("Where a round's time goes", plot_rounds),
    "budget": Drawn("Speed-up against tree budget", plot_budget),
    "lengths": Drawn("Speed-up, end to end, against the tokens of the prompt", plot_lengths),
    "batches": Drawn("Speed-up against batch size", plot_batches),
    "pareto": Drawn("Tokens per pass against draft cost", plot_pareto),
}
