"""The figures of a method on a task, and over tasks, from the frames. Every name that vLLM has is used as vLLM does.

`mmspec.metrics` defines each figure and says which sums it is a ratio of. Intervals are a bootstrap over prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, takewhile
from typing import Any

import numpy as np
import pandas as pd

from ..decoding.clock import PROMPT_PHASES
from ..metrics import METRICS
from .grouping import PLAIN, BundleGroup

RESAMPLES, SEED, INTERVAL = 2000, 0, (2.5, 97.5)
SUMMED = sorted({column for metric in METRICS.values() for column in (*metric.over, *metric.under)})
"""Columns of the frame whose sums the figures are made of."""

Sums = Mapping[str, Any]
"""Column to its sums: of the sample and its resamples, of every repeat, or each request's own number."""

Average = Callable[..., Any]
"""A mean of numbers over an axis."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % confidence interval, None where a single prompt leaves nothing to resample."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: np.ndarray, resampled: bool) -> Estimate:
        """Make an estimate from the value of the sample itself, followed by those of its resamples."""
        ends = np.percentile(values[1:], INTERVAL).tolist() if resampled else ()
        return cls(float(values[0]), *ends)


class Figures(dict[str, Any]):
    """Figures by their names in code, which are attributes too: `figures.speedup.value`.

    Those that depend on the prompts are of type `Estimate`, a figure that is unknown is None.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no figure {name!r}") from None


@dataclass
class Sample:
    """The answers of one method to one task, or to several tasks that are pooled.

    Args:
        answers, passes: their rows of the frames of `mmspec.evaluation.frame`.
        parts: the samples that are pooled; none of a single task.
    """

    answers: pd.DataFrame
    passes: pd.DataFrame
    parts: Sequence[Sample] = field(default_factory=list)

    @classmethod
    def pool(cls, parts: Sequence[Sample]) -> Sample:
        """Pool the samples of several tasks."""
        answers, passes = (pd.concat([getattr(one, name) for one in parts]) for name in ("answers", "passes"))
        return cls(answers, passes, parts)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """A row per request, by its number: times are medians over its repeats, counts those of the first."""
        times = [name for name in self.answers if name == "ttft" or str(name).endswith("seconds")]
        medians = self.answers.groupby("answer", sort=False)[times].median()
        return self.answers[self.answers["repeat"] == 0].set_index("answer").assign(**medians)

    @cached_property
    def totals(self) -> Sums:
        """The sums over requests, `[1 + resamples]`: of the sample itself, then of each of its resamples."""
        if self.parts:
            return {name: sum(one.totals[name] for one in self.parts) for name in SUMMED}
        return resampled_sums(self.requests)

    @property
    def metrics(self) -> set[str]:
        """The metrics by which the answers were judged."""
        return {name for names in self.answers["metric"].dropna() for name in names.split()}

    @cached_property
    def repeats(self) -> pd.DataFrame:
        """The sums over requests of every single repeat that all of them have."""
        common = self.answers.groupby("answer")["repeat"].max().min()
        return self.answers[self.answers["repeat"] <= common].groupby("repeat")[SUMMED].sum()

    def informs(self, name: str) -> bool:
        """Return True if there is what a figure needs."""
        return METRICS[name].nothing is not None or all(self.totals[column][0] > 0 for column in METRICS[name].under)

    def varies(self, name: str) -> bool:
        """Return True if a figure has an interval: resamples differ as soon as one task has several prompts."""
        return any(one.informs(name) and one.requests["ids"].nunique() > 1 for one in self.parts or [self])


def resampled_sums(requests: pd.DataFrame) -> Sums:
    """Return the sums over the requests of one task, `[1 + resamples]`: first of the sample itself.

    The bootstrap draws prompts with replacement, the turns of a conversation together because they are not independent,
    and a method's time together with the baseline's. The draws depend on the task and on nothing else, so methods that
    answered the same prompts are resampled alike.
    """
    units, names = pd.factorize(requests["ids"])
    weights = draws(len(names), requests["task"].iat[0])[:, units]
    return dict(zip(SUMMED, (weights @ requests[SUMMED].to_numpy(float)).T, strict=True))


def draws(units: int, task: str) -> np.ndarray:
    """Return how often each unit is drawn `[1 + resamples, units]`: once in the sample itself."""
    random = np.random.default_rng([SEED, zlib.crc32(task.encode())])
    drawn = random.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)
    return np.concatenate([np.ones((1, units)), drawn])


