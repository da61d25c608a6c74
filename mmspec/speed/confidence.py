"""The worth of a drafter's probabilities: the share of its guesses that were right, by the probability that it gave
them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

EDGES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Probabilities between which guesses count as equally sure: narrow near 1, where chains are decided."""

DECAY = 0.99
"""Factor by which a guess counts less with every later round."""

WEIGHT = 4.0
"""Guesses that the drafter's own probability weighs as much as."""

PRIOR = 0.75
"""Chance of a guess that nothing is known of."""


class Confidence:
    """The chance that a guess is accepted, given that what it follows was: a reliability diagram that is learnt.

    `chance(q) = (right guesses + WEIGHT q) / (guesses + WEIGHT)` over the guesses about as sure as q [OUR]: a drafter
    that is too sure of itself is believed less and less.

    Attributes:
        usual: the chance of a guess of which no probability is known yet.
    """

    def __init__(self) -> None:
        self.tries = [0.0] * (len(EDGES) + 1)
        self.hits = [0.0] * (len(EDGES) + 1)

    def chance(self, probability: float) -> float:
        """Return the chance that a guess of this probability is accepted."""
        place = bisect(EDGES, probability)
        return (self.hits[place] + WEIGHT * probability) / (self.tries[place] + WEIGHT)

    @property
    def usual(self) -> float:
        """The share of all guesses that were accepted, given that what they follow was."""
        return (sum(self.hits) + WEIGHT * PRIOR) / (sum(self.tries) + WEIGHT)

    def fade(self) -> None:
        """Let older guesses count less, once per round."""
        self.tries = [count * DECAY for count in self.tries]
        self.hits = [count * DECAY for count in self.hits]

    def add(self, probabilities: Sequence[float], accepted: int, weight: float = 1.0) -> None:
        """Add the guesses of a chain that are known to be right or wrong: the accepted ones and the next.

        Args:
            probabilities: probability of each token of the chain given its parent.
            accepted: how many of them were accepted.
            weight: weight of these guesses.
        """
        for level, probability in enumerate(probabilities[: accepted + 1]):
            place = bisect(EDGES, probability)
            self.tries[place] += weight
            self.hits[place] += weight * (level < accepted)
