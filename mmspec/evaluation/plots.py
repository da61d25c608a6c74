"""The plots: one function each, from rows to a figure; `save_plots` writes those that have something to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics import SHOWN
from .bootstrap import Estimate
from .figures import Figures, Row
from .style import GREY, PHASE_COLOURS, Looks, axes_of, family, figure_of, legend, literal, name_of, write
from .table import PHASE_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_plots(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Write a PNG per plot into an existing folder; return those that had something to show."""
    looks, written = Looks(rows), []
    for name, plot in PLOTS.items():
        figure = plot(rows, looks)
        if figure is not None:
            path = Path(folder) / f"{name}.png"
            write(figure, path)
            written.append(path)
    return written


def _drafting(rows: Sequence[Row]) -> list[tuple[Row, Figures]]:
    return [(row, one) for row in rows if row.side.get("drafter") is not None and (one := row.overall) is not None]


def _of_task(task: str, row: Row) -> Figures | None:
    return row.tasks.get(task)


def _by_task(
    rows: Sequence[Row], looks: Looks, value: Callable[[Any], Estimate], title: str, line: str
) -> Figure | None:
    """Draw a panel per task and one for the mean, a bar per method, from the best at the top."""
    shown = [row for row in rows if not row.baseline and not row.control and row.overall is not None]
    if not shown:
        return None
    tasks = list(dict.fromkeys(task for row in shown for task in row.tasks))
    panels: dict[str, Callable[[Row], Any]] = {task: partial(_of_task, task) for task in tasks}
    if len(tasks) > 1:
        panels["mean of tasks"] = lambda row: row.mean
    figure = figure_of(2.6 + 2.1 * len(panels), 1.1 + 0.3 * len(shown))
    places = np.arange(len(shown))[::-1]
    panel_axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    widest = max(
        (estimate.high or estimate.value)
        for get in panels.values()
        for estimate in (value(get(row)) for row in shown if get(row) is not None)
    )
    for axes, (name, get) in zip(panel_axes, panels.items(), strict=True):
        for place, row in zip(places, shown, strict=True):
            figures = get(row)
            if figures is None:
                axes.text(0.03 * widest, place, "not measured", va="center", fontsize=7, color=GREY)
                continue
            estimate = value(figures)
            axes.barh(
                place, estimate.value, 0.72, color=looks.colour(row), hatch=looks.hatch(row), edgecolor="white", lw=0
            )
            end = estimate.value
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color="black", lw=1.1, solid_capstyle="butt")
                end = estimate.high
            paper = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none"}  # hides the dotted line
            axes.text(end + 0.03 * widest, place, f"{estimate.value:.2f}", va="center", fontsize=8, bbox=paper)
        axes.axvline(1, color="black", lw=0.8, ls=":", zorder=2.5)
        axes.set_title(literal(name), fontsize=10, weight="bold" if name == "mean of tasks" else "normal")
        axes.set_xlim(0, widest * 1.28)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelsize=8)
    panel_axes[0].set_yticks(places, [name_of(row, rows) for row in shown])
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.supxlabel(line, fontsize=8.5)
    return figure


