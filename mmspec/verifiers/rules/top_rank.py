"""TopRank: a rule that accepts tokens among the likeliest."""

from __future__ import annotations

from torch import Tensor

from ...settings.arguments import whole_number
from .base import ChoiceRule, Judged


class TopRank(ChoiceRule):
    """Accepts a drafted token if it is among the `rank` tokens that the target finds likeliest (UGSD, arXiv
    2603.11397).

    The paper verifies greedily. Above temperature 0 the target's own draw is accepted too, and at `rank=1` only that
    draw [OUR], so that the exact rule is the limit at every temperature. Tokens of equal score share the better rank.

    NOT lossless, except at `rank=1`. Needs no training.

    Args:
        rank: last rank that is accepted (R), at least 1.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, rank: int = 3):
        self.rank = whole_number(self, rank=rank, lowest=1)

    @property
    def lossless(self) -> bool:
        """True at `rank=1`."""
        return self.rank == 1

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens of a rank up to `rank`."""
        matches = at.tokens == at.choice
        if self.lossless:
            return matches
        own = at.of_token(at.scores)
        better = (at.scores > own[..., None]).sum(-1)
        return matches | ((better < self.rank) & own.isfinite())  # what the pipeline forbids has no rank
