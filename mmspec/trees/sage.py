"""SAGE: the drafter's uncertainty in one round gives the shape of the next tree."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..settings.arguments import number, whole_number
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth

Ranks = tuple[int, ...]  # a node's path: at every level, the rank of the child to take

INITIAL = 0.5
"""Alpha in the first round."""
LOWER_BELOW, RAISE_ABOVE = 2.0, 3.0
"""A mean of the accepted lengths below the first lowers the limit of the depth, one above the second raises it."""
STEP = 1
"""Levels by which the limit moves; the paper names no number."""
HAIR = 1e-6
"""The error of arithmetic that rounding forgives."""


@dataclass
class RowRecord:
    """The record of one row of the batch: accepted tokens of its last rounds, the limit of the depth that they suggest,
    the last round's P (None before the first), and True once it has finished, so that nothing is drafted any more."""

    lengths: deque[int]
    limit: int
    profile: list[float] | None = None
    finished: bool = False


@dataclass(eq=False)
class SageTree(TreeBuilder):
    """A template of child ranks, deep where the drafter was certain and wide where it was not (arXiv 2602.00523).

    Let P be the drafter's `top_k` likeliest probabilities after the root, renormalised. Its confidence
    `alpha = 1 - H(P) / log k` (from 0 to 1) gives a depth, `min_depth + alpha (max_depth - min_depth)`, and a width,
    `min_width + (1 - alpha)(max_width - min_width)`. A node has `width / l * (0.5 + p_parent)` children at level l, the
    root the plain width, and those are in the tree whose probability exceeds `threshold * l / depth`. The mean of the
    last accepted lengths moves a limit of the depth. The template that a round's P gives serves in the next round.
    Needs no training.

    The paper has no code. Where it is silent we choose: P is that of the root, and one position stands for all, so the
    r-th child has P's r-th probability at every level, and ranks from `top_k` on do not occur. Before the first round P
    is the geometric distribution of confidence `INITIAL`. Depths are rounded to the nearest whole number (halves go up)
    and widths down, but every node has one child at least. p_parent is the parent's probability given its own parent,
    while the probability of the whole path must exceed the threshold, at every node of it. Where there is no room for
    all nodes, shallow ones come first. The limit cuts the depth, begins at `max_depth` and moves by `STEP` between
    `min_depth` and `max_depth`, from the first round on. The target's own token counts in an accepted length, or a
    limit that has fallen to `RAISE_ABOVE` would never rise again. The paper's Lemma 4.3 (a lower bound of the best
    token's probability in terms of alpha) is false, so alpha is a heuristic here.

    Lossless with any verifier, drawn children included: a round's shape follows from earlier rounds, never from what is
    drawn in it. Ranks are then those of the draw, for which P is only a guess; the paper itself decodes greedily.

    Args:
        min_depth, max_depth: levels of drafted nodes, which are drafter passes (D_min, D_max).
        min_width, max_width: children of the root (W_min, W_max).
        max_nodes: drafted nodes at most, the root not counted (N_max; the paper does not say whether it counts).
        top_k: tokens in P (k).
        threshold: least probability of a path to the deepest level.
        window: rounds over which the mean of the accepted length is taken.

    Raises:
        MMSpecError: for a size or number that makes no sense.
    """

    min_depth: int = 3
    max_depth: int = 8
    min_width: int = 2
    max_width: int = 10
    max_nodes: int = 64
    top_k: int = 10
    threshold: float = 0.1
    window: int = 10
    _rows: list[RowRecord] | None = field(default=None, init=False, repr=False)
    _newest: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self, lowest=2, top_k=self.top_k)  # one token tells nothing about uncertainty
        number(self, lowest=0, highest=1, threshold=self.threshold)
        for low, high in (("min_depth", "max_depth"), ("min_width", "max_width")):
            least, most = getattr(self, low), getattr(self, high)
            if least > most:
                raise MMSpecError(f"SageTree: {low}={least} is larger than {high}={most}")

    def renew(self) -> None:
        """Forget all rows, for a new request."""
        self._rows = self._newest = None

    # The mapping, for one row.

    def depth_of(self, alpha: float) -> float:
        """Return D(alpha), before it is rounded and cut."""
        return self.min_depth + alpha * (self.max_depth - self.min_depth)

    def levels_of(self, alpha: float, limit: int | None = None) -> int:
        """Return the deepest level that a tree may have."""
        return min(self.max_depth if limit is None else limit, math.floor(self.depth_of(alpha) + 0.5 + HAIR))

    def width_of(self, alpha: float) -> float:
        """Return W(alpha)."""
        return self.min_width + (1 - alpha) * (self.max_width - self.min_width)

    def children_of(self, alpha: float, level: int, parent: float = 1.0) -> int:
        """Return the number of children, at level `level`, of a node whose probability is `parent`: W_l."""
        factor = 1.0 if level == 1 else (0.5 + parent) / level
        return max(1, math.floor(self.width_of(alpha) * factor + HAIR))

    def threshold_of(self, alpha: float, level: int) -> float:
        """Return theta_l."""
        return self.threshold * level / self.depth_of(alpha)

    def template(self, profile: Sequence[float], limit: int | None = None) -> list[Ranks]:
        """Return all nodes of a tree but the root, level by level and by rank.

        Args:
            profile: P, the largest probability first.
            limit: limit of the depth; `max_depth` if None.
        """
        alpha = confidence(profile)
        nodes: list[Ranks] = []
        newest: list[tuple[Ranks, float, float]] = [((), 1.0, 1.0)]  # with the node's probability and its path's
        for level in range(1, self.levels_of(alpha, limit) + 1):
            theta, room = self.threshold_of(alpha, level), self.max_nodes - len(nodes)
            newest = [
                ((*path, rank), p, cumulative * p)
                for path, parent, cumulative in newest
                for rank, p in enumerate(profile[: self.children_of(alpha, level, parent)])
                if cumulative * p > theta
            ][:room]
            nodes += [path for path, _, _ in newest]
        return nodes

    # The rounds, for all rows.

    def build(self, growth: Growth) -> DraftTree:
        """Grow the template of every row."""
        rows = self._rows or [self._new_row()] * len(growth.tokens)
        growth.expand(growth.root, self.top_k)
        best = growth.logits[:, 0].float().topk(min(self.top_k, growth.logits.shape[-1]), dim=-1).values
        # Of logits that are no distribution: no rank is likely, no node is drafted.
        self._newest = best.softmax(-1).nan_to_num(nan=0.0)
        start = geometric(INITIAL, best.shape[-1])
        templates = [
            [] if row.finished else self.template(row.profile or start, growth.limit_depth(row.limit)) for row in rows
        ]
        return self._grow(growth, templates)

    def _grow(self, growth: Growth, templates: list[list[Ranks]]) -> DraftTree:
        """Grow another template in each row, level by level; the root's children are there already."""
        device = growth.tokens.device
        first, end = 1, growth.tokens.shape[1]  # the nodes of the newest level
        numbers: list[dict[Ranks, int]] = [
            {path: first + path[0] for path in template if len(path) == 1} for template in templates
        ]
        deepest = max((len(template[-1]) for template in templates if template), default=0)
        for level in range(2, deepest + 1):
            below = [[path for path in template if len(path) == level] for template in templates]
            parents = [list(dict.fromkeys(path[:-1] for path in paths)) for paths in below]
            nodes = [[known[path] for path in row] for known, row in zip(numbers, parents, strict=True)]
            most = max(map(len, nodes))
            for own in nodes:  # all rows expand equally many: some also what they will not keep
                own += [node for node in range(first, end) if node not in own][: most - len(own)]
            growth.expand(torch.tensor(nodes, device=device), self.top_k)
            first, end = end, growth.tokens.shape[1]
            for known, paths, row in zip(numbers, below, parents, strict=True):
                start = {path: first + place * (end - first) // most for place, path in enumerate(row)}
                known.update({path: start[path[:-1]] + path[-1] for path in paths})
        kept = [[0, *known.values()] for known in numbers]
        most = max(map(len, kept))
        padded = torch.tensor([row + [-1] * (most - len(row)) for row in kept], device=device)
        return growth.keep(padded, None if most == min(map(len, kept)) else padded >= 0)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Record the accepted lengths and the P of every row."""
        assert self._newest is not None, "a tree was built before"
        self._rows = self._rows or [self._new_row() for _ in range(tree.batch_size)]
        for row, length, profile in zip(self._rows, verdict.lengths, self._newest.tolist(), strict=True):
            row.profile, row.finished = profile, length == 0
            if not row.finished and not verdict.settled:  # a length is accepted where the target was asked
                row.lengths.append(length)
                mean = sum(row.lengths) / len(row.lengths)
                limit = row.limit + STEP * ((mean > RAISE_ABOVE) - (mean < LOWER_BELOW))
                row.limit = max(self.min_depth, min(self.max_depth, limit))

    def _new_row(self) -> RowRecord:
        """Return the record of a row of which nothing is known."""
        return RowRecord(deque(maxlen=self.window), self.max_depth)


def confidence(profile: Sequence[float]) -> float:
    """Return alpha: 1 where one token has all the probability, 0 where all have the same."""
    entropy = -sum(p * math.log(p) for p in profile if p > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(max(2, len(profile)))))


@cache
def geometric(alpha: float, k: int) -> list[float]:
    """Return the geometric distribution over k ranks that has this confidence."""
    low, high = 0.0, 1.0
    for _ in range(60):
        ratio = (low + high) / 2
        weights = [ratio**rank for rank in range(k)]
        profile = [weight / sum(weights) for weight in weights]
        low, high = (ratio, high) if confidence(profile) > alpha else (low, ratio)
    return profile
