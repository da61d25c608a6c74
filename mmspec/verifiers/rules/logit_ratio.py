"""LogitRatio: a rule that accepts tokens whose logit is close to the best."""

from __future__ import annotations

from torch import Tensor

from ...settings.arguments import number
from .base import ChoiceRule, Judged


class LogitRatio(ChoiceRule):
    """Accepts a drafted token if its logit is at least `ratio` times the best one, where that is positive: the
    tau-matching of HSD (arXiv 2602.12957), as its code has it: logit(x) / logit(argmax) >= ratio.

    Logits are those behind the logits pipeline. The original is greedy; above temperature 0 the target's own draw is
    accepted too [OUR]. (A survey describes the tolerance as an edit distance, which code and paper contradict.)

    NOT lossless, except at `ratio=1`. Needs no training.

    Args:
        ratio: smallest ratio (tau), above 0 and at most 1.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, ratio: float = 0.9):
        self.ratio = number(self, ratio=ratio, above=0, highest=1)

    @property
    def lossless(self) -> bool:
        """True at `ratio=1`."""
        return self.ratio == 1

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens whose logit is at least `ratio` times the best."""
        matches = at.tokens == at.choice
        if self.lossless:
            return matches
        best = at.scores.amax(-1)
        return matches | ((best > 0) & (at.of_token(at.scores) >= self.ratio * best))
