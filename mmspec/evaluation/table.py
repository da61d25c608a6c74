"""The table: one row per method, and under it what its columns mean and where it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from ..errors import cut
from ..metrics import SHOWN
from .figures import Estimate, Row
from .footnotes import notes, repeated
from .grouping import BundleGroup, columns_of, conditions_shown, sizes_of
from .sheets import BATCH_SIZE, DASH, MATCH, SAME, Sheet, Shown

FORMULA = ("=", "+", "-", "@", "\t", "\r")
REASON = 150  # characters of why a method failed that stand in its row
PHASE_COLUMNS = ("draft", "score", "verify", "commit", "observe", "other")

Cell = Callable[[Row], str]
Column = tuple[str, Cell]
"""A heading, and what makes the cell of a row."""


class MethodTable(Shown):
    """The figures of all methods, for Markdown, CSV and the terminal.

    Args:
        rows: figures of every method of all groups, in the order in which they are shown.
        groups: that they are from.
    """

    def __init__(self, rows: Sequence[Row], groups: Sequence[BundleGroup]):
        self.rows = rows
        lossy = any(row.overall is not None and not row.side.get("lossless", True) for row in rows)
        self.judged = lossy and any(row.mean is not None and row.mean.accuracy is not None for row in rows)
        """True if accuracy stands beside the speed: where a method may change the text."""
        tasks = list(dict.fromkeys(task for group in groups for task in group.tasks))
        sizes = sizes_of(groups)
        names: list[Column] = [("method", lambda row: row.method)]
        if sizes:
            names.append((BATCH_SIZE, lambda row: str(row.conditions["batch"])))
        elif len(groups) > 1:
            names.append(("measured on", lambda row: conditions_shown(row.conditions, groups)))
        matched = any(one.exact.single_compared and row.conditions["batch"] > 1 for row in rows if (one := row.overall))
        projected = any(row.projected for row in rows)
        baselines = " and ".join(dict.fromkeys(row.side["label"] for row in rows if row.baseline))
        first = len(names) + 1
        sheets = [
            _sheet(
                f"{SHOWN['speedup']}, over {baselines}",
                [*names, *_columns(tasks, repeated(rows), self.judged, matched, projected)],
                rows,
                len(names),
                range(first, first + len(tasks)),
            )
        ]
        if self.judged:
            columns = [*names, *_accuracies(tasks, rows)]
            answered = [row for row in rows if row.overall is not None]
            sheets.append(_sheet(f"{SHOWN['accuracy']}, by task", columns, answered, len(names)))
        sheets += [by_batch_size(rows, sizes)] if sizes else []
        super().__init__(sheets, list(notes(groups, rows)))

    def csv(self) -> str:
        """Return one line per method and task, and one over all tasks, with every figure."""
        lines = [line for row in self.rows for line in csv_lines(row)]
        safe = [{name: _csv_text(value) for name, value in line.items()} for line in lines]
        return pd.DataFrame(safe, dtype=object).to_csv(index=False, lineterminator="\n")  # as objects counts stay whole


def _sheet(title: str, columns: Sequence[Column], rows: Sequence[Row], *places: Any) -> Sheet:
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return Sheet(title, [heading for heading, _ in columns], cells, *places)


def _columns(tasks: Sequence[str], repeats: bool, judged: bool, matched: bool, projected: bool) -> list[Column]:
    """Return the columns behind the names. One task has no geometric mean and no pool beside its figure, texts of
    single prompts are only compared with those of larger batches, and a projection stands beside what was measured only
    where there is one."""
    several = len(tasks) > 1
    return [
        (f"{SHOWN['nodes']} (limit)", _nodes),
        *((_named(task), _of_task(task, "speedup")) for task in tasks),
        ("mean (95 % interval)", _mean("speedup", _interval)),
        *([_shown("speedup_geometric")] if several else []),
        *([("single repeats", _mean("spread", _spread))] if repeats else []),
        _shown("speedup_decode"),
        *([_shown("speedup_projected")] if projected else []),
        *([_shown("accuracy", _interval)] if judged else []),
        _shown("mean_acceptance_length"),
        *([_shown("pooled_acceptance_length")] if several else []),
        _shown("mean_accepted_draft_tokens"),
        *([(MATCH, _match)] if matched else []),
        (SAME, _same),
    ]


def _accuracies(tasks: Sequence[str], rows: Sequence[Row]) -> list[Column]:
    """Return a column for every task that has a metric."""
    found = []
    for task in tasks:
        if metrics := {one.metric for row in rows if (one := row.tasks.get(task)) and one.metric}:
            found.append((f"{_named(task)} ({' '.join(sorted(metrics))})", _of_task(task, "accuracy")))
    return found


def _named(task: str) -> str:
    return task or "(no task)"


def _shown(name: str, show: Callable[[Any], str] | None = None) -> Column:
    """Return the column of a figure of the mean of tasks, under its name in words."""
    return SHOWN[name], _mean(name, show or _value)


def _mean(name: str, show: Callable[[Any], str]) -> Cell:
    return lambda row: show(row.mean[name] if row.mean else None)


def _of_task(task: str, name: str) -> Cell:
    return lambda row: _value(figures[name] if (figures := row.tasks.get(task)) else None)


def _value(one: Estimate | None) -> str:
    return f"{one.value:.2f}" if one else DASH


def _interval(one: Estimate | None) -> str:
    return f"{_value(one)} ({one.low:.2f}-{one.high:.2f})" if one and one.low != one.high else _value(one)


def _spread(ends: tuple[float, float] | None) -> str:
    return "-".join(dict.fromkeys(f"{one:.2f}" for one in ends)) if ends else DASH


def _nodes(row: Row) -> str:
    """Return the nodes of the mean pass and the most that the settings allow; without rounds, the limit alone."""
    budget = row.side.get("budget")
    if row.overall is None:
        return DASH
    nodes = row.mean and row.mean.nodes
    if row.side.get("drafter") is None and not nodes:  # a running server drafts without a drafter of ours
        return "0"
    shown = [*([] if nodes is None else [f"{nodes:.1f}"]), *([] if budget is None else [f"({budget})"])]
    return " ".join(shown) or DASH


def _same(row: Row) -> str:
    if row.overall is None:
        return cut(f"FAILED: {row.failed}", REASON) if row.failed else DASH
    if row.overall.alike is not None:
        same, of = row.overall.alike
        return f"lossy: {same}/{of}, similarity {_value((row.mean or row.overall).similarity)}"
    exact = row.overall.exact
    ties = f", {exact.near_ties} near-tie{'s' * (exact.near_ties > 1)}" if exact.near_ties else ""
    faults = f", {exact.faults} FAULT{'S' * (exact.faults > 1)}" if exact.faults else ""
    return f"{exact.same}/{exact.compared}{ties}{faults}" if exact.compared else DASH


def _match(row: Row) -> str:
    """Return the exact-match rate: the share of the answers that are plain decoding's of single prompts."""
    if row.overall is None or not (of := row.overall.exact.single_compared):
        return DASH
    return f"{row.overall.exact.single_same / of:.0%} ({row.overall.exact.single_same}/{of})"


