"""Counts the same runs in the units of others, for a comparison with the tables of their papers.

Their loops emit the token of the prompt's pass in the first round and never emit the last bonus token, so that every
round emits what it accepted and one token before it. Ours emits the first token by itself and every bonus token with
its round. Both write the same text, and where the answer ends in a bonus token theirs needs a round more.
`Counted.rounds` is therefore their number of rounds, new tokens less accepted ones. The seconds are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MMSpecError, did_you_mean
from .bootstrap import Measured
from .footnotes import conditions_shown
from .grouping import BundleGroup, MergedAnswer
from .tables import Shown, markdown_table, terminal_tables

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

ALL, PER_POSITION = "all", "acceptance per position"

EXPLAINED = {
    "eagle": (
        "EAGLE: tau = 1 + accepted drafted tokens, averaged over all rounds: the bonus counts. accept_length, of which "
        "its logs have one per round, leaves the bonus out.",
        "Speed-up: mean over questions of tokens per second (the turns of a question pooled) over the same mean of the "
        "baseline; prompt and vision are timed. Tokens of the baseline are those of its text tokenized again, less 1 a "
        "turn.",
        "Not repeated: users who divide new_tokens by idxs count one round a turn too few.",
    ),
    "mmspec": (
        "The MMSpec benchmark: MAT (paper) is accepted drafted tokens per round, without the bonus; MAT (repository) "
        "is new tokens per round, with it. Both are pooled over all turns.",
        "Paired: mean over turns of the turn's tokens per second over the baseline's; global: the same of all turns "
        "pooled. Prompt and vision are timed; tokens are counted from the ids on both sides.",
        "How the repository counts was read in a fork of it; that of the paper is known from its table only.",
    ),
    "vispec": (
        "ViSpec: the accepted length in its README is accepted drafted tokens per round, without the bonus.",
        "Speed-up as in EAGLE: mean over questions of tokens per second over the baseline's mean. Its script tokenizes "
        "the baseline's text again with one tokenizer for all models; here it is the target's own.",
        "Not verified: its README says that the speed-up is from the average time per token, and does not show how.",
    ),
    "vllm": (
        "vLLM: mean_acceptance_length = 1 + accepted / drafts, where a draft is a round that drafted anything; "
        "draft_acceptance_rate = accepted over drafted tokens (of a tree: nodes); per position: the share of drafts "
        "that accepted it.",
        "It reports no speed-up; tokens/s are new tokens over seconds, prompt and vision included, one request at a "
        "time.",
        "vLLM drafts chains only, so its rate compares with that of chains only.",
    ),
}


@dataclass(frozen=True)
class Counted:
    """One answer of a single prompt in the units of others.

    Args:
        rounds: new tokens less accepted ones.
        retokenized: tokens of the baseline's text when it is tokenized again, None without a tokenizer.
    """

    ids: tuple[str, ...]
    tokens: float
    accepted: float
    seconds: float
    plain_tokens: float
    plain_seconds: float
    retokenized: float | None

    @property
    def rounds(self) -> float:
        """Rounds as the others count them."""
        return self.tokens - self.accepted


@dataclass(frozen=True)
class UnitTable(Shown):
    """The figures of all methods as others count them.

    Args:
        name: name of the others, a key of `EXPLAINED`.
        explanation: how they count, a sentence or two each.
        scopes: the tasks, and `all` for everything.
        rows: `(method, {scope: {figure: number, list of numbers, or None}})`.
    """

    name: str
    explanation: tuple[str, ...]
    scopes: list[str]
    rows: list[tuple[str, dict[str, dict[str, Any]]]]

    @property
    def title(self) -> str:
        """The title, which says what the numbers of a cell are."""
        return f"as {self.name} counts: {' / '.join(self.figures)}"

    @property
    def figures(self) -> list[str]:
        """Those that are one number, in the order in which they stand in a cell."""
        return [figure for figure in self._named() if figure != PER_POSITION]

    def _named(self) -> dict[str, None]:
        return {figure: None for _, scopes in self.rows for figures in scopes.values() for figure in figures}

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows as text."""
        listed = [PER_POSITION] if PER_POSITION in self._named() else []
        rows = []
        for method, scopes in self.rows:
            found = [scopes.get(scope) for scope in self.scopes]
            cells = [" / ".join(_shown(one.get(name)) for name in self.figures) if one else "-" for one in found]
            rows.append([method, *cells, *(_shown(scopes.get(ALL, {}).get(name)) for name in listed)])
        return ["method", *self.scopes, *listed], rows

    def markdown(self) -> str:
        """Return a Markdown table and how they count."""
        lines = "\n".join(f"- {line}" for line in (f"Each cell: {' / '.join(self.figures)}.", *self.explanation))
        return f"{markdown_table(*self.cells())}\n\n{lines}\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield what a terminal shows."""
        from rich.text import Text

        headings, rows = self.cells()
        yield from terminal_tables(self.title, headings, rows, options.max_width, names=1)
        yield from (Text(f"- {line}") for line in self.explanation)


