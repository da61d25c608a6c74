"""Weights of losses that change in the course of a training."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import MMSpecError
from ...settings.arguments import is_number


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from one value to another in a straight line.

    Domino (arXiv 2605.29707) hands over from one cross-entropy to another in this way, DFly (arXiv 2607.25852) from one
    loss to another at once. The weight depends on the number of the step alone, so that a training that was interrupted
    goes on as it would have gone.

    Args:
        first: weight at the beginning.
        last: weight at the end.
        begin: share of the training's steps after which the weight begins to change, from 0 to 1.
        end: share of the training's steps after which it has its last value, from `begin` to 1; a switch if both are
            equal.

    Raises:
        MMSpecError: for shares that are not in order between 0 and 1, or values that are no numbers.
    """

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("first", "last", "begin", "end"):
            if not is_number(getattr(self, name)):
                raise MMSpecError(f"Ramp: {name}={getattr(self, name)!r} must be a number")
        if not 0 <= self.begin <= self.end <= 1:
            raise MMSpecError(
                f"Ramp: begin={self.begin} and end={self.end} are shares of a training: 0 <= begin <= end <= 1"
            )

    def at(self, progress: float) -> float:
        """Return the weight when a share `progress` of the steps is done."""
        if progress < self.begin:
            return self.first
        if progress >= self.end:
            return self.last
        return self.first + (self.last - self.first) * (progress - self.begin) / (self.end - self.begin)


Weight = float | Ramp
"""A factor of a loss: a number, or one that changes in the course of a training."""


def weight_at(weight: Weight, progress: float) -> float:
    """Return a weight when a share `progress` of a training's steps is done."""
    return weight.at(progress) if isinstance(weight, Ramp) else weight