def ratio(name: str, sums: Sums) -> np.ndarray:
    """Return a figure for every entry of sums, by the columns that `METRICS` names."""
    metric = METRICS[name]
    over, under = (np.prod([np.asarray(sums[one], float) for one in of], axis=0) for of in (metric.over, metric.under))
    return np.divide(over, under, out=np.full(len(under), metric.nothing or 0.0), where=under != 0)


def geometric_mean(values: Any, axis: int | None = None) -> Any:
    """Return the geometric mean of numbers that are not negative: 0 if one of them is, and exact of a single one."""
    if len(values) == 1:
        return np.mean(values, axis=axis)
    with np.errstate(divide="ignore"):
        return np.exp(np.mean(np.log(values), axis=axis))


def estimate(name: str, samples: Sequence[Sample], average: Average = np.mean) -> Estimate:
    """Return a figure averaged over tasks, each of which counts the same."""
    values = average([ratio(name, one.totals) for one in samples], axis=0)
    return Estimate.of(values, any(one.varies(name) for one in samples))


def means(samples: Sequence[Sample]) -> Figures:
    """Return the figures that can be averaged over tasks; of a single sample, or a pool, they are its own.

    - `speedup`, `speedup_decode`, `mean_acceptance_length`, `mean_accepted_draft_tokens`: pooled within a task;
    - `speedup_geometric`: the geometric mean over tasks;
    - `..._per_prompt`: mean over requests of the request's own ratio, and `..._per_prompt_geometric`;
    - `spread`, `spread_decode`: lowest and highest speed-up of a single repeat; None with fewer than two;
    - `speedup_projected`: None where no drafter took turns with its target, and where not all bundles say how long;
    - `nodes`, `levels`, `draft_cost`: None where the rounds are unknown;
    - `accuracy`: over the tasks that have a metric; None without one, or where runs were judged by different ones;
    - `similarity`: None of lossless methods and of sampled text.
    """

    def per_prompt(name: str, needed: str, average: Average = np.mean) -> float:
        values = []
        for one in samples:
            timed = one.requests[(one.requests[needed] > 0) & (one.requests[f"plain_{needed}"] > 0)]
            values.append(average(ratio(name, timed)) if len(timed) else 1.0)
        return float(average(values))

    def spread(name: str) -> tuple[float, float] | None:
        repeats = list(zip(*(ratio(name, one.repeats) for one in samples), strict=False))
        values = [float(np.mean(one)) for one in repeats]
        return (min(values), max(values)) if len(values) > 1 else None

    def if_known(name: str) -> float | None:
        """Return a figure of the rounds, which not every engine reports."""
        return estimate(name, samples).value if all(one.informs(name) for one in samples) else None

    def where_judged(name: str) -> Estimate | None:
        found = [one for one in samples if one.informs(name)]
        return estimate(name, found) if found else None

    # All or nothing: of an older bundle nobody knows what would have overlapped, and it would count as nothing.
    in_turn = pd.concat([one.answers["in_turn"].dropna() for one in samples])
    took_turns = len(in_turn) > 0 and bool(in_turn.all())
    one_metric = all(len(one.metrics) < 2 for one in samples)  # points of one do not add to those of another
    return Figures(
        speedup=estimate("speedup", samples),
        speedup_geometric=estimate("speedup", samples, geometric_mean),
        speedup_per_prompt=per_prompt("speedup", "tokens"),
        speedup_per_prompt_geometric=per_prompt("speedup", "tokens", geometric_mean),
        spread=spread("speedup"),
        speedup_decode=estimate("speedup_decode", samples),
        speedup_decode_per_prompt=per_prompt("speedup_decode", "decode_tokens"),
        spread_decode=spread("speedup_decode"),
        speedup_projected=estimate("speedup_projected", samples) if took_turns else None,
        mean_acceptance_length=estimate("mean_acceptance_length", samples),
        mean_accepted_draft_tokens=estimate("mean_accepted_draft_tokens", samples),
        nodes=if_known("nodes"),
        levels=if_known("levels"),
        draft_cost=if_known("draft_cost"),
        accuracy=where_judged("accuracy") if one_metric else None,
        similarity=where_judged("similarity"),
    )


