"""How near every method comes to its own limit, and what each lever would buy: `mmspec report --limits`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..speed.prediction import LEVERS, Prediction
from .figures import Row
from .layout import as_text, markdown_table, terminal_tables
from .merging import Group
from .notes import conditions_shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

WIDTH = 120
DASH = "-"
HEADINGS = (
    "decoding only",
    "limit",
    "share of limit",
    "without overhead",
    "scoring as cheap as a step",
    "free drafting",
    "perfect acceptance",
)
NOTE = (
    "From the phases of the mean round, over all tasks, the prompt's part left out. With tau tokens a pass, D seconds "
    "of drafting, V of scoring, O of the rest, s of plain decoding's own pass and P per plain token: decoding only is "
    "tau P / (D + V + O); the limit, tau P / (D + s), has no overhead and scores a tree at the price of one token; "
    "each lever alone gives the speed-up in its column; perfect acceptance is that of every level drafted. What a "
    "drafter does in observe counts as overhead."
)
MISSING = "No limits of {names}: their rounds are not known, or the baseline is not mmspec's own loop."
OVERHEAD = ("verify", "commit", "observe", "other")


def limits_of(row: Row, plain: Row | None) -> Prediction | None:
    """The mean round of a method, from its phases and the baseline's; None where one of them has no rounds.

    Args:
        row: of the method.
        plain: the baseline's of the same group, plain decoding by mmspec's own loop.
    """
    if plain is None or row.overall is None or plain.overall is None or plain.side.get("drafter") is not None:
        return None
    ours, theirs = row.overall.round_seconds, plain.overall.round_seconds
    if not ours.get("score") or not theirs.get("score"):
        return None
    return Prediction(
        tokens=row.overall.mean_acceptance_length.value,
        draft=ours.get("draft", 0.0),
        score=ours["score"],
        overhead=sum(ours.get(phase, 0.0) for phase in OVERHEAD),
        step=theirs["score"],
        plain=sum(theirs.values()),
        depth=row.overall.levels,
    )


@dataclass
class LimitsTable:
    """One line per method that drafts, for Markdown and the terminal.

    Args:
        rows: of a report.
        groups: that they are from.
    """

    rows: Sequence[Row]
    groups: Sequence[Group]

    @property
    def limits(self) -> list[tuple[Row, Prediction | None]]:
        """Every method but the baselines, with its mean round."""
        plain = {id(row.conditions): row for row in self.rows if row.baseline}
        return [(row, limits_of(row, plain.get(id(row.conditions)))) for row in self.rows if not row.baseline]

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
            rows.append([*names, f"{one.speedup:.2f}", f"{one.limit:.2f}", f"{one.share:.0%}", *levers])
        return ["method", *(["measured on"] if mixed else []), *HEADINGS], rows

    def as_json(self) -> list[dict[str, Any]]:
        """Return every method's mean round, limit and levers as plain JSON values."""
        return [{"method": row.method, **one.as_json()} for row, one in self.limits if one is not None]

    def markdown(self) -> str:
        """Return a Markdown table and the lines under it."""
        return f"{markdown_table(*self.cells())}\n\n" + "\n".join(f"- {note}" for note in self.notes) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        headings, rows = self.cells()
        names = headings.index(HEADINGS[0])
        yield from terminal_tables("limits of the speed-up", headings, rows, options.max_width, names, ("measured on",))
        yield from (Text(f"- {note}") for note in self.notes)

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def _repr_markdown_(self) -> str:
        return self.markdown()