def plot_speedup(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Speed-up per task with its confidence interval."""
    base = next((row.side["label"] for row in rows if row.baseline), "plain")
    note = "tokens per second over the baseline's; black lines: 95 % interval over prompts; dotted: the baseline"
    title = f"{SHOWN['speedup'].capitalize()}, over {literal(base)}"
    return _by_task(rows, looks, lambda figures: figures.speedup, title, note)


def plot_acceptance(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Accepted length per task with its confidence interval."""
    note = "the target's own token included; black lines: 95 % interval over prompts; dotted: no drafts"
    title = SHOWN["mean_acceptance_length"].capitalize()
    return _by_task(rows, looks, lambda figures: figures.mean_acceptance_length, title, note)


def plot_positions(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Draw how far the target follows: the share of passes that accepted at least so many drafted tokens."""
    shown = [(row, rates) for row, one in _drafting(rows) if (rates := one.acceptance_rate_per_position)]
    if not shown:
        return None
    figure = figure_of(8.2, 4.4)
    axes = axes_of(figure, "Acceptance by position, all tasks pooled")
    for row, rates in shown:
        axes.plot(
            range(1, len(rates) + 1),
            [100 * rate for rate in rates],
            color=looks.colour(row),
            ls=looks.line(row),
            marker=looks.marker(row),
            mfc=looks.face(row),
            ms=5,
            lw=1.6,
            label=name_of(row, rows),
        )
    deepest = max(len(rates) for _, rates in shown)
    axes.set_xticks(range(1, deepest + 1, 1 + deepest // 16))
    axes.set_ylim(0, 102)
    axes.set_xlabel("drafted token")
    axes.set_ylabel("passes that accepted it, %")
    axes.grid(alpha=0.25)
    legend(axes)
    return figure


def plot_rounds(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Draw where the time of a round goes."""
    shown = [(row, seconds) for row in rows if row.overall is not None and (seconds := row.overall.round_seconds)]
    if not shown:
        return None
    figure = figure_of(8.2, 1.3 + 0.3 * len(shown))
    axes = axes_of(figure, "Where a round's time goes, all tasks pooled")
    places = np.arange(len(shown))[::-1]
    left = np.zeros(len(shown))
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
    return figure


def plot_budget(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Speed-up against the nodes that are drafted; the points of one drafter are joined."""
    points = [
        Point(row, mean.nodes, mean.speedup)
        for row, _ in _drafting(rows)
        if (mean := row.mean) is not None and mean.nodes is not None
    ]
    if not points:
        return None
    figure = figure_of(8.2, 4.4)
    axes = axes_of(figure, "Speed-up against tree budget")
    _draw(axes, rows, points, looks, join=True)
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set_xlabel(SHOWN["nodes"])
    axes.set_ylabel(f"{SHOWN['speedup']}, mean of tasks")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    legend(axes)
    return figure


def plot_pareto(rows: Sequence[Row], looks: Looks) -> Figure | None:
    """Draft cost against accepted length: what is up and left of all others is on the front."""
    points = [
        Point(row, mean.draft_cost, mean.mean_acceptance_length)
        for row, _ in _drafting(rows)
        if (mean := row.mean) is not None and mean.draft_cost is not None
    ]
    if not points:
        return None
    figure = figure_of(8.2, 4.6)
    axes = axes_of(figure, f"{SHOWN['mean_acceptance_length'].capitalize()} against {SHOWN['draft_cost']}")
    costs, lengths = [point.at for point in points], [point.height.value for point in points]
    right, top, bottom = max(costs) * 1.15 + 0.05, max(lengths) * 1.12, min(1.0, *lengths) - 0.1
    for predicted in _predictions(max(length / (1 + cost) for length, cost in zip(lengths, costs, strict=True))):
        line = np.array([0, right])
        axes.plot(line, predicted * (1 + line), color=GREY, lw=0.7, ls="--", zorder=1)
        at = min(right, 0.985 * top / predicted - 1)
        if at > 0.04 * right and predicted * (1 + at) > bottom:
            style: dict[str, Any] = {"fontsize": 7.5, "color": "#555555", "ha": "right", "va": "center"}
            paper = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none"}
            axes.text(at, predicted * (1 + at), f"{predicted:g} x", bbox=paper, **style)
    on_front = front(costs, lengths)
    axes.plot(
        [costs[i] for i in on_front], [lengths[i] for i in on_front], color="black", lw=1.2, zorder=2, label="front"
    )
    _draw(axes, rows, points, looks)
    for i in on_front:
        axes.plot(costs[i], lengths[i], "o", ms=13, mfc="none", mec="black", mew=1.0, zorder=4)
    axes.set_xlim(0, right)
    axes.set_ylim(bottom, top)
    axes.set_xlabel(f"{SHOWN['draft_cost']} of a round, in passes of plain decoding, mean of tasks")
    axes.set_ylabel(f"{SHOWN['mean_acceptance_length']}, bonus included")
    legend(axes)
    figure.supxlabel(f"dashed: {SHOWN['speedup_decode']}, if scoring a tree cost as much as a plain pass", fontsize=8.5)
    return figure


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


@dataclass(frozen=True)
class Point:
    """A method in a plane: its place, and its height with an interval."""

    row: Row
    at: float
    height: Estimate


def _draw(axes: Axes, rows: Sequence[Row], points: Sequence[Point], looks: Looks, join: bool = False) -> None:
    """Draw a point per method with the interval of its height."""
    families: dict[str | None, list[Point]] = {}
    for point in points:
        row, estimate, colour = point.row, point.height, looks.colour(point.row)
        families.setdefault(family(row), []).append(point)
        if estimate.low is not None and estimate.high is not None:
            axes.plot([point.at, point.at], [estimate.low, estimate.high], color=colour, lw=1, alpha=0.6)
        style: dict[str, Any] = {"marker": looks.marker(row), "mfc": looks.face(row), "mec": colour}
        axes.plot([point.at], [estimate.value], label=name_of(row, rows), ms=7, ls="", zorder=3, **style)
    for members in families.values() if join else []:
        members.sort(key=lambda point: point.at)
        line: dict[str, Any] = {"color": looks.colour(members[0].row), "ls": looks.line(members[0].row)}
        places = [point.at for point in members], [point.height.value for point in members]
        axes.plot(*places, lw=1.2, alpha=0.7, zorder=2, **line)


PLOTS: dict[str, Callable[[Sequence[Row], Looks], Any]] = {
    "speedup": plot_speedup,
    "acceptance": plot_acceptance,
    "positions": plot_positions,
    "rounds": plot_rounds,
    "budget": plot_budget,
    "pareto": plot_pareto,
}

CAPTIONS = {
    "speedup": "Speed-up, end to end, by task",
    "acceptance": "Tokens per pass by task",
    "positions": "Acceptance by position",
    "rounds": "Where a round's time goes",
    "budget": "Speed-up against tree budget",
    "pareto": "Tokens per pass against draft cost",
}