def by_batch_size(rows: Sequence[Row], sizes: Sequence[int]) -> Sheet:
    """Return how the figures go with the batch size: a line per figure and method, a column per size."""
    found = {(row.method, row.conditions["batch"]): row for row in rows}
    names = dict.fromkeys(row.method for row in rows if row.overall is not None)
    shown: dict[str, Cell] = {SHOWN["speedup_decode"]: _mean("speedup_decode", _value)}
    if 1 in sizes:
        gained = f"{SHOWN['tokens_per_second']}, over batch size 1"
        shown |= {gained: lambda row: _value(gain(row, found.get((row.method, 1)))), MATCH: _match}
    lines = []
    for figure, cell in shown.items():
        for name in names:
            cells = [DASH if (row := found.get((name, size))) is None else cell(row) for size in sizes]
            lines.append([figure, name, *cells])
    return Sheet("by batch size", ["figure", "method", *(f"{BATCH_SIZE} {size}" for size in sizes)], lines, 2)


def gain(row: Row, single: Row | None) -> Estimate | None:
    """Return the tokens per second of a method over those of the same method with single prompts, mean of tasks; None
    where one of them is missing."""
    ours, theirs = list(row.tasks.values()), [single.tasks.get(task) if single else None for task in row.tasks]
    ratios = [
        one.tokens_per_second / other.tokens_per_second
        for one, other in zip(ours, theirs, strict=True)
        if one is not None and other is not None and other.tokens_per_second
    ]
    return Estimate(fmean(ratios)) if ratios and len(ratios) == len(ours) else None


def csv_lines(row: Row) -> list[dict[str, Any]]:
    """Return a row's figures as flat lines: one per task, `mean` for the mean of tasks, `all` for all of it pooled.

    A method that failed has one line, which says why.
    """
    side = {name: row.side.get(name) for name in ("engine", "drafter", "tree", "lossless")} | {"failed": row.failed}
    parts = {task: flat(figures) for task, figures in row.tasks.items() if figures is not None}
    if row.mean is not None:
        parts["mean"] = flat(row.mean) | dict.fromkeys(("behind", "behind_low", "behind_high"))
        parts["mean"] |= flat({"behind": row.behind})
    parts["all"] = flat(row.overall or {})
    return [
        {"method": row.method, "task": task, "baseline": row.baseline, **figures, **side, **columns_of(row.conditions)}
        for task, figures in parts.items()
    ]


def flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures by name as numbers and short texts: an estimate is three, a list is joined by spaces."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif name.startswith("spread"):
            found |= dict(zip((f"{name}_low", f"{name}_high"), value or (None, None), strict=True))
        elif name == "alike":
            found |= dict(zip(("alike_same", "alike_compared"), value or (None, None), strict=True))
        elif name == "round_seconds":
            found |= {f"round_{phase}_seconds": value.get(phase) for phase in PHASE_COLUMNS}
        elif name == "exact":
            first = value["first"]
            found |= {f"exact_{part}": one for part, one in value.items() if part not in ("first", "causes")}
            found["first_divergence"] = f"{' '.join(first['ids'])} at {first['position']}" if first else None
        elif isinstance(value, list):
            found[name] = " ".join(f"{one:.6g}" for one in value)
        elif isinstance(value, dict):
            found[name] = " ".join(f"{key}:{one}" for key, one in value.items())
        else:
            found[name] = value
    return found


def _csv_text(value: Any) -> Any:
    """Return a value for a CSV cell: a text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