def figures(sample: Sample, side: Mapping[str, Any]) -> Figures:
    """Return all figures of a method on one task, or pooled over several: those of `means`, and

    - `requests` that both the method and the baseline answered (a batch is one), `prompts` in them, `repeats` of the
      request that has fewest, `tokens` of one repeat;
    - `ttft`: median over requests; `unaccounted`: share of the wall time that no phase explains, over all repeats;
    - `conditional_acceptance_rate`: where an end token or the length limit cut a round, what was cut counts as not
      accepted;
    - `prompt_tokens`: median over requests; `prompt_seconds`: medians by phase of what comes before the first round;
      `cache_bytes`: medians of what the caches of the target and of the drafter take, None where nobody knows;
    - `round_seconds`: seconds per round of the batch by phase, without the prompt's part;
    - `exact`: how the answers compare with plain decoding, see `exactness`;
    - `metric`: by which accuracy was measured; several names where runs or tasks have different ones;
    - `alike`: prompts whose answer is plain decoding's all the same, and prompts compared, of a lossy method.
    """
    requests, answers, passes = sample.requests, sample.answers, sample.passes
    accepted, depth, known = passes["accepted"], passes["depth"], len(passes) > 0
    positions = range(depth.max()) if known else range(0)
    phases = requests.filter(regex="^round_.*_seconds$").sum(min_count=1).dropna() / requests["rounds"].sum()
    wall, drafted, compared = answers["seconds"].sum(), passes["drafted"].sum(), int(requests["similarity_of"].sum())
    return Figures(
        **means([sample]),
        requests=len(requests),
        prompts=int(requests["ids"].map(len).sum()),
        repeats=len(sample.repeats),
        tokens=int(requests["tokens"].sum()),
        tokens_per_second=float(ratio("tokens_per_second", sample.totals)[0]),
        tokens_per_second_end_to_end=float(ratio("tokens_per_second_end_to_end", sample.totals)[0]),
        ttft=float(requests["ttft"].median()),
        draft_acceptance_rate=(float(accepted.sum() / drafted) if drafted else 0.0) if known else None,
        acceptance_rate_per_position=[float((accepted > i).mean()) for i in positions],
        conditional_acceptance_rate=conditional_acceptance_rate(passes),
        acceptance_histogram=accepted.value_counts().sort_index().to_dict(),
        nodes_max=int(passes["drafted"].max()) if known else None,
        budget=side.get("budget"),
        prompt_tokens=float(requests["prompt_tokens"].median()),
        prompt_seconds={phase: float(requests[f"prompt_{phase}_seconds"].median()) for phase in PROMPT_PHASES},
        cache_bytes={
            who: None if (held := requests[f"{who}_bytes"].dropna()).empty else float(held.median())
            for who in ("target", "drafter")
        },
        decode_seconds=float(requests["decode_seconds"].median()),
        seconds=float(requests["seconds"].median()),
        round_seconds={str(name)[len("round_") : -len("_seconds")]: float(value) for name, value in phases.items()},
        unaccounted=float(answers["unbooked"].sum() / wall) if wall else 0.0,
        exact=exactness(sample, side),
        metric=" ".join(sorted(sample.metrics)) or None,
        alike=(int(requests["alike"].sum()), compared) if compared else None,
    )


def conditional_acceptance_rate(passes: pd.DataFrame) -> list[float]:
    """Return per position the share that accepted the drafted token there, of the passes that could have."""
    accepted, depth = passes["accepted"], passes["depth"]
    reached = (accepted[(accepted >= i) & (depth > i)] for i in count())
    return [float((found > i).mean()) for i, found in enumerate(takewhile(len, reached))]


