"""The two kinds of text that there are for a drafter: that which it can guess, and that which it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .confidence import Confidence

WEIGHT = 16.0
"""Guesses that what is believed beforehand of a kind weighs as much as."""

BEFOREHAND = (0.8, 0.3)
"""Chance of a guess, given that what it follows was right, in a text of the first and of the second kind, before
anything was seen."""

SHARE = (3.0, 4.0)
"""Answers of the first kind among so many, before anything was seen."""

ANSWERS_DECAY = 0.7
"""Factor by which an answer counts less with every later one, in the share of the first kind."""

DECAY = 0.995
"""Factor by which a round counts less with every later one, in the chances."""

HOLD = 0.9
"""Factor by which the odds of an answer shrink every round: a text may change."""

FARTHEST = 4.0
"""Largest log-odds of an answer."""

APART = 0.15
"""Difference between the chances at least."""


class TwoKinds:
    """Learns the chance of a guess in texts of both kinds, and how common the first kind is.

    A mixture of two geometric laws of the accepted length, learnt online: the log-odds of an answer change by

        accepted log(p1 / p2) + [a guess was refused] log((1 - p1) / (1 - p2))

    every round, and the round then counts for both kinds in the proportion of these odds. So a few guesses tell at the
    beginning of an answer of which kind it is, where a mean over rounds would take ten [OUR].

    Attributes:
        tries, hits: per kind, the guesses that were tried, and the accepted ones among them.
        answers: the number of answers of the first kind, and of all, older ones counting less.
        confidences: per kind, what the drafter's probabilities are worth.
    """

    def __init__(self) -> None:
        self.tries = [WEIGHT, WEIGHT]
        self.hits = [WEIGHT * chance for chance in BEFOREHAND]
        self.answers = list(SHARE)
        self.confidences = Confidence(), Confidence()

    @property
    def chances(self) -> tuple[float, float]:
        """The chance of a guess in a text of the first and of the second kind."""
        first, second = (hits / tries for hits, tries in zip(self.hits, self.tries, strict=True))
        first = min(max(first, second + APART, 0.02 + APART), 0.99)
        return first, min(max(second, 0.02), first - APART)

    @property
    def odds(self) -> float:
        """The log-odds that an answer is of the first kind, before its first round."""
        first, all_of_them = self.answers
        return math.log((first + 0.25) / (all_of_them - first + 0.25))

    def after(self, odds: float, drafted: int, accepted: int) -> float:
        """Return the log-odds of an answer after a round.

        Args:
            odds: those before it.
            drafted: length of its chain, or depth of its tree.
            accepted: how many guesses were right.
        """
        first, second = self.chances
        change = accepted * math.log(first / second)
        if accepted < drafted:
            change += math.log((1 - first) / (1 - second))
        return max(-FARTHEST, min(FARTHEST, HOLD * odds + change))

    def add(self, odds: Sequence[float], guesses: Sequence[Sequence[float]], accepted: Sequence[int]) -> None:
        """Learn from a round of chains.

        Args:
            odds: log-odds of every row after it.
            guesses: per row, the drafter's probability of each token given its parent.
            accepted: per row, how many guesses were right.
        """
        self.tries = [count * DECAY for count in self.tries]
        self.hits = [count * DECAY for count in self.hits]
        for confidence in self.confidences:
            confidence.fade()
        for row, probabilities, right in zip(odds, guesses, accepted, strict=True):
            first = chance_of(row)
            for kind, share in enumerate((first, 1 - first)):
                self.tries[kind] += share * min(right + 1, len(probabilities))
                self.hits[kind] += share * right
                self.confidences[kind].add(probabilities, right, share)

    def count(self, chance: float) -> None:
        """Learn that an answer is of the first kind with this chance."""
        first, all_of_them = self.answers
        self.answers = [ANSWERS_DECAY * first + chance, ANSWERS_DECAY * all_of_them + 1]


def chance_of(odds: float) -> float:
    """Return the chance that belongs to log-odds."""
    return 1 / (1 + math.exp(-odds))


def odds_of(chance: float) -> float:
    """Return the log-odds that belong to a chance, within the largest ones."""
    bound = chance_of(FARTHEST)
    chance = min(max(chance, 1 - bound), bound)
    return math.log(chance / (1 - chance))
