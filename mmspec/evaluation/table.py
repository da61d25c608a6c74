"""The table: one row per method, and under it what its columns mean and where it was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import cut
from ..metrics import SHOWN
from .figures import Estimate, Figures, Means, Row
from .footnotes import conditions_shown, notes, repeated
from .grouping import CONDITIONS, BundleGroup
from .tables import BROKEN, Shown, csv_text, least_width, markdown_table, markdown_text, terminal_tables

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

DASH = "-"
NODES = f"{SHOWN['nodes']} (limit)"
SAME = "same text as plain"
REASON = 100  # characters of why a method failed that stand in its row

PHASE_COLUMNS = ("draft", "score", "verify", "commit", "observe", "other")


@dataclass
class Table(Shown):
    """Rows as text, for Markdown, CSV and the terminal.

    Args:
        rows: figures of every method of all groups, in the order in which they are shown.
        groups: that they are from.
    """

    rows: Sequence[Row]
    groups: Sequence[BundleGroup]

    @property
    def tasks(self) -> list[str]:
        """Tasks of all groups, in the order in which they first occur."""
        return list(dict.fromkeys(task for group in self.groups for task in group.tasks))

    @property
    def notes(self) -> list[str]:
        """The lines under the table, each a sentence or more."""
        return notes(self.groups, self.rows)

    @property
    def judged(self) -> bool:
        """True if accuracy stands beside the speed: where a method may change the text."""
        lossy = any(row.overall is not None and not row.side.get("lossless", True) for row in self.rows)
        return lossy and any(row.mean is not None and row.mean.accuracy is not None for row in self.rows)

    def accuracies(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows of the accuracy by task."""
        mixed = len(self.groups) > 1
        tasks = {
            task: metrics
            for task in self.tasks
            if (metrics := {one.metric for row in self.rows if (one := row.tasks.get(task)) and one.metric})
        }
        headings = ["method", *(["measured on"] if mixed else [])]
        headings += [f"{_named(task)} ({' '.join(sorted(metrics))})" for task, metrics in tasks.items()]
        rows = []
        for row in self.rows:
            if row.overall is not None:
                where = [conditions_shown(row.conditions, self.groups)] if mixed else []
                figures = [row.tasks.get(task) for task in tasks]
                rows.append([row.method, *where, *(_value(one.accuracy if one else None) for one in figures)])
        return headings, rows

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows."""
        again = repeated(self.rows)
        mixed = len(self.groups) > 1
        headings = ["method", *(["measured on"] if mixed else []), NODES, *map(_named, self.tasks)]
        several = len(self.tasks) > 1
        headings += ["mean (95 % interval)", *([SHOWN["speedup_geometric"]] if several else [])]
        headings += [*(["single repeats"] if again else []), SHOWN["speedup_decode"]]
        headings += [SHOWN["accuracy"]] if self.judged else []
        headings += [SHOWN["mean_acceptance_length"], *([SHOWN["pooled_acceptance_length"]] if several else [])]
        headings += [SHOWN["mean_accepted_draft_tokens"], SAME]
        rows = []
        for row in self.rows:
            cells = [row.method, *([conditions_shown(row.conditions, self.groups)] if mixed else []), _nodes(row)]
            mean = row.mean
            cells += [_value(one.speedup if one else None) for one in (row.tasks.get(task) for task in self.tasks)]
            cells += [_interval(mean.speedup if mean else None)]
            cells += [_value(mean.speedup_geometric if mean else None)] if several else []
            cells += [_spread(mean)] if again else []
            cells += [_value(mean.speedup_decode if mean else None)]
            cells += [_interval(mean.accuracy if mean else None)] if self.judged else []
            cells += [_value(mean.mean_acceptance_length if mean else None)]
            cells += [_value(row.pooled_acceptance_length if mean else None)] if several else []
            cells += [_value(mean.mean_accepted_draft_tokens if mean else None), _same(row)]
            rows.append(cells)
        return headings, rows

    def markdown(self) -> str:
        """Return a Markdown table, one of the accuracy where that is measured, and the lines under them."""
        notes = "\n".join(f"- {markdown_text(note)}" for note in self.notes)
        tables = [self.cells(), *([self.accuracies()] if self.judged else [])]
        return "\n\n".join([*(markdown_table(*cells) for cells in tables), f"{notes}\n"])

    def csv(self) -> str:
        """Return one line per method and task, and one over all tasks, with every figure."""
        lines = [line for row in self.rows for line in csv_lines(row)]
        names = list(dict.fromkeys(name for line in lines for name in line))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: csv_text(value) for name, value in line.items()} for line in lines])
        return out.getvalue()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield what a terminal shows. Where the tasks do not fit beside the rest, they get a table of their own."""
        from rich.text import Text

        headings, rows = self.cells()
        first = headings.index(NODES) + 1
        names, end = (2 if len(self.groups) > 1 else 1), first + len(self.tasks)
        title, width = f"{SHOWN['speedup']}, over {_baseline(self.rows)}", options.max_width

        def part(places: Sequence[int], title: str) -> Iterator[RenderableType]:
            cells = [[row[i] for i in places] for row in rows]
            yield from terminal_tables(title, [headings[i] for i in places], cells, width, names, BROKEN)

        everything = range(len(headings))
        if least_width(headings, rows, BROKEN) <= width:
            yield from part(everything, title)
        else:
            yield from part([i for i in everything if not first <= i < end], title)
            yield from part([*range(names), *range(first, end)], f"{title}, by task")
        if self.judged:
            yield from terminal_tables(f"{SHOWN['accuracy']}, by task", *self.accuracies(), width, names, BROKEN)
        yield from (Text(f"- {note}") for note in self.notes)


