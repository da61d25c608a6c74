"""Counts the same runs in the units of others, for a comparison with the tables of their papers.

Their loops emit the token of the prompt's pass in the first round and never emit the last bonus token, so that every
round emits what it accepted and one token before it. Ours emits the first token by itself and every bonus token with
its round. Both write the same text, and where the answer ends in a bonus token theirs needs a round more.
Their number of rounds is therefore that of new tokens less accepted ones. The seconds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import MMSpecError, did_you_mean
from .figures import Sample, ratio, samples_of
from .grouping import BundleGroup, conditions_shown
from .sheets import DASH, Sheet, Shown

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


Sums = dict[str, dict[str, Any]]
"""Figures by name, by task or `all`."""


class UnitTable(Shown):
    """The figures of all methods as others count them.

    Args:
        name: name of the others, a key of `EXPLAINED`.
        scopes: the tasks, and `all` for everything.
        rows: `(method, {scope: {figure: number, list of numbers, or None}})`.
    """

    def __init__(self, name: str, scopes: list[str], rows: list[tuple[str, Sums]]):
        self.scopes, self.rows = scopes, rows
        named = dict.fromkeys(figure for _, found in rows for figures in found.values() for figure in figures)
        single, listed = [one for one in named if one != PER_POSITION], [one for one in named if one == PER_POSITION]
        cells = []
        for method, found in rows:
            figures = [found.get(scope) for scope in scopes]
            shown = [" / ".join(_shown(one.get(name)) for name in single) if one else DASH for one in figures]
            cells.append([method, *shown, *(_shown(found.get(ALL, {}).get(name)) for name in listed)])
        sheet = Sheet(f"as {name} counts", ["method", *scopes, *listed], cells)
        super().__init__([sheet], [f"Each cell: {' / '.join(single)}.", *EXPLAINED[name]])


def in_units(groups: Sequence[BundleGroup], name: str) -> UnitTable:
    """Count the runs as others would.

    Args:
        groups: groups of bundles with a batch of 1; a batch has no time per prompt.
        name: `eagle`, `mmspec`, `vispec` or `vllm`.

    Raises:
        MMSpecError: for another name, or a larger batch.
    """
    explained(name)
    need_single_prompts(groups, f"units={name}")
    count = {"eagle": _eagle, "mmspec": _mmspec, "vispec": _vispec, "vllm": _vllm}[name]
    tasks = list(dict.fromkeys(task for group in groups for task in group.tasks))
    scopes = [*tasks, ALL] if len(tasks) > 1 else [ALL]
    rows = []
    for group in groups:
        where = f" [{conditions_shown(group.conditions, groups)}]" if len(groups) > 1 else ""
        for method, samples in zip(group.methods, samples_of(group), strict=True):
            pooled = {ALL: Sample.pool(list(samples.values()))} if samples else {}
            found = {scope: count(sample) for scope, sample in (samples | pooled).items() if scope in scopes}
            rows.append((f"{method.label}{where}", found))
    return UnitTable(name, scopes, rows)


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
            raise MMSpecError(
                f"{what} needs one prompt at a time, but {group.bundles[0].folder} has batch_size={batch}"
            )


def _lengths(requests: pd.DataFrame) -> tuple[float, float]:
    """Return tokens per round with and without the bonus; their rounds are new tokens less accepted ones."""
    tokens, accepted = requests["tokens"].sum(), requests["accepted"].sum()
    return _over(tokens, tokens - accepted), _over(accepted, tokens - accepted)


def _questions(requests: pd.DataFrame) -> float | None:
    """Return the ratio of two means over questions of tokens per second, the baseline's tokens counted anew."""
    if requests["retokenized"].isna().any():
        return None
    counted = requests.assign(plain=requests["retokenized"] - 1)
    sums = counted.groupby("ids")[["tokens", "seconds", "plain", "plain_seconds"]].sum()
    ours, theirs = (
        np.mean([_over(*pair) for pair in zip(sums[tokens], sums[seconds], strict=True)])
        for tokens, seconds in (("tokens", "seconds"), ("plain", "plain_seconds"))
    )
    return float(ours / theirs) if theirs else None


def _eagle(sample: Sample) -> dict[str, float | None]:
    with_bonus, without = _lengths(sample.requests)
    return {"speed-up": _questions(sample.requests), "tau": with_bonus, "accept_length": without}


def _vispec(sample: Sample) -> dict[str, float | None]:
    return {"speed-up": _questions(sample.requests), "accepted": _lengths(sample.requests)[1]}


def _mmspec(sample: Sample) -> dict[str, float | None]:
    with_bonus, without = _lengths(sample.requests)
    paired, pooled = ratio("speedup", sample.requests).mean(), ratio("speedup", sample.totals)[0]
    return {"paired": float(paired), "global": float(pooled), "MAT (paper)": without, "MAT (repository)": with_bonus}


def _vllm(sample: Sample) -> dict[str, Any]:
    drafts = sample.passes[sample.passes["drafted"] > 0]
    speed = float(ratio("tokens_per_second_end_to_end", sample.totals)[0])
    figures: dict[str, Any] = {"tokens/s": speed, "mean_acceptance_length": None, "draft_acceptance_rate": None}
    if len(drafts):
        figures["mean_acceptance_length"] = 1 + float(drafts["accepted"].mean())
        figures["draft_acceptance_rate"] = float(drafts["accepted"].sum() / drafts["drafted"].sum())
        deepest = sample.passes["depth"].max()
        figures[PER_POSITION] = [float((drafts["accepted"] > i).mean()) for i in range(deepest)]
    return figures


def _over(a: float, b: float) -> float:
    """Return the quotient, or 0 where there was nothing to divide by."""
    return float(a / b) if b else 0.0


def _shown(value: Any) -> str:
    if value is None:
        return DASH
    return " ".join(f"{one:.2f}" for one in value) if isinstance(value, list) else f"{value:.2f}"
