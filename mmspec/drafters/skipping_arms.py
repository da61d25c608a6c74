"""Arms: sets of sub-layers that may be skipped while drafting, and the choice among them by what they have brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..bandits import Unimodal


class Arms:
    """The sets of a target, from the fewest skipped sub-layers to the most, and the bandit that chooses among them; all
    requests share them.

    Args:
        sets: numbers of sub-layers, see `mmspec.models.skipping`; the sets found so far.
        complete: True once no further ones are to be found.

    Attributes:
        rounds: rounds since the sets were begun.
    """

    def __init__(self, sets: Sequence[frozenset[int]], complete: bool = False):
        self.sets, self.complete, self.rounds = [*sets], complete, 0
        self.bandit = Unimodal()
        self.bandit.begin(len(self.sets))

    @property
    def best(self) -> frozenset[int]:
        """The set of the most tokens per cost so far."""
        return self.sets[max(range(len(self.sets)), key=self.bandit.speed)]

    def choose(self) -> frozenset[int]:
        """Return the set of the next round."""
        return self.sets[self.bandit.choose()]

    def learn(self, skipped: frozenset[int], tokens: float, cost: float) -> None:
        """Take note of a round with a set: tokens emitted, and passes of the target over one token that it cost."""
        self.rounds += 1
        if skipped in self.sets:  # another request may have ended the search meanwhile
            self.bandit.learn(self.sets.index(skipped), tokens, cost)

    def withdraw(self, skipped: frozenset[int]) -> None:
        """Take back the choice of a set, with which nothing was drafted or nothing was judged."""
        if skipped in self.sets:
            self.bandit.withdraw(self.sets.index(skipped))

    def take(self, sets: Sequence[frozenset[int]]) -> None:
        """Go on with these sets; what is known of those among them stays known."""
        self.bandit.rearrange([self.sets.index(one) if one in self.sets else None for one in sets])
        self.sets = [*sets]


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
