"""Predict seconds per round, speed-up, its limit, and the gain from each possible improvement, from costs and
acceptance.

With tau tokens per round, D seconds of drafting, V of scoring, O of everything else, and a plain token that takes
P = s + o (the target's pass over one token, and its overhead):

    T       = D + V + O                 seconds per round
    speedup = tau P / T
    limit   = tau P / (D + s)           no overhead, and a tree scored at the price of one token
    share   = speedup / limit = (D + s) / T

and the levers, each alone: no overhead, tau P / (D + V); scoring as cheap as a step, tau P / (D + s + O); free
drafting, tau P / (V + O); perfect acceptance to the depth d that was drafted, (1 + d) P / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .costs import Costs
from .shapes import Shape

LEVERS = ("no_overhead", "cheap_scoring", "free_drafting", "perfect_acceptance")


@dataclass(frozen=True)
class Prediction:
    """The mean round of a method. Times are in seconds.

    Args:
        tokens: tokens emitted per round and row, the target's own included (tau).
        draft, score, overhead: seconds per round.
        step: seconds of the target's pass over one token (per row).
        plain: seconds per token of plain decoding, overhead included.
        depth: number of levels that the method drafts; None if unknown.
        rows: number of rows of the batch.
    """

    tokens: float
    draft: float
    score: float
    overhead: float
    step: float
    plain: float
    depth: float | None = None
    rows: int = 1

    @property
    def seconds(self) -> float:
        """Seconds per round: T."""
        return self.draft + self.score + self.overhead

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all rows."""
        return self.rows * self.tokens / self.seconds

    @property
    def speedup(self) -> float:
        """Speed-up over plain decoding, without the prompt's part: `speedup_decode` of a bundle."""
        return self._if(self.seconds)

    @property
    def limit(self) -> float:
        """Speed-up without overhead, if the tree were scored at the price of one token."""
        return self._if(self.draft + self.step)

    @property
    def share(self) -> float:
        """Share of the limit that is reached: the part of a round that the limit allows, `(D + s) / T`."""
        return (self.draft + self.step) / self.seconds

    @property
    def levers(self) -> dict[str, float | None]:
        """Speed-up with one thing changed, for each lever; see the head of this file. None where unknown."""
        perfect = None if self.depth is None else (1 + self.depth) * self.plain / self.seconds
        values = (
            self._if(self.draft + self.score),
            self._if(self.draft + min(self.score, self.step) + self.overhead),
            self._if(self.score + self.overhead),
            perfect,
        )
        return dict(zip(LEVERS, values, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        names = ("seconds", "tokens_per_second", "limit", "share", "levers")
        return {**vars(self), "speedup_decode": self.speedup, **{name: getattr(self, name) for name in names}}

    def _if(self, seconds: float) -> float:
        """Return the speed-up if a round took this many seconds."""
        return self.tokens * self.plain / seconds


def draft_seconds(costs: Costs, shape: Shape, tokens: float) -> float:
    """Return the seconds of drafting: `first(tau) + sum_{i > 1} level(n_i)`, plus those for choosing among nodes.

    Args:
        costs: costs on this machine.
        shape: shape of the tree.
        tokens: tokens per round; the drafter reads those that the last round confirmed.
    """
    if shape.kind == "plain":
        return 0.0
    if costs.block is not None:
        return costs.block
    further = shape.passes - 1
    counts = {"static": further, "dynamic": further, "best_first": shape.nodes}
    extra = getattr(costs, shape.kind)(counts[shape.kind]) if shape.kind in counts else 0.0
    return costs.first(tokens) + sum(map(costs.level, shape.levels[1:])) + extra


def predict(costs: Costs, shape: Shape, accepted: float, rows: int = 1) -> Prediction:
    """Predict the mean round of a shape that has `accepted` drafted tokens accepted on average.

    Args:
        costs: costs on this machine.
        shape: shape of the tree.
        accepted: accepted drafted tokens per round, from `Acceptance` or from a measurement.
        rows: number of rows of the batch that the costs were measured with.
    """
    tokens = 1 + accepted
    overhead = costs.overhead(shape.nodes) + (costs.branching if shape.kind != "chain" else 0.0)
    return Prediction(
        tokens=tokens,
        draft=draft_seconds(costs, shape, tokens),
        score=costs.score(shape.nodes + 1),
        overhead=costs.plain_overhead if shape.kind == "plain" else overhead,
        step=costs.step,
        plain=costs.plain,
        depth=shape.deepest,
        rows=rows,
    )
