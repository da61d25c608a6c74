"""Arms: sets of sub-layers that may be skipped while drafting, and the choice among them by what they have brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log, sqrt

EXPLORATION = 0.3
"""SP2EC's beta: the weight of what is not known about an arm."""

SPREAD = 4.0
"""SP2EC's gamma: the scale of a round's tokens."""


@dataclass
class Arm:
    """A set of sub-layers that is skipped, and what rounds with it have brought.

    Args:
        skipped: their numbers, see `mmspec.models.skipping`.
        rounds: rounds so far.
        tokens: tokens emitted in them.
        cost: what these rounds have cost, in passes of the target over one token.
    """

    skipped: frozenset[int]
    rounds: int = 0
    tokens: float = 0.0
    cost: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per cost; 0 of an arm without rounds."""
        return self.tokens / self.cost if self.cost else 0.0

    def bound(self, leads: int) -> float:
        """Return an upper bound of the tokens per cost, once the leader has led so many rounds."""
        n = self.rounds
        if not n:
            return float("inf")
        radius = SPREAD / 2 * sqrt((1 + n) / n**2 * (1 + 2 * log(3 * max(leads, 1) ** 2 * sqrt(1 + n))))
        return (self.tokens / n + EXPLORATION * radius) / (self.cost / n)


@dataclass
class Arms:
    """The arms of a target, from the fewest skipped sub-layers to the most, shared by all requests.

    The choice is SP2EC's for rewards with a single peak: every arm once; then the leader, which is the arm of the most
    tokens per cost, in every third of the rounds that it leads, and otherwise the one of it and its two neighbours
    whose upper bound is largest.

    Args:
        arms: the arms found so far.
        complete: True once no further ones are to be found.
        rounds: rounds since the arms were begun.
    """

    arms: list[Arm] = field(default_factory=list)
    complete: bool = False
    rounds: int = 0
    _leads: dict[int, int] = field(default_factory=dict)

    def choose(self) -> Arm:
        """Return the arm of the next round."""
        for arm in self.arms:
            if not arm.rounds:
                return arm
        leader = max(range(len(self.arms)), key=lambda number: self.arms[number].rate)
        leads = self._leads[leader] = self._leads.get(leader, 0) + 1
        if leads % 3 == 1:
            return self.arms[leader]
        near = range(max(leader - 1, 0), min(leader + 2, len(self.arms)))
        return self.arms[max(near, key=lambda number: self.arms[number].bound(leads))]

    def learn(self, arm: Arm, tokens: float, cost: float) -> None:
        """Take note of a round with an arm."""
        arm.rounds, arm.tokens, arm.cost = arm.rounds + 1, arm.tokens + tokens, arm.cost + cost
        self.rounds += 1


def whole_layers(numbers: Iterable[int]) -> frozenset[int]:
    """Return the numbers of all sub-layers of some layers."""
    return frozenset(part for number in numbers for part in (2 * number, 2 * number + 1))


def least_important(importance: Sequence[float], layers: Sequence[int], protected: Iterable[int]) -> int | None:
    """Return the layer that changes the states least; None if only protected ones are left.

    Args:
        importance: one minus the cosine between what enters and what leaves a layer, of each that is left.
        layers: their numbers in the target.
        protected: numbers of layers that stay.
    """
    kept = set(protected)
    free = [(value, number) for value, number in zip(importance, layers, strict=True) if number not in kept]
    return min(free)[1] if free else None
