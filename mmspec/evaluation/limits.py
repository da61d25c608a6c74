"""Says how near every method comes to its own limit, and what each lever would buy: `mmspec report --limits`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..metrics import SHOWN
from ..speed.prediction import LEVERS, Prediction
from .figures import Row
from .footnotes import conditions_shown
from .grouping import BundleGroup
from .tables import Shown, markdown_table, markdown_text, terminal_tables

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

DASH = "-"
HEADINGS = tuple(SHOWN[name] for name in ("speedup_decode", "limit", "share", *LEVERS))
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


@dataclass(frozen=True)
class Limits:
    """The speed-ups that a method could reach, averaged over tasks.

    Args:
        speedup_decode: as the table has it.
        rounds: the mean round of each task.
    """

    speedup_decode: float
    rounds: dict[str, Prediction]

    @property
    def limit(self) -> float:
        """Highest speed-up of decoding: no overhead, and scoring as cheap as a step."""
        return fmean(one.limit for one in self.rounds.values())

    @property
    def share(self) -> float:
        """Share of the limit that is reached."""
        return self.speedup_decode / self.limit

    @property
    def levers(self) -> dict[str, float | None]:
        """The speed-up of decoding with one thing changed; None where it is unknown of a task."""
        found = [one.levers for one in self.rounds.values()]
        known = {name: [value for one in found if (value := one[name]) is not None] for name in LEVERS}
        return {name: fmean(values) if len(values) == len(found) else None for name, values in known.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        figures = {name: getattr(self, name) for name in ("speedup_decode", "limit", "share", "levers")}
        return figures | {"tasks": {task: one.as_json() for task, one in self.rounds.items()}}


def limits_of(row: Row, plain: Row | None) -> Limits | None:
    """Return what a method could reach, by its phases and the baseline's; None where a task of one has no rounds.

    Args:
        row: figures of the method.
        plain: the baseline's of the same group, plain decoding by mmspec's own loop.
    """
    if plain is None or row.mean is None or plain.mean is None or plain.side.get("drafter") is not None:
        return None
    rounds = {}
    for task, figures in row.tasks.items():
        of_plain = plain.tasks[task]
        if figures is None or of_plain is None:
            return None
        ours, theirs = figures.round_seconds, of_plain.round_seconds
        if not ours.get("score") or not theirs.get("score"):
            return None
        rounds[task] = Prediction(
            tokens=figures.mean_acceptance_length.value,
            draft=ours.get("draft", 0.0),
            score=ours["score"],
            overhead=sum(ours.get(phase, 0.0) for phase in OVERHEAD),
            step=theirs["score"],
            plain=sum(theirs.values()),
            depth=figures.levels,
        )
    return Limits(row.mean.speedup_decode.value, rounds)


@dataclass
class LimitsTable(Shown):
    """One line per method that drafts, for Markdown and the terminal.

    Args:
        rows: figures of every method in a report.
        groups: that they are from.
    """

    rows: Sequence[Row]
    groups: Sequence[BundleGroup]

    @property
    def limits(self) -> list[tuple[Row, Limits | None]]:
        """Every method but the baselines and those that failed, with what it could reach."""
        plain = {id(row.conditions): row for row in self.rows if row.baseline}
        return [
            (row, limits_of(row, plain.get(id(row.conditions))))
            for row in self.rows
            if not row.baseline and not row.control and row.overall
        ]

    @property
    def notes(self) -> list[str]:
        """The lines under the table."""
        missing = [row.method for row, one in self.limits if one is None]
        return [NOTE, *([MISSING.format(names="; ".join(dict.fromkeys(missing)))] if missing else [])]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows, the methods of which nothing is known left out."""
        mixed = len(self.groups) > 1
        rows = []
        for row, one in self.limits:
            if one is None:
                continue
            names = [row.method, *([conditions_shown(row.conditions, self.groups)] if mixed else [])]
            levers = [DASH if one.levers[name] is None else f"{one.levers[name]:.2f}" for name in LEVERS]
            rows.append([*names, f"{one.speedup_decode:.2f}", f"{one.limit:.2f}", f"{one.share:.0%}", *levers])
        return ["method", *(["measured on"] if mixed else []), *HEADINGS], rows

    def as_json(self) -> list[dict[str, Any]]:
        """Return every method's limit, levers and mean rounds as plain JSON values."""
        return [{"method": row.method, **one.as_json()} for row, one in self.limits if one is not None]

    def markdown(self) -> str:
        """Return a Markdown table and the lines under it."""
        return (
            f"{markdown_table(*self.cells())}\n\n" + "\n".join(f"- {markdown_text(note)}" for note in self.notes) + "\n"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        headings, rows = self.cells()
        names = headings.index(HEADINGS[0])
        yield from terminal_tables("limits of the speed-up", headings, rows, options.max_width, names, ("measured on",))
        yield from (Text(f"- {note}") for note in self.notes)
