"""Says how near every method comes to its own limit, and what each lever would buy: `mmspec report --limits`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ..metrics import SHOWN
from ..speed.prediction import LEVERS, Prediction
from .figures import Figures, Row
from .grouping import BundleGroup, conditions_shown
from .sheets import DASH, Sheet, Shown

FIGURES = ("speedup_decode", "limit", "share", *LEVERS)
NOTE = (
    "From the phases of the mean round of every task, the prompt's part left out; each task counts the same. With tau "
    "tokens per pass, D seconds of drafting, V of scoring, O of the rest, s of plain decoding's own pass and P per "
    "plain token: the speed-up of decoding is tau P / (D + V + O); the limit, tau P / (D + s), has no overhead and "
    "scores a tree at the price of one token; each lever alone gives the speed-up in its column; perfect acceptance is "
    "that of every level drafted. What a drafter does in observe counts as overhead."
)
MISSING = (
    "No limits of {names}: their rounds are not known, they did not answer every task, or the baseline is not mmspec's "
    "own loop."
)
OVERHEAD = ("verify", "commit", "observe", "other")


def limits_of(row: Row, plain: Row | None) -> Figures | None:
    """Return what a method could reach, by its phases and the baseline's; None where a task of one has no rounds.

    Args:
        row: figures of the method.
        plain: the baseline's of the same group, plain decoding by mmspec's own loop.

    Returns:
        Averages over tasks: `speedup_decode` as the table has it, `limit` (the highest: no overhead, and scoring as
        cheap as a step), `share` of it that is reached, `levers` (the speed-up with one thing changed; None where it is
        unknown of a task); and `tasks`, the mean round of each as `Prediction`.
    """
    if plain is None or row.mean is None or plain.mean is None or plain.side.get("drafter") is not None:
        return None
    rounds = {task: _round(row.tasks[task], plain.tasks[task]) for task in row.tasks}
    known = [one for one in rounds.values() if one is not None]
    if len(known) < len(rounds):
        return None
    limit, speedup = fmean(one.limit for one in known), row.mean.speedup_decode.value
    levers = {name: [value for one in known if (value := one.levers[name]) is not None] for name in LEVERS}
    return Figures(
        speedup_decode=speedup,
        limit=limit,
        share=speedup / limit,
        levers={name: fmean(values) if len(values) == len(known) else None for name, values in levers.items()},
        tasks=rounds,
    )


def _round(ours: Figures | None, plain: Figures | None) -> Prediction | None:
    """Return the mean round of a method on a task; None where there is none."""
    if ours is None or plain is None or not ours.round_seconds.get("score") or not plain.round_seconds.get("score"):
        return None
    return Prediction(
        tokens=ours.mean_acceptance_length.value,
        draft=ours.round_seconds.get("draft", 0.0),
        score=ours.round_seconds["score"],
        overhead=sum(ours.round_seconds.get(phase, 0.0) for phase in OVERHEAD),
        step=plain.round_seconds["score"],
        plain=sum(plain.round_seconds.values()),
        depth=ours.levels,
    )


class LimitsTable(Shown):
    """One line per method that drafts, for Markdown and the terminal.

    Args:
        rows: figures of every method in a report.
        groups: that they are from.
    """

    def __init__(self, rows: Sequence[Row], groups: Sequence[BundleGroup]):
        plain = {id(row.conditions): row for row in rows if row.baseline}
        methods = [row for row in rows if not row.baseline and not row.control and row.overall]
        self.limits = [(row, limits_of(row, plain.get(id(row.conditions)))) for row in methods]
        """Every method but the baselines and those that failed, with what it could reach."""
        mixed = len(groups) > 1
        cells = []
        for row, one in self.limits:
            if one is not None:
                where = [conditions_shown(row.conditions, groups)] if mixed else []
                levers = [DASH if value is None else f"{value:.2f}" for value in one.levers.values()]
                figures = [f"{one.speedup_decode:.2f}", f"{one.limit:.2f}", f"{one.share:.0%}", *levers]
                cells.append([row.method, *where, *figures])
        names = ["method", *(["measured on"] if mixed else [])]
        sheet = Sheet("limits of the speed-up", [*names, *(SHOWN[name] for name in FIGURES)], cells, len(names))
        missing = "; ".join(dict.fromkeys(row.method for row, one in self.limits if one is None))
        super().__init__([sheet], [NOTE, *([MISSING.format(names=missing)] if missing else [])])

    def as_json(self) -> list[dict[str, Any]]:
        """Return every method's limit, levers and mean rounds as plain JSON values."""
        return [
            {"method": row.method, **one, "tasks": {task: of.as_json() for task, of in one.tasks.items()}}
            for row, one in self.limits
            if one is not None
        ]