def _baseline(rows: Sequence[Row]) -> str:
    return " and ".join(dict.fromkeys(row.side["label"] for row in rows if row.baseline))


def _named(task: str) -> str:
    return task or "(no task)"


def _value(estimate: Estimate | None) -> str:
    return DASH if estimate is None else f"{estimate.value:.2f}"


def _interval(one: Estimate | None) -> str:
    if one is None:
        return DASH
    return (
        f"{one.value:.2f}"
        if one.low is None or one.low == one.high
        else f"{one.value:.2f} ({one.low:.2f}-{one.high:.2f})"
    )


def _spread(means: Means | None) -> str:
    if means is None or means.spread is None:
        return DASH
    low, high = (f"{value:.2f}" for value in means.spread)
    return low if low == high else f"{low}-{high}"


def _nodes(row: Row) -> str:
    """Return the nodes of the mean pass and the most that the settings allow; without rounds, the limit alone."""
    budget = row.side.get("budget")
    if row.overall is None:
        return DASH
    if row.side.get("drafter") is None:
        return "0"
    nodes = row.mean and row.mean.nodes
    if nodes is None:
        return DASH if budget is None else f"({budget})"
    return f"{nodes:.1f}" + (f" ({budget})" if budget is not None else "")


def _same(row: Row) -> str:
    if row.overall is None and row.failed:
        return cut(f"FAILED: {row.failed}", REASON)
    if row.overall is not None and row.overall.alike is not None:
        same, of = row.overall.alike
        return f"lossy: {same}/{of}, similarity {_value((row.mean or row.overall).similarity)}"
    exact = row.overall.exact if row.overall else None
    if exact is None or not exact.compared:
        return DASH
    text = f"{exact.same}/{exact.compared}"
    if exact.near_ties:
        text += f", {exact.near_ties} near-tie{'s' * (exact.near_ties > 1)}"
    return text


def csv_lines(row: Row) -> list[dict[str, Any]]:
    """Return a row's figures as flat lines: one per task, `mean` for the mean of tasks, `all` for all of it pooled.

    A method that failed has one line, which says why.
    """
    conditions = {name: row.conditions[name] for name in CONDITIONS if name != "sampling"}
    conditions |= {name: value for name, value in row.conditions["sampling"].items() if value is not None}
    side = {name: row.side.get(name) for name in ("engine", "drafter", "tree", "lossless")} | {"failed": row.failed}
    if row.overall is None:
        return [{"method": row.method, "task": "all", "baseline": row.baseline, **side, **conditions}]
    parts = {task: flat(figures) for task, figures in row.tasks.items() if figures is not None}
    if row.mean is not None:
        of_row = {name: getattr(row, name) for name in ("pooled_acceptance_length", "behind")}
        parts["mean"] = flat(row.mean) | {
            f"{name}{end}": estimate and getattr(estimate, part)
            for name, estimate in of_row.items()
            for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    parts["all"] = flat(row.overall)
    return [
        {"method": row.method, "task": task, "baseline": row.baseline, **figures, **side, **conditions}
        for task, figures in parts.items()
    ]


def flat(figures: Means | Figures) -> dict[str, Any]:
    """Return figures by name as numbers and short texts: an estimate is three, a list is joined by spaces."""
    found: dict[str, Any] = {}
    for name, value in vars(figures).items():
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif name.startswith("spread"):
            found |= {f"{name}_low": value and value[0], f"{name}_high": value and value[1]}
        elif name == "round_seconds":
            found |= {f"round_{phase}_seconds": value.get(phase) for phase in PHASE_COLUMNS}
        elif name == "exact":
            found |= {f"exact_{part}": getattr(value, part) for part in ("compared", "same", "near_ties", "changed")}
            first = value.first or {}
            found["first_divergence"] = f"{' '.join(first['ids'])} at {first['position']}" if first else None
        elif name == "alike":
            found |= {"alike_same": value and value[0], "alike_compared": value and value[1]}
        elif isinstance(value, list):
            found[name] = " ".join(f"{one:.6g}" for one in value)
        elif isinstance(value, dict):
            found[name] = " ".join(f"{key}:{one}" for key, one in value.items())
        else:
            found[name] = value
    return found
