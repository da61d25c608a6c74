"""The figures of a method on a task, and over tasks. Every name that vLLM has is used as vLLM does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..decoding.clock import PROMPT_PHASES
from ..decoding.stats import Stats
from .bootstrap import Estimate, Measured, Sample, Totals, ratio, spread, together
from .grouping import PLAIN, BundleGroup, MergedMethod


def speedup(totals: Totals) -> np.ndarray:
    """Return tokens per second over the baseline's, vision and prompt included: total tokens over total seconds."""
    return ratio(totals["tokens"] * totals["plain_seconds"], totals["seconds"] * totals["plain_tokens"])


def speedup_decode(totals: Totals) -> np.ndarray:
    """Return the speed-up without vision and prefill, and without the tokens that the prompt's pass gives."""
    plain = totals["decode_seconds"] * totals["plain_decode_tokens"]
    return ratio(totals["decode_tokens"] * totals["plain_decode_seconds"], plain, nothing=1.0)


def acceptance_length(totals: Totals) -> np.ndarray:
    """Return `Stats.mean_acceptance_length` over all requests."""
    return ratio(totals["emitted"], totals["steps"], nothing=1.0)


def accepted_tokens(totals: Totals) -> np.ndarray:
    """Return `Stats.mean_accepted_draft_tokens` over all requests."""
    return ratio(totals["accepted"], totals["steps"])


def drafted_nodes(totals: Totals) -> np.ndarray:
    """Return the drafted nodes per target pass."""
    return ratio(totals["drafted"], totals["known_steps"])


def tree_levels(totals: Totals) -> np.ndarray:
    """Return the levels of the tree per target pass."""
    return ratio(totals["levels"], totals["known_steps"])


def drafting(totals: Totals) -> np.ndarray:
    """Return the seconds of drafting per round over those of a pass of the baseline."""
    ours = totals["draft_seconds"] * totals["plain_passes"]
    return ratio(ours, totals["rounds"] * totals["plain_decode_seconds"])


def accuracy(totals: Totals) -> np.ndarray:
    """Return the points over the points that there were to get, by the metric of the task."""
    return ratio(totals["points"], totals["points_of"])


def likeness(totals: Totals) -> np.ndarray:
    """Return how like plain decoding's the answers are on average, from 0 to 1."""
    return ratio(totals["similarity"], totals["similarity_of"])


@dataclass(frozen=True)
class Exactness:
    """A comparison of the answers with plain decoding, token by token.

    Args:
        compared: requests for which the question makes sense.
        same: those of the compared with the same tokens.
        near_ties: those of the others that left plain decoding where the target's scores of both tokens were as good
            as equal (`bench` says by how much).
        changed: requests whose tokens or rounds were not the same in all repeats; of all, compared or not.
        first: the earliest divergence: `ids`, `row`, `position` (of the new tokens, from 0), `margin`, `tie`.
    """

    compared: int
    same: int
    near_ties: int
    changed: int
    first: dict[str, Any] | None


@dataclass(frozen=True)
class Means:
    """The figures that can be averaged over tasks; each task counts the same, however long its answers are.

    Args:
        speedup, speedup_decode: pooled within a task, see the functions of these names.
        speedup_geometric: geometric mean over tasks of the tasks' speed-ups; of one task or a pool, its speed-up.
        speedup_per_prompt, speedup_decode_per_prompt: mean over requests of the request's own ratio.
        speedup_per_prompt_geometric: geometric mean over requests of the request's own ratio.
        spread, spread_decode: lowest and highest pooled speed-up of a single repeat; None with fewer than two.
        mean_acceptance_length: tokens per target pass, with the target's own.
        mean_accepted_draft_tokens: drafted tokens among them. Of transformers' own drafting, which reports no rounds,
            it is what the passes, of which the prompt's is one, do not explain.
        nodes: mean number of drafted nodes per target pass; None where unknown.
        levels: mean depth of the trees, which is the passes of a drafter that grows them; None where unknown.
        draft_cost: seconds of drafting and observing per round over the baseline's decoding seconds per pass; None
            where unknown.
        accuracy: points that the answers got by the metric of their task over those that there were to get; the mean
            is over the tasks that have a metric. None without one, or where runs were judged by different ones.
        similarity: how like plain decoding's the text of a method that is not lossless is: 1 - edit distance in tokens
            over the longer length, the mean over prompts. None of lossless methods and of sampled text.
    """

    speedup: Estimate
    speedup_geometric: Estimate
    speedup_per_prompt: float
    speedup_per_prompt_geometric: float
    spread: tuple[float, float] | None
    speedup_decode: Estimate
    speedup_decode_per_prompt: float
    spread_decode: tuple[float, float] | None
    mean_acceptance_length: Estimate
    mean_accepted_draft_tokens: Estimate
    nodes: float | None
    levels: float | None
    draft_cost: float | None
    accuracy: Estimate | None
    similarity: Estimate | None


