"""Bandits: they choose among arms by the tokens and the costs of earlier rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .settings.arguments import number

PATIENCE = 4
"""Rounds per arm that are waited for what a round of an arm has cost."""


class Bandit:
    """Chooses one of several arms before every round, and learns what the round gave and what it cost.

    A subclass implements `prefer`. Every arm is pulled once first, in order, and again later if nothing was heard of it
    meanwhile: its request may have ended before its costs were known. Nothing is drawn: the same observations give the
    same choices, and of equals the first is chosen.

    Attributes:
        tokens, costs, counts: per arm, sums over its rounds, and their number.
        pulls: per arm, how often it was chosen; rounds whose costs are not known yet are among them.
    """

    tokens: list[float] = []  # of a bandit that has not begun
    costs: list[float] = []
    counts: list[int] = []
    pulls: list[int] = []

    def begin(self, arms: int) -> None:
        """Prepare for so many arms, unless it knows them already: what was learnt stays."""
        if len(self.counts) != arms:
            self.rearrange([None] * arms)

    def rearrange(self, places: Sequence[int | None]) -> None:
        """Go on with other arms: per arm, the number that it had, or None for a new one."""
        self.tokens = [0.0 if place is None else self.tokens[place] for place in places]
        self.costs = [0.0 if place is None else self.costs[place] for place in places]
        self.counts, self.pulls = (
            [0 if place is None else numbers[place] for place in places] for numbers in (self.counts, self.pulls)
        )

    def choose(self) -> int:
        """Return the arm of the next round."""
        lost = sum(self.counts) // (PATIENCE * len(self.pulls))  # pulls of an unknown arm that will not be heard of
        fresh = [arm for arm, pulls in enumerate(self.pulls) if not self.counts[arm] and pulls <= lost]
        known = [arm for arm, count in enumerate(self.counts) if count]
        arm = fresh[0] if fresh else self.prefer(known) if known else self.pulls.index(min(self.pulls))
        self.pulls[arm] += 1
        return arm

    def withdraw(self, arm: int) -> None:
        """Take back the last choice of an arm, whose round has taught nothing."""
        self.pulls[arm] -= 1

    def prefer(self, known: list[int]) -> int:
        """Return one of the arms of which something is known, ascending."""
        raise NotImplementedError

    def learn(self, arm: int, tokens: float, cost: float) -> None:
        """Hear how many tokens a round of an arm gave, and what it cost, in any unit."""
        self.tokens[arm] += tokens
        self.costs[arm] += cost
        self.counts[arm] += 1

    def speed(self, arm: int) -> float:
        """Return the tokens per cost of an arm so far; 0 for one that is not known."""
        return self.tokens[arm] / self.costs[arm] if self.costs[arm] else 0.0

    def bound(self, arm: int, more: float) -> float:
        """Return the tokens per cost of an arm if its mean number of tokens were larger by so much."""
        count = self.counts[arm]
        return (self.tokens[arm] / count + more) / (self.costs[arm] / count) if self.costs[arm] else math.inf


class Unimodal(Bandit):
    """The selector of SP2EC (its released code, with KnapSpec's name for the unimodal one): arms in an order in which
    speed rises to one peak and falls behind it, such as drafts of growing length or growing numbers of skipped layers.

    The leader is the arm of largest speed so far. Every third time that an arm leads it is drafted; else the best of it
    and its two neighbours by `(mean tokens + beta r) / mean cost`, with
    `r = gamma / 2 * sqrt((1 + n) / n^2 * (1 + 2 ln(3 l^2 sqrt(1 + n))))` for n rounds of the arm and a leader that has
    led l times. So few rounds are spent on arms far from the peak, however many there are.

    Args:
        beta: weight of the uncertainty, from 0.
        gamma: its scale, from 0.

    Raises:
        MMSpecError: for a number below 0.
    """

    def __init__(self, beta: float = 0.3, gamma: float = 4.0):
        self.beta, self.gamma = number(self, lowest=0, beta=beta), number(self, lowest=0, gamma=gamma)

    led: list[int] = []

    def rearrange(self, places: Sequence[int | None]) -> None:
        """Go on with other arms, see `Bandit.rearrange`."""
        self.led = [0 if place is None else self.led[place] for place in places]
        super().rearrange(places)

    def prefer(self, known: list[int]) -> int:
        """Return the leader, or its neighbour of the largest bound."""
        leader = max(known, key=self.speed)
        self.led[leader] += 1
        led = self.led[leader]
        if led % 3 == 1:
            return leader
        return max(
            (arm for arm in (leader - 1, leader, leader + 1) if arm in known),
            key=lambda arm: self.bound(arm, self.beta * self._radius(self.counts[arm], led)),
        )

    def _radius(self, count: int, led: int) -> float:
        return radius(self.gamma, count, 3 * led**2)


class UpperConfidence(Bandit):
    """The global selector that SP2EC compares itself with: the arm of the largest upper bound, whatever the order.

    The bound is `(mean tokens + beta r) / mean cost`, as in `Unimodal` (ours: the release bounds tokens per second, in
    the scale of the machine), with `r = gamma / 2 * sqrt((1 + n) / n^2 * (1 + 2 ln(K t^2 sqrt(1 + n) / delta)))`
    for K arms and t rounds.

    Args:
        beta: weight of the uncertainty, from 0.
        gamma: its scale, from 0.
        delta: chance with which a bound may fail, above 0 and at most 1.

    Raises:
        MMSpecError: for a number out of range.
    """

    def __init__(self, beta: float = 0.3, gamma: float = 4.0, delta: float = 0.1):
        self.beta, self.gamma = number(self, lowest=0, beta=beta), number(self, lowest=0, gamma=gamma)
        self.delta = number(self, above=0, highest=1, delta=delta)

    def prefer(self, known: list[int]) -> int:
        """Return the arm of the largest bound."""
        time = sum(self.counts)

        def bound(arm: int) -> float:
            tries = len(self.counts) * time**2 / self.delta
            return self.bound(arm, self.beta * radius(self.gamma, self.counts[arm], tries))

        return max(known, key=bound)


def radius(gamma: float, count: int, tries: float) -> float:
    """Return `gamma / 2 * sqrt((1 + n) / n^2 * (1 + 2 ln(tries sqrt(1 + n))))`, how far a mean of n rounds may be off.

    Args:
        gamma: its scale.
        count: n.
        tries: what stands for the number of bounds that are to hold at once.
    """
    return gamma / 2 * math.sqrt((1 + count) / count**2 * (1 + 2 * math.log(tries * math.sqrt(1 + count))))
