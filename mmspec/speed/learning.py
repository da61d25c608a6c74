"""Acceptance by level and rank, learnt from verdicts while decoding."""

from __future__ import annotations

from collections.abc import Sequence

from .acceptance import Acceptance


class AcceptanceTracker:
    """Discounted counts of accepted and refused guesses of the drafter.

    At every node of the accepted path that had children, each present rank is tried, and at most one hits. Older rounds
    count less, by `decay` a round: an exponential average. A chance is estimated as

        chance[d][r] = (hits[d][r] + w * pooled[r]) / (tries[d][r] + w),
        pooled[r]    = (sum_d hits[d][r] + w * prior[r]) / (sum_d tries[d][r] + w)

    so that a level about which little is known follows the others, and a rank about which little is known follows the
    prior. This estimate is our own.

    Args:
        prior: chances of the ranks, the first one first.
        levels: number of levels that are told apart.
        decay: factor by which older counts shrink every round; 1 forgets nothing.
        weight: w, the number of tries that the prior weighs as much as.
    """

    def __init__(self, prior: Sequence[float], levels: int, decay: float, weight: float):
        self.prior, self.levels, self.decay, self.weight = tuple(prior), levels, decay, weight
        self.tries = [[0.0] * len(self.prior) for _ in range(levels)]
        self.hits = [[0.0] * len(self.prior) for _ in range(levels)]

    def fade(self, rounds: int = 1) -> None:
        """Reduce the weight of older rounds, after so many new ones."""
        factor = self.decay**rounds
        for table in (self.tries, self.hits):
            for level in table:
                level[:] = [count * factor for count in level]

    def add(self, parents: Sequence[int], path: Sequence[int]) -> None:
        """Count one row of a round.

        Args:
            parents: parent of each node of the row's tree, -1 for the root.
            path: the accepted nodes, the root first.
        """
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        for level, node in enumerate(path[: self.levels]):
            kept = path[level + 1] if level + 1 < len(path) else None
            for rank, child in enumerate(children.get(node, [])[: len(self.prior)]):
                self.tries[level][rank] += 1
                self.hits[level][rank] += child == kept

    def add_chain(self, length: int, accepted: int) -> None:
        """Count one row of a round that drafted a chain, of which so many tokens were accepted."""
        for level in range(min(length, accepted + 1, self.levels)):
            self.tries[level][0] += 1
            self.hits[level][0] += level < accepted

    def acceptance(self) -> Acceptance:
        """Return the estimated acceptance."""
        weight, ranks = self.weight, range(len(self.prior))
        pooled = [
            (sum(level[r] for level in self.hits) + weight * self.prior[r])
            / (sum(level[r] for level in self.tries) + weight)
            for r in ranks
        ]
        return Acceptance(
            tuple(
                _distribution([(hits[r] + weight * pooled[r]) / (tries[r] + weight) for r in ranks])
                for hits, tries in zip(self.hits, self.tries, strict=True)
            )
        )


def _distribution(chances: list[float]) -> tuple[float, ...]:
    """Return chances that never rise with the rank and have a sum of 1 at most.

    Ranks are tried unequally often, so the sum of their shares may exceed 1. The first one is tried whenever anything
    is, so it keeps its share, and the others are scaled to the rest.
    """
    falling, least = [], 1.0
    for chance in chances:
        least = min(least, chance)
        falling.append(least)
    first, *others = falling
    left = min(1.0, (1 - first) / max(sum(others), 1e-12))
    return (first, *(chance * left for chance in others))