@dataclass(frozen=True)
class Figures(Means):
    """All figures of a method on one task, or pooled over several.

    Args:
        requests: answered by both the method and the baseline; a batch is one.
        prompts: rows of these requests.
        repeats: how often the request was measured that has fewest.
        tokens: new ones, of one repeat.
        tokens_per_second: speed of decoding; seconds per request are the median over its repeats.
        tokens_per_second_end_to_end: vision and prefill included.
        ttft: median over requests of the seconds before the first token: vision and prefill, the drafter's too.
        draft_acceptance_rate: accepted share of all drafted nodes, low by nature for trees; None where unknown.
        acceptance_rate_per_position: entry i: share of target passes that accepted more than i drafted tokens.
        conditional_acceptance_rate: entry i: the same among the passes that accepted i or more and had a tree deeper
            than i. Where an end token or the length limit cut a round, what was cut counts as not accepted.
        acceptance_histogram: accepted drafted tokens to the number of target passes.
        nodes_max: most nodes in any pass.
        budget: most nodes that the settings allow; None where unknown.
        round_seconds: seconds per round of the batch by phase, without the prompt's part.
        unaccounted: share of the wall time that no phase explains, over all repeats.
        exact: how the answers compare with plain decoding.
        metric: by which accuracy was measured; several names where runs or tasks have different ones.
        alike: for a method that is not lossless, prompts whose answer is plain decoding's all the same, and prompts
            compared; None where `similarity` is.
    """

    requests: int
    prompts: int
    repeats: int
    tokens: int
    tokens_per_second: float
    tokens_per_second_end_to_end: float
    ttft: float
    draft_acceptance_rate: float | None
    acceptance_rate_per_position: list[float]
    conditional_acceptance_rate: list[float]
    acceptance_histogram: dict[int, int]
    nodes_max: int | None
    budget: int | None
    round_seconds: dict[str, float]
    unaccounted: float
    exact: Exactness
    metric: str | None
    alike: tuple[int, int] | None


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        conditions: those of its group, by the names in `grouping.CONDITIONS`.
        side: the manifest's entry of the first bundle that has it.
        tasks: the group's tasks in order, None for one that the method has not answered.
        mean: the unweighted mean over tasks; None if one is missing, because it would not compare with the others'.
        overall: pooled over all that was answered; None if nothing was.
        behind: by how much the fastest method's mean speed-up is above this one's, with the interval of a paired
            bootstrap (see `difference`); None for the fastest, the baseline, and where the two cannot be compared.
        failed: why it has no figures, or of which bundles they are not; None if it never failed.
    """

    method: str
    baseline: bool
    conditions: dict[str, Any]
    side: dict[str, Any]
    tasks: dict[str, Figures | None]
    mean: Means | None
    overall: Figures | None
    behind: Estimate | None = None
    failed: str | None = None

    @property
    def control(self) -> bool:
        """True for plain decoding that was run again, to see what numerics alone change."""
        return self.side.get("control") is True

    @property
    def competes(self) -> bool:
        """True for a method that is compared: neither the baseline nor the control, with figures of every task."""
        return not self.baseline and not self.control and self.mean is not None

    @property
    def pooled_acceptance_length(self) -> Estimate | None:
        """Tokens per target pass over all rounds of all tasks together."""
        return None if self.overall is None else self.overall.mean_acceptance_length


def rows_of(group: BundleGroup) -> list[Row]:
    """Return the figures of every method: the baseline first, then the fastest, those without a mean last."""
    methods = {method.label: method for method in group.methods}
    rows = [_row(group, method) for method in group.methods]

    def place(row: Row) -> tuple[bool, bool, float]:
        return not row.baseline, not row.control, -(row.mean.speedup.value if row.mean else 0.0)

    rows = sorted(rows, key=place)
    fastest = next((row for row in rows if row.competes), None)
    if fastest is None:
        return rows
    first = methods[fastest.method]
    return [
        replace(row, behind=difference(first, methods[row.method], group.tasks))
        if row.competes and row is not fastest
        else row
        for row in rows
    ]


def difference(first: MergedMethod, second: MergedMethod, tasks: Sequence[str]) -> Estimate | None:
    """Return by how much the first method's mean speed-up over tasks is above the second's.

    The bootstrap is paired: every resample draws the same requests for both, of those that both have answered, so what
    makes a request fast or slow for both is no part of the interval. None without such a request of every task.
    """
    totals: tuple[list[Totals], list[Totals]] = [], []
    for task in tasks:
        shared = [key for key, answer in first.answers.items() if answer.task == task and key in second.answers]
        if not shared:
            return None
        for method, sums in zip((first, second), totals, strict=True):
            sums.append(Sample(task, [method.answers[key] for key in shared]).totals())
    return Estimate.of(_average(speedup, totals[0]) - _average(speedup, totals[1]))


def _row(group: BundleGroup, method: MergedMethod) -> Row:
    samples = {task: Sample(task, answers) for task in group.tasks if (answers := method.of_task(task))}
    side = dict(method.side)
    tasks = {task: _figures([samples[task]], side) if task in samples else None for task in group.tasks}
    mean = Means(**_means(list(samples.values()), _average)) if all(tasks.values()) and tasks else None
    overall = _figures(list(samples.values()), side) if samples else None
    failed = "; ".join(dict.fromkeys(method.failures)) or None
    return Row(method.label, method.baseline, group.conditions, side, tasks, mean, overall, failed=failed)


Combine = Callable[[Callable[[Totals], np.ndarray], Sequence[Totals]], np.ndarray]


def _average(figure: Callable[[Totals], np.ndarray], totals: Sequence[Totals]) -> np.ndarray:
    return np.mean(spread([figure(one) for one in totals]), axis=0)


def geometric_mean(values: Any, axis: int | None = None) -> Any:
    """Return the geometric mean of numbers that are not negative: 0 if one of them is."""
    with np.errstate(divide="ignore"):
        return np.exp(np.mean(np.log(values), axis=axis))


def _average_geometrically(figure: Callable[[Totals], np.ndarray], totals: Sequence[Totals]) -> np.ndarray:
    return geometric_mean(spread([figure(one) for one in totals]), axis=0)


def _pool(figure: Callable[[Totals], np.ndarray], totals: Sequence[Totals]) -> np.ndarray:
    return figure(together(totals))


def _means(samples: Sequence[Sample], combine: Combine) -> dict[str, Any]:
    """Return the fields of `Means` over one or more tasks, averaged or pooled."""
    totals = [sample.totals() for sample in samples]
    repeats = list(zip(*(sample.repeats() for sample in samples), strict=False))

    def of_repeats(figure: Callable[[Totals], np.ndarray]) -> tuple[float, float] | None:
        values = [float(combine(figure, one)[0]) for one in repeats]
        return (min(values), max(values)) if len(values) > 1 else None

    def per_prompt(
        figure: Callable[[Totals], np.ndarray], needed: str, mean: Callable[[Any], float] = np.mean
    ) -> float:
        each = [_each(figure, sample, needed) for sample in samples]
        if combine is _pool:
            each = [np.concatenate(each)]
        return float(mean([mean(one) if len(one) else 1.0 for one in each]))

    def if_known(figure: Callable[[Totals], np.ndarray], *needed: str) -> float | None:
        """Return a figure of the rounds, which not every engine reports."""
        parts = [together(totals)] if combine is _pool else totals
        known = all(one[name][0] > 0 for one in parts for name in needed)
        return float(combine(figure, totals)[0]) if known else None

    def where_judged(figure: Callable[[Totals], np.ndarray], needed: str) -> Estimate | None:
        """Return a figure of the tasks that have it."""
        found = [sums for sums in totals if sums[needed][0] > 0]
        return Estimate.of(combine(figure, found)) if found else None

    metrics = [sample.metrics for sample in samples] if combine is _average else [_metrics(samples)]
    one_each = all(len(names) < 2 for names in metrics)  # points of one metric do not add to those of another
    return {
        "accuracy": where_judged(accuracy, "points_of") if one_each else None,
        "similarity": where_judged(likeness, "similarity_of"),
        "nodes": if_known(drafted_nodes, "known_steps"),
        "levels": if_known(tree_levels, "known_steps"),
        "draft_cost": if_known(drafting, "rounds", "plain_passes", "plain_decode_seconds"),
        "speedup": Estimate.of(combine(speedup, totals)),
        "speedup_geometric": Estimate.of((_pool if combine is _pool else _average_geometrically)(speedup, totals)),
        "speedup_per_prompt": per_prompt(speedup, "tokens"),
        "speedup_per_prompt_geometric": per_prompt(speedup, "tokens", geometric_mean),
        "spread": of_repeats(speedup),
        "speedup_decode": Estimate.of(combine(speedup_decode, totals)),
        "speedup_decode_per_prompt": per_prompt(speedup_decode, "decode_tokens"),
        "spread_decode": of_repeats(speedup_decode),
        "mean_acceptance_length": Estimate.of(combine(acceptance_length, totals)),
        "mean_accepted_draft_tokens": Estimate.of(combine(accepted_tokens, totals)),
    }


def _each(figure: Callable[[Totals], np.ndarray], sample: Sample, needed: str) -> np.ndarray:
    """Return a figure per request, of the requests in which there was something to time."""
    columns = {name: sample.column(name) for name in sample.measured[0].columns}
    return figure(columns)[(columns[needed] > 0) & (columns[f"plain_{needed}"] > 0)]


def _figures(samples: Sequence[Sample], side: dict[str, Any]) -> Figures:
    """Return the figures of one task, or pooled over several."""
    measured = [one for sample in samples for one in sample.measured]
    sums = {name: float(sum(one.columns[name] for one in measured)) for name in measured[0].columns}
    stats = Stats([record for one in measured for record in one.stats.rounds])
    known = bool(stats.rounds)
    runs = [run.record for one in measured for run in one.answer.runs]
    wall = sum(record["wall"] for record in runs)
    return Figures(
        **_means(samples, _pool),
        requests=len(measured),
        prompts=sum(len(one.answer.ids) for one in measured),
        repeats=min(len(one.answer.runs) for one in measured),
        tokens=int(sums["tokens"]),
        tokens_per_second=sums["decode_tokens"] / sums["decode_seconds"] if sums["decode_seconds"] else 0.0,
        tokens_per_second_end_to_end=sums["tokens"] / sums["seconds"] if sums["seconds"] else 0.0,
        ttft=float(np.median([one.columns["ttft"] for one in measured])),
        draft_acceptance_rate=stats.draft_acceptance_rate if known else None,
        acceptance_rate_per_position=stats.acceptance_rate_per_position,
        conditional_acceptance_rate=conditional_acceptance_rate(stats),
        acceptance_histogram=stats.acceptance_histogram,
        nodes_max=max((max(record.drafted) for record in stats.rounds), default=None),
        budget=side.get("budget"),
        round_seconds=_round_seconds(measured),
        unaccounted=1 - sum(math.fsum(record["seconds"].values()) for record in runs) / wall if wall else 0.0,
        exact=_exactness(measured, side),
        metric=" ".join(sorted(_metrics(samples))) or None,
        alike=_alike(measured),
    )


def _metrics(samples: Sequence[Sample]) -> set[str]:
    return set().union(*(sample.metrics for sample in samples))


def _alike(measured: Sequence[Measured]) -> tuple[int, int] | None:
    found = [one for answer in measured for one in answer.answer.judged("similarity")]
    return (sum(one == 1 for one in found), len(found)) if found else None


def conditional_acceptance_rate(stats: Stats) -> list[float]:
    """Return per position the share that accepted the drafted token there, of the passes that could have."""
    reached: dict[int, int] = defaultdict(int)
    passed: dict[int, int] = defaultdict(int)
    for record in stats.rounds:
        for accepted, emitted in zip(record.accepted, record.emitted, strict=True):
            if emitted:
                for i in range(min(accepted + 1, record.depth)):
                    reached[i] += 1
                    passed[i] += accepted > i
    return [passed[i] / reached[i] for i in range(len(reached))]


def _round_seconds(measured: Sequence[Measured]) -> dict[str, float]:
    """Return the seconds of the mean round by phase; per request they are the median over repeats."""
    sums: dict[str, float] = defaultdict(float)
    rounds = 0
    for one in measured:
        phases: dict[str, list[float]] = defaultdict(list)
        for run in one.answer.runs:
            booked: dict[str, float] = defaultdict(float)
            for record in run.rounds:
                for phase, seconds in record["seconds"].items():
                    booked[phase] += seconds
            for phase, seconds in booked.items():
                phases[phase].append(seconds)
        for phase, seconds in phases.items():
            sums[phase] += float(np.median(seconds))
        rounds += len(one.stats.rounds)
    return {phase: seconds / rounds for phase, seconds in sums.items() if phase not in PROMPT_PHASES}


def _exactness(measured: Sequence[Measured], side: dict[str, Any]) -> Exactness:
    itself = side["label"] == PLAIN
    compared = [] if itself else [one.record for one in measured if one.record["same"] is not None]
    different = [record for record in compared if not record["same"]]
    found = [{"ids": record["ids"], **one} for record in different for one in record.get("divergence") or []]
    ties = sum(
        bool(record.get("divergence")) and all(one["tie"] for one in record["divergence"]) for record in different
    )
    changed = sum(any(run.record.get("repeatable") is False for run in one.answer.runs) for one in measured)
    first = min(found, key=lambda one: one["position"], default=None)
    return Exactness(len(compared), len(compared) - len(different), ties, changed, first)
