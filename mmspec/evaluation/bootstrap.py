"""Sums over requests with their uncertainty: what every figure of the table is a ratio of."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..decoding.clock import PROMPT_PHASES
from ..decoding.stats import Round, Stats
from .grouping import MergedAnswer, TimedAnswer

RESAMPLES, SEED, INTERVAL = 2000, 0, (2.5, 97.5)

Totals = dict[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % confidence interval, None where a single prompt leaves nothing to resample."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Make an estimate from the value of the sample itself, followed by those of its resamples."""
        if len(values) == 1:
            return cls(float(values[0]))
        low, high = np.percentile(values[1:], INTERVAL)
        return cls(float(values[0]), float(low), float(high))


class Measured:
    """The numbers of one answer: times are medians over its repeats, counts those of the first."""

    def __init__(self, answer: MergedAnswer):
        self.answer = answer
        self.record = answer.runs[0].record
        self.stats = stats_of(answer.runs[0])
        self.counts = self._counts()
        self.columns = self._times(answer.runs) | self.counts

    @staticmethod
    def _times(runs: Sequence[TimedAnswer]) -> dict[str, float]:
        times = [timings(run) for run in runs]
        return {name: float(np.median([time[name] for time in times])) for name in times[0]}

    def _counts(self) -> dict[str, float]:
        """Return the counts that sums are taken of.

        `steps` are target passes, per row as in `Stats.num_spec_steps`, `known_steps` those of which there is a record.

        transformers reports no rounds. Its passes verify drafts from the prompt's on and each adds one token of the
        target's own, so the other tokens were drafted; of a batch it only decodes without drafts.
        """
        record, plain = self.record, self.answer.runs[0].plain
        tokens, first = sum(record["new_tokens"]), sum(record["first_tokens"])
        if self.answer.engine == "transformers":
            steps = record["passes"] if len(record["new_tokens"]) == 1 else tokens
            emitted, accepted = tokens, tokens - steps
        else:
            steps, emitted, accepted = self.stats.num_spec_steps, tokens - first, self.stats.num_accepted_draft_tokens
        accuracy = [one for one in self.answer.judged("accuracy") if one is not None]
        alike = self.answer.judged("similarity")
        return {
            "points": sum(one["points"] for one in accuracy),
            "points_of": sum(one["of"] for one in accuracy),
            "similarity": sum(alike),
            "similarity_of": len(alike),
            "tokens": tokens,
            "decode_tokens": tokens - first,
            "plain_tokens": sum(plain["new_tokens"]),
            "plain_decode_tokens": sum(plain["new_tokens"]) - sum(plain["first_tokens"]),
            "plain_passes": plain["passes"] - (self.answer.plain_engine == "transformers"),
            "steps": steps,
            "emitted": emitted,
            "accepted": accepted,
            "drafted": self.stats.num_draft_tokens,
            "known_steps": self.stats.num_spec_steps,
            "levels": self.stats.mean_levels * self.stats.num_spec_steps,
            "rounds": len(self.stats.rounds),
        }


def stats_of(run: TimedAnswer) -> Stats:
    """Return the `Stats` of an answer as `generate` made them."""
    rounds = [Round(*(record[name] for name in ("drafted", "accepted", "emitted", "depth"))) for record in run.rounds]
    return Stats(rounds, run.record["prompt_tokens"], run.record["new_tokens"], dict(run.record["seconds"]))


def timings(run: TimedAnswer) -> dict[str, float]:
    """Return the seconds of one answer and of the baseline's beside it.

    The whole is the wall time, which is measured alike for every engine; decoding is what remains of it after vision
    and prefill.
    """
    seconds, plain = run.record["seconds"], run.plain["seconds"]
    prompt, plain_prompt = (sum(phases.get(phase, 0.0) for phase in PROMPT_PHASES) for phases in (seconds, plain))
    drafting = sum(record["seconds"].get(name, 0.0) for record in run.rounds for name in ("draft", "observe"))
    return {
        "seconds": run.record["wall"],
        "decode_seconds": run.record["wall"] - prompt,
        "plain_seconds": run.plain["wall"],
        "plain_decode_seconds": run.plain["wall"] - plain_prompt,
        "ttft": prompt,
        "draft_seconds": drafting,
    }


class Sample:
    """The answers of one method to one task, the resamples of them, and the metrics by which they were judged.

    The bootstrap draws prompts with replacement, the turns of a conversation together because they are not independent,
    and a method's time together with the baseline's. The draws depend on the task and on nothing else, so methods that
    answered the same prompts are resampled alike.
    """

    def __init__(self, task: str, answers: Sequence[MergedAnswer]):
        self.task = task
        self.measured = [Measured(answer) for answer in answers]
        self.metrics = set().union(*(answer.metrics for answer in answers))

    def totals(self) -> Totals:
        """Return the sum of every column, `[1 + resamples]`: first of the sample itself, all there is of one prompt."""
        units = list(dict.fromkeys(one.answer.ids for one in self.measured))
        place = {ids: i for i, ids in enumerate(units)}
        at = [place[one.answer.ids] for one in self.measured]
        weights = _weights(len(units), self.task)[:, at]
        return {name: weights @ self.column(name) for name in self.measured[0].columns}

    def column(self, name: str) -> np.ndarray:
        """Return one number per request."""
        return np.array([one.columns[name] for one in self.measured], dtype=float)

    def repeats(self) -> list[Totals]:
        """Return the sums over all requests, `[1]` each, of every single repeat that all of them have."""
        found = []
        for i in range(min(len(one.answer.runs) for one in self.measured)):
            times = [timings(one.answer.runs[i]) | one.counts for one in self.measured]
            found.append({name: np.array([sum(time[name] for time in times)]) for name in times[0]})
        return found


def _weights(units: int, task: str) -> np.ndarray:
    """Return how often each unit is drawn `[1 + resamples, units]`: once in the sample itself."""
    once = np.ones((1, units))
    if units == 1:
        return once
    random = np.random.default_rng([SEED, zlib.crc32(task.encode())])
    return np.concatenate([once, random.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)])


def together(totals: Sequence[Totals]) -> Totals:
    """Add the sums of several tasks, resample by resample. A task without resamples adds the same to each."""
    return {name: np.sum(spread([one[name] for one in totals]), axis=0) for name in totals[0]}


def spread(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Repeat those that have no resamples until all have as many."""
    length = max(len(one) for one in values)
    return [np.broadcast_to(one, length) if len(one) == 1 else one for one in values]


def ratio(a: np.ndarray, b: np.ndarray, nothing: float = 0.0) -> np.ndarray:
    """Return the quotients, and `nothing` where there was nothing to divide by."""
    return np.divide(a, b, out=np.full(np.shape(b), nothing, dtype=float), where=np.asarray(b) != 0)