def in_units(groups: Sequence[BundleGroup], name: str) -> UnitTable:
    """Count the runs as others would.

    Args:
        groups: groups of bundles with a batch of 1; a batch has no time per prompt.
        name: `eagle`, `mmspec`, `vispec` or `vllm`.

    Raises:
        MMSpecError: for another name, or a larger batch.
    """
    how = explained(name)
    need_single_prompts(groups, f"units={name}")
    figures = {"eagle": _eagle, "mmspec": _mmspec, "vispec": _vispec, "vllm": _vllm}[name]
    tasks = list(dict.fromkeys(task for group in groups for task in group.tasks))
    scopes = [*tasks, ALL] if len(tasks) > 1 else [ALL]
    rows = []
    for group in groups:
        where = f" [{conditions_shown(group.conditions, groups)}]" if len(groups) > 1 else ""
        for method in group.methods:
            answers = {scope: method.of_task(scope) for scope in scopes} | {ALL: list(method.answers.values())}
            values = {scope: figures([Measured(one) for one in found]) for scope, found in answers.items() if found}
            rows.append((f"{method.label}{where}", values))
    return UnitTable(name, how, scopes, rows)


def explained(name: str) -> tuple[str, ...]:
    """Return how others count, in words.

    Raises:
        MMSpecError: for a name that is none of `EXPLAINED`.
    """
    if name not in EXPLAINED:
        raise MMSpecError(f"units={name} is unknown.{did_you_mean(name, EXPLAINED)}")
    return EXPLAINED[name]


def need_single_prompts(groups: Sequence[BundleGroup], what: str) -> None:
    """Refuse bundles in which several prompts share a pass."""
    for group in groups:
        batch = group.conditions["batch"]
        if batch > 1:
            raise MMSpecError(f"{what} needs one prompt at a time, but {group.bundles[0].folder} has batch={batch}")


def counted(measured: Measured) -> Counted:
    """Return one answer in the units of others."""
    answer: MergedAnswer = measured.answer
    columns = measured.columns
    again = (answer.runs[0].plain.get("retokenized") or [None])[0]
    names = ("tokens", "accepted", "seconds", "plain_tokens", "plain_seconds")
    return Counted(answer.ids, **{name: columns[name] for name in names}, retokenized=again)


def _lengths(answers: Sequence[Counted]) -> tuple[float, float]:
    """Return tokens per round with and without the bonus."""
    rounds = sum(one.rounds for one in answers)
    return _over(sum(one.tokens for one in answers), rounds), _over(sum(one.accepted for one in answers), rounds)


def _questions(answers: Sequence[Counted]) -> float | None:
    """Return the ratio of two means over questions of tokens per second, the baseline's tokens counted anew."""
    questions: dict[tuple[str, ...], list[Counted]] = {}
    retokenized: dict[tuple[str, ...], float] = {}
    for one in answers:
        if one.retokenized is None:
            return None
        questions.setdefault(one.ids, []).append(one)
        retokenized[one.ids] = retokenized.get(one.ids, 0) + one.retokenized - 1
    ours = [_over(sum(one.tokens for one in turns), sum(one.seconds for one in turns)) for turns in questions.values()]
    theirs = [_over(retokenized[ids], sum(one.plain_seconds for one in turns)) for ids, turns in questions.items()]
    return float(np.mean(ours) / np.mean(theirs)) if any(theirs) else None


def _eagle(measured: Sequence[Measured]) -> dict[str, float | None]:
    answers = [counted(one) for one in measured]
    with_bonus, without = _lengths(answers)
    return {"speed-up": _questions(answers), "tau": with_bonus, "accept_length": without}


def _vispec(measured: Sequence[Measured]) -> dict[str, float | None]:
    answers = [counted(one) for one in measured]
    return {"speed-up": _questions(answers), "accepted": _lengths(answers)[1]}


def _mmspec(measured: Sequence[Measured]) -> dict[str, float | None]:
    answers = [counted(one) for one in measured]
    with_bonus, without = _lengths(answers)
    speeds = [(_over(one.tokens, one.seconds), _over(one.plain_tokens, one.plain_seconds)) for one in answers]
    pooled = _over(sum(one.tokens for one in answers), sum(one.seconds for one in answers))
    plain = _over(sum(one.plain_tokens for one in answers), sum(one.plain_seconds for one in answers))
    paired = float(np.mean([_over(ours, theirs) for ours, theirs in speeds]))
    return {"paired": paired, "global": _over(pooled, plain), "MAT (paper)": without, "MAT (repository)": with_bonus}


def _vllm(measured: Sequence[Measured]) -> dict[str, Any]:
    answers = [counted(one) for one in measured]
    speed = _over(sum(one.tokens for one in answers), sum(one.seconds for one in answers))
    drafts = [
        (drafted, accepted)
        for one in measured
        for record in one.stats.rounds
        for drafted, accepted in zip(record.drafted, record.accepted, strict=True)
        if drafted
    ]
    figures: dict[str, Any] = {"tokens/s": speed, "mean_acceptance_length": None, "draft_acceptance_rate": None}
    if drafts:
        total, accepted = (sum(part) for part in zip(*drafts, strict=True))
        deepest = max(record.depth for one in measured for record in one.stats.rounds)
        figures |= {
            "mean_acceptance_length": 1 + accepted / len(drafts),
            "draft_acceptance_rate": _over(accepted, total),
        }
        figures[PER_POSITION] = [sum(a > i for _, a in drafts) / len(drafts) for i in range(deepest)]
    return figures


def _over(a: float, b: float) -> float:
    """Return the quotient, or 0 where there was nothing to divide by."""
    return a / b if b else 0.0


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(f"{one:.2f}" for one in value) if isinstance(value, list) else f"{value:.2f}"