def exactness(sample: Sample, side: Mapping[str, Any]) -> Figures:
    """Compare the answers with plain decoding, token by token.

    Returns:
        `compared`, prompts for which the question makes sense; `same`, those with the tokens of plain decoding in the
        same batch; `near_ties`, those of the others that left plain decoding where the target's scores of both tokens
        were as good as equal (`bench` says by how much); `rounding` and `faults`, those of the others of which that is
        known to be the cause; `single_compared` and `single_same`, the same with plain decoding of single prompts,
        plain decoding's own too; `changed` and `reshaped`, requests whose tokens, and whose rounds, were not the same
        in all repeats, compared or not; `first`, the earliest divergence: `ids`, `row`, `position` (of the new tokens,
        from 0), `margin`, `tie`;
        `causes`, what was found out about them, in words.
    """
    requests = sample.requests
    compared = requests[requests["same"].notna() & (side["label"] != PLAIN)]
    different = compared[~compared["same"].astype(bool)]
    first = min(different["divergence"].dropna(), key=lambda one: one["position"], default=None)
    return Figures(
        compared=int(compared["same_of"].sum()),
        same=int(compared["same_prompts"].sum()),
        near_ties=int(different["near_ties"].sum()),
        rounding=int(different["rounding"].sum()),
        faults=int(different["faults"].sum()),
        single_compared=int(requests["single_of"].sum()),
        single_same=int(requests["single_same"].sum()),
        changed=int(sample.answers.groupby("answer")["changed"].any().sum()),
        reshaped=int(sample.answers.groupby("answer")["reshaped"].any().sum()),
        first=first,
        causes=[text for found in different["causes"] for text in found],
    )


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        conditions: those of its group, by the names in `grouping.CONDITIONS`.
        side: the manifest's entry of the first bundle that has it.
        tasks: all figures by the group's tasks in order, None for one that the method has not answered.
        mean: the unweighted mean over tasks, see `means`, and `pooled_acceptance_length` (tokens per target pass over
            all rounds of all tasks together); None if a task is missing, because it would not compare with the others'.
        overall: all figures, pooled over all that was answered; None if nothing was.
        behind: by how much the fastest method's mean speed-up is above this one's, with the interval of a paired
            bootstrap (see `difference`); None for the fastest, the baseline, and where the two cannot be compared.
        failed: why it has no figures, or of which bundles they are not; None if it never failed.
    """

    method: str
    baseline: bool
    conditions: dict[str, Any]
    side: dict[str, Any]
    tasks: dict[str, Figures | None]
    mean: Figures | None
    overall: Figures | None
    behind: Estimate | None = None
    failed: str | None = None

    @property
    def control(self) -> bool:
        """True for plain decoding that was run again, to see what numerics alone change."""
        return self.side.get("control") is True

    @property
    def projected(self) -> bool:
        """True for a method with a projection: its drafter took turns with its target."""
        return self.mean is not None and self.mean.speedup_projected is not None

    @property
    def competes(self) -> bool:
        """True for a method that is compared: neither the baseline nor the control, with figures of every task."""
        return not self.baseline and not self.control and self.mean is not None


def samples_of(group: BundleGroup) -> list[dict[str, Sample]]:
    """Return the samples of every method, by task in the order of the group."""
    answers, passes = (
        dict(list(frame.groupby(["side", "task"], sort=False))) for frame in (group.answers, group.passes)
    )
    return [
        {
            task: Sample(answers[i, task], passes.get((i, task), group.passes[:0]))
            for task in group.tasks
            if (i, task) in answers
        }
        for i in range(len(group.methods))
    ]


def rows_of(group: BundleGroup) -> list[Row]:
    """Return the figures of every method: the baseline first, then the fastest, those without a mean last."""
    found = []
    for method, samples in zip(group.methods, samples_of(group), strict=True):
        side, parts = dict(method.side), list(samples.values())
        tasks = {task: figures(samples[task], side) if task in samples else None for task in group.tasks}
        overall = figures(Sample.pool(parts), side) if parts else None
        mean = None
        if overall is not None and all(tasks.values()):
            mean = Figures(**means(parts), pooled_acceptance_length=overall.mean_acceptance_length)
        failed = "; ".join(dict.fromkeys(method.failures)) or None
        row = Row(method.label, method.baseline, group.conditions, side, tasks, mean, overall, failed=failed)
        found.append((row, samples))

    def place(one: tuple[Row, dict[str, Sample]]) -> tuple[bool, bool, float]:
        row = one[0]
        return not row.baseline, not row.control, -(row.mean.speedup.value if row.mean else 0.0)

    found.sort(key=place)
    fastest = next((one for one in found if one[0].competes), None)
    return [
        replace(row, behind=difference(fastest[1], samples))
        if fastest and row.competes and row is not fastest[0]
        else row
        for row, samples in found
    ]


def difference(first: Mapping[str, Sample], second: Mapping[str, Sample]) -> Estimate | None:
    """Return by how much the first method's mean speed-up over tasks is above the second's.

    The bootstrap is paired: every resample draws the same requests for both, of those that both have answered, so what
    makes a request fast or slow for both is no part of the interval. None without such a request of every task.
    """
    values, several = [], False
    for task, sample in first.items():
        shared = sample.requests.index.intersection(second[task].requests.index, sort=False)
        if shared.empty:
            return None
        ours, theirs = (one.requests.loc[shared] for one in (sample, second[task]))
        values.append(ratio("speedup", resampled_sums(ours)) - ratio("speedup", resampled_sums(theirs)))
        several |= ours["ids"].nunique() > 1
    return Estimate.of(np.mean(values, axis=0), several)
