"""Synthetic acceptance: measures the cost of a method independently of the quality of its drafts."""

from __future__ import annotations

from torch import Tensor

from ..settings.arguments import number
from .rules import ChoiceRule, Judged
from .walk import TreeWalk


class Synthetic(TreeWalk):
    """Accepts each drafted token of the first-child path with a given probability, whatever the target says.

    NOT lossless: the text is the drafter's. The work per round is that of a real verifier.

    Args:
        acceptance_rate: probability that a drafted token is kept, given that its parent was; from 0 to 1.
    """

    def __init__(self, acceptance_rate: float = 0.8):
        self.acceptance_rate = number(self, acceptance_rate=acceptance_rate, lowest=0, highest=1)
        super().__init__(_Draws(self.acceptance_rate))


class _Draws(ChoiceRule):
    """Accepts first children with a given probability."""

    def __init__(self, rate: float):
        self.rate = rate

    @property
    def lossless(self) -> bool:
        return False

    def accept(self, at: Judged) -> Tensor:
        return at.tree.first_children & (at.uniform() < self.rate)
