"""SAGE: the drafter's uncertainty in one round gives the shape of the next tree."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ..errors import MMSpecError, did_you_mean
from ..models.slots import pick
from ..outcome import Scores, Verdict
from ..settings.arguments import positive
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth

Ranks = tuple[int, ...]  # a node's path: at every level, the rank of the child to take
HAIR = 1e-6  # by which arithmetic may miss a whole number
ROUND = {
    "floor": lambda x: math.floor(x + HAIR),
    "nearest": lambda x: math.floor(x + 0.5 + HAIR),
    "ceil": lambda x: math.ceil(x - HAIR),
}
LOW, HIGH = ("min_depth", "min_width", "lowest_limit"), ("max_depth", "max_width", "highest_limit")
Rounding = Literal["floor", "nearest", "ceil"]
Kind = Literal["conditional", "cumulative"]


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

    Let P be the drafter's `top_k` likeliest probabilities at one position, renormalised. Its confidence
    `alpha = 1 - H(P) / log k` (from 0 to 1) gives a depth, `min_depth + alpha (max_depth - min_depth)`, and a width,
    `min_width + (1 - alpha)(max_width - min_width)`. A node has `width / l * (0.5 + p_parent)` children at level l, and
    those are in the tree whose probability exceeds `threshold * l / depth`. The mean of the last accepted lengths moves
    a limit of the depth. The template that a round's P gives serves in the next round. Needs no training.

    Ours, as the paper leaves it open and has no code: one position stands for all, so the r-th child has P's r-th
    probability at every level, and ranks from `top_k` on do not occur; before the first round P is the geometric
    distribution whose confidence is `initial`; and everything below that is given by a name. The paper's Lemma 4.3
    (a lower bound of the best token's probability in terms of alpha) is false, so alpha is a heuristic here.

    Lossless with any verifier, drawn children included: a round's shape follows from earlier rounds, or with
    `when="same_round"` from the distribution after the root, never from what is drawn in it. Ranks are then those of
    the draw, for which P is only a guess; the paper itself decodes greedily.

    Args:
        min_depth, max_depth: levels of drafted nodes, which are drafter passes (D_min, D_max).
        min_width, max_width: children of the root (W_min, W_max).
        max_nodes: drafted nodes at most, the root not counted (N_max; the paper does not say whether it counts).
        top_k: tokens in P (k).
        threshold: least probability of a node at the deepest level.
        initial: alpha in the first round.
        when: `next_round` (the paper), or `same_round`: P is what follows the root of the very tree to be built.
        source: whose P is used for the next round: that of the round's `root`; of the `tip`, the last node of the
            accepted path that had children; or the `mean` over the path's nodes that had some, rank by rank.
        round_depth, round_width: `floor`, `nearest` (halves go up) or `ceil`. Every node has one child at least. For
            widths `ceil` is the formula read literally, ranks counted from 0 being less than the width.
        first_level: the root's children are the `plain` width, or that times the `factor` with p_parent = 1.
        parent: p_parent is the `conditional` probability of the parent, or the `cumulative` one of its path.
        compare: what must exceed the threshold, the `cumulative` probability of the path or the node's `conditional`
            one; at every node of the path.
        order: which nodes come first when there is no room for all, by `breadth` or by `depth`.
        window: rounds over which the mean of the accepted length is taken.
        lower_below, raise_above: a mean below the first lowers the limit of the depth, one above the second raises it.
        step: by how many levels.
        lowest_limit, highest_limit: its bounds; `min_depth` and `max_depth` if None. It begins at the highest.
        limit: `cap` bounds the depth from above; `scale` takes the place of max_depth in its formula.
        full_window: wait for `window` rounds before the limit moves.
        count_bonus: whether the target's own token counts in an accepted length, as in the paper's tables. Else a limit
            that has fallen to `raise_above` never rises again.

    Raises:
        MMSpecError: for a size, number or name that makes no sense.
    """

    min_depth: int = 3
    max_depth: int = 8
    min_width: int = 2
    max_width: int = 10
    max_nodes: int = 64
    top_k: int = 10
    threshold: float = 0.1
    initial: float = 0.5
    when: Literal["next_round", "same_round"] = "next_round"
    source: Literal["root", "tip", "mean"] = "root"
    round_depth: Rounding = "nearest"
    round_width: Rounding = "floor"
    first_level: Literal["plain", "factor"] = "plain"
    parent: Kind = "conditional"
    compare: Kind = "cumulative"
    order: Literal["breadth", "depth"] = "breadth"
    window: int = 10
    lower_below: float = 2.0
    raise_above: float = 3.0
    step: int = 1
    lowest_limit: int | None = None
    highest_limit: int | None = None
    limit: Literal["cap", "scale"] = "cap"
    full_window: bool = False
    count_bonus: bool = True
    _rows: list[RowRecord] | None = field(default=None, init=False, repr=False)
    _profiles: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        self.lowest_limit = self._lowest
        self.highest_limit = self._highest
        positive(self, **{name: getattr(self, name) for name in ("max_nodes", "top_k", "window", "step", *LOW, *HIGH)})
        for low, high in (*zip(LOW, HIGH, strict=True), ("lower_below", "raise_above")):
            if getattr(self, low) > getattr(self, high):
                raise self._error(low, f"is larger than {high}={getattr(self, high)!r}")
        for name in ("threshold", "initial"):
            if not 0 <= getattr(self, name) <= 1:
                raise self._error(name, "must be from 0 to 1")
        if self.top_k < 2:
            raise self._error("top_k", "tells nothing about uncertainty; it must be 2 or more")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and (value := getattr(self, name)) not in get_args(hint):
                raise self._error(name, f"is unknown.{did_you_mean(str(value), get_args(hint))}")

    @property
    def _lowest(self) -> int:
        """The lowest limit of the depth."""
        return self.min_depth if self.lowest_limit is None else self.lowest_limit

    @property
    def _highest(self) -> int:
        """The highest limit of the depth."""
        return self.max_depth if self.highest_limit is None else self.highest_limit

    def _error(self, name: str, what: str) -> MMSpecError:
        """Return the error about a setting."""
        return MMSpecError(f"{type(self).__name__}: {name}={getattr(self, name)!r} {what}")

    def renew(self) -> None:
        """Forget all rows, for a new request."""
        self._rows, self._profiles = None, []

    # The mapping, for one row.

    def depth_of(self, alpha: float, limit: int | None = None) -> float:
        """Return D(alpha), before it is rounded and capped."""
        high = self.max_depth if self.limit == "cap" or limit is None else limit
        low = min(self.min_depth, high)
        return low + alpha * (high - low)

    def levels_of(self, alpha: float, limit: int | None = None) -> int:
        """Return the deepest level that a tree may have."""
        limit = self._highest if limit is None else limit
        return min(limit, ROUND[self.round_depth](self.depth_of(alpha, limit)))

    def width_of(self, alpha: float) -> float:
        """Return W(alpha)."""
        return self.min_width + (1 - alpha) * (self.max_width - self.min_width)

    def children_of(self, alpha: float, level: int, parent: float = 1.0) -> int:
        """Return the number of children, at level `level`, of a node whose probability is `parent`: W_l."""
        width = self.width_of(alpha)
        if level > 1 or self.first_level == "factor":
            width *= (0.5 + parent) / level
        return max(1, ROUND[self.round_width](width))

    def threshold_of(self, alpha: float, level: int, limit: int | None = None) -> float:
        """Return theta_l."""
        return self.threshold * level / self.depth_of(alpha, limit)

    def template(self, profile: Sequence[float], limit: int | None = None) -> list[Ranks]:
        """Return all nodes of a tree but the root, level by level and by rank.

        Args:
            profile: P, the largest probability first.
            limit: limit of the depth; the highest if None.
        """
        alpha = confidence(profile)
        limit = self._highest if limit is None else limit
        levels = self.levels_of(alpha, limit)
        nodes: list[Ranks] = []
        waiting: deque[tuple[Ranks, float, float]] = deque([((), 1.0, 1.0)])
        while waiting and len(nodes) < self.max_nodes:
            path, conditional, cumulative = waiting.popleft() if self.order == "breadth" else waiting.pop()
            if path:
                nodes.append(path)
            level = len(path) + 1
            if level > levels:
                continue
            count = self.children_of(alpha, level, conditional if self.parent == "conditional" else cumulative)
            theta = self.threshold_of(alpha, level, limit)
            children: list[tuple[Ranks, float, float]] = [
                ((*path, rank), p, cumulative * p)
                for rank, p in enumerate(profile[:count])
                if (p if self.compare == "conditional" else cumulative * p) > theta
            ]
            waiting.extend(children if self.order == "breadth" else reversed(children))
        return sorted(nodes, key=lambda path: (len(path), path))

    # The rounds, for all rows.

    def build(self, growth: Growth) -> DraftTree:
        """Grow the template of every row."""
        rows = self._rows or [self._new_row()] * len(growth.tokens)
        growth.expand(growth.root, self.top_k)
        self._profiles = [self._profile(growth)]
        if self.when == "same_round":
            profiles = self._profiles[0][:, 0].tolist()
        else:
            start = geometric(self.initial, self._profiles[0].shape[-1])
            profiles = [row.profile or start for row in rows]
        templates = [
            [] if row.finished else self.template(profile, growth.limit_depth(row.limit))
            for row, profile in zip(rows, profiles, strict=True)
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
            nodes = [[number[path] for path in row] for number, row in zip(numbers, parents, strict=True)]
            most = max(map(len, nodes))
            for own in nodes:  # all rows expand equally many: some also what they will not keep
                own += [node for node in range(first, end) if node not in own][: most - len(own)]
            growth.expand(torch.tensor(nodes, device=device), self.top_k)
            first, end = end, growth.tokens.shape[1]
            for number, paths, row in zip(numbers, below, parents, strict=True):
                start = {path: first + place * (end - first) // most for place, path in enumerate(row)}
                number.update({path: start[path[:-1]] + path[-1] for path in paths})
            if self.source != "root":
                self._profiles.append(self._profile(growth))
        kept = [[0, *number.values()] for number in numbers]
        most = max(map(len, kept))
        padded = torch.tensor([row + [-1] * (most - len(row)) for row in kept], device=device)
        return growth.keep(padded, None if most == min(map(len, kept)) else padded >= 0)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Record the accepted lengths and the P of every row."""
        self._rows = self._rows or [self._new_row() for _ in range(tree.batch_size)]
        profiles = self._chosen(tree, verdict).tolist()
        for row, length, profile in zip(self._rows, verdict.length.tolist(), profiles, strict=True):
            row.profile, row.finished = profile, length == 0
            if not row.finished and not verdict.settled:  # a length is accepted where the target was asked
                row.lengths.append(length - (not self.count_bonus))
                row.limit = self._moved(row.limit, row.lengths)

    def _moved(self, limit: int, lengths: Sequence[int]) -> int:
        """Return the limit of the depth after the last accepted lengths."""
        mean = sum(lengths) / len(lengths)
        waiting = self.full_window and len(lengths) < self.window
        step = 0 if waiting else self.step * ((mean > self.raise_above) - (mean < self.lower_below))
        return max(self._lowest, min(self._highest, limit + step))

    def _chosen(self, tree: DraftTree, verdict: Verdict) -> Tensor:
        """Return `[batch, k]` the P that counts, of each row."""
        profiles = torch.cat(self._profiles, dim=1)
        if self.source == "root":
            return profiles[:, 0]
        # Leaves may have been expanded too, to keep other rows company: that must not change what this row does.
        inner = torch.zeros_like(tree.tokens, dtype=torch.bool).scatter_(1, tree.parents[:, 1:], True)
        inner[:, 0] = True
        path = verdict.path.clamp(min=0)
        known = inner.gather(1, path) & (verdict.path >= 0)  # the first nodes of a path
        assert tree.expansion is not None, "the tree is one of Growth"
        entries = tree.expansion.gather(1, path).clamp(min=0)
        profiles = pick(profiles, entries)
        count = known.sum(-1).clamp(min=1)
        if self.source == "tip":
            return profiles[torch.arange(len(count), device=count.device), count - 1]
        return (profiles * known[..., None]).sum(1) / count[:, None]

    def _profile(self, growth: Growth) -> Tensor:
        """Return `[batch, nodes, k]` the P of each node of the last expansion."""
        logits = growth.logits.float()
        profile = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values.softmax(-1)
        return profile.nan_to_num(nan=0.0)  # of logits that are no distribution: no rank is likely, no node is drafted

    def _new_row(self) -> RowRecord:
        """Return the record of a row of which nothing is known."""
        return RowRecord(deque(maxlen=self.window), self._highest)


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
