"""Acceptance by level and rank: the chance that the target writes the drafter's r-th guess, and the tokens that a tree
then yields."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import MMSpecError
from .shapes import Ranks


class RankNode(NamedTuple):
    """A candidate node of a rank tree: the probability that the accepted path reaches it, and its path."""

    probability: float
    path: Ranks


@dataclass(frozen=True)
class Acceptance:
    """Acceptance by level and rank.

    `chances[d][r]` is the probability that the target's token at level d + 1 is the drafter's r-th likeliest one, given
    that the accepted path got to level d. Levels after the last one have the chances of the last one. That acceptance
    depends on level and rank alone is the positional acceptance assumption of Sequoia (arXiv 2402.12374, definition
    3.1), made there for ranks and here for levels too: later levels read the drafter's own states and are right less
    often.

    Args:
        chances: one tuple per level, falling or not, each with a sum of 1 at most.

    Raises:
        MMSpecError: if there are no levels, or a tuple is no distribution over ranks.
    """

    chances: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.chances or not all(self.chances):
            raise MMSpecError("Acceptance needs the chances of one level at least, such as Acceptance(((0.8, 0.1),))")
        for level, ranks in enumerate(self.chances):
            if min(ranks) < 0 or sum(ranks) > 1 + 1e-6:
                raise MMSpecError(
                    f"Acceptance: the chances {list(ranks)} of level {level + 1} must be 0 or more and sum to 1 at most"
                )

    @classmethod
    def of_positions(cls, rates: Sequence[float]) -> Acceptance:
        """Make the acceptance of a chain from `acceptance_rate_per_position`: the shares of rounds that accepted at
        least i + 1 tokens."""
        before = (1.0, *rates)
        return cls(tuple((b / a if a else 0.0,) for a, b in zip(before, rates, strict=False)) or ((0.0,),))

    def chance(self, level: int, rank: int) -> float:
        """Return the chance of the rank-th child (from 0) at a level (from 1)."""
        ranks = self.chances[min(level, len(self.chances)) - 1]
        return ranks[rank] if rank < len(ranks) else 0.0

    def chain(self, length: int) -> float:
        """Return the mean number of accepted tokens of a chain: `sum_i prod_{j <= i} chances[j][0]`."""
        expected, reached = 0.0, 1.0
        for level in range(1, length + 1):
            reached *= self.chance(level, 0)
            expected += reached
        return expected

    def static(self, paths: Sequence[Ranks]) -> float:
        """Return the mean number of accepted tokens of a rank tree: the sum over its nodes of the chance to reach
        them."""
        expected = 0.0
        for path in paths:
            reached = 1.0
            for level, rank in enumerate(path, start=1):
                reached *= self.chance(level, rank)
            expected += reached
        return expected

    def likeliest(self, count: int, depth: int, width: int) -> list[RankNode]:
        """Return the `count` nodes that the accepted path most likely reaches, the likeliest first.

        A child is no likelier than its parent, so every prefix of the list is a tree, and it has the largest expected
        length of all rank trees of its size.

        Args:
            count: largest number of nodes.
            depth: largest number of levels.
            width: largest number of children per node.
        """
        nodes: list[RankNode] = []
        waiting: list[tuple[float, Ranks]] = [(-self.chance(1, 0), (0,))]
        while waiting and len(nodes) < count:
            negative, path = heapq.heappop(waiting)
            if negative == 0:
                break  # what is never reached is not worth a node
            nodes.append(RankNode(-negative, path))
            level, rank = len(path), path[-1]
            if level < depth:
                heapq.heappush(waiting, (negative * self.chance(level + 1, 0), (*path, 0)))
            if rank + 1 < width and (own := self.chance(level, rank)):
                # Ranks come in order, whatever their chances: a tree has no second child without the first.
                sibling = negative / own * min(own, self.chance(level, rank + 1))
                heapq.heappush(waiting, (sibling, (*path[:-1], rank + 1)))
        return nodes
