"""Distance: a rule that accepts tokens which stand for nearly the same number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import MMSpecError
from ...settings.arguments import whole_number
from .base import ChoiceRule, Judged

if TYPE_CHECKING:
    from ...target import Target


class Binned(ChoiceRule):
    """A rule that measures distances between tokens which stand for equal bins of a number.

    Args:
        bins: the first and the last token id that are bins; by default those of the target, see `TokenSpace`.
    """

    def __init__(self, bins: Sequence[int] | None):
        if bins is not None:
            first, last = bins if len(bins) == 2 else (0, -1)
            if not 0 <= first <= last:
                raise MMSpecError(
                    f"{type(self).__name__}: bins={tuple(bins)!r} must be the first and the last token id of the bins, "
                    "such as (31744, 31999)"
                )
            bins = (first, last)
        self.bins = bins

    def check(self, target: Target) -> None:
        """Refuse a target whose bins are unknown or outside the vocabulary."""
        if self.lossless:
            return
        name, bins = type(self).__name__, self.bins or target.space.bins
        if bins is None:
            raise MMSpecError(
                f"{name} needs to know which tokens of {type(target.model).__name__} are bins, because a distance "
                "between words has no meaning: give bins=(first, last), two token ids, or set target.space = "
                "TokenSpace(bins=...)"
            )
        if bins[1] >= target.vocab_size:
            raise MMSpecError(f"{name}: bins={bins!r} reach beyond the target's {target.vocab_size} tokens")

    def distances(self, at: Judged) -> Tensor:
        """Return the distance of each drafted token from the target's choice, `[batch, nodes]`, in bins; it is the size
        of the vocabulary where they differ and one of them is not a bin."""
        distance = (at.tokens - at.choice).abs()
        bins = self.bins or at.space.bins
        if bins is None:
            return distance
        first, last = bins
        binned = (at.tokens >= first) & (at.tokens <= last) & (at.choice >= first) & (at.choice <= last)
        return torch.where(binned | (distance == 0), distance, at.scores.shape[-1])


class Distance(Binned):
    """Accepts a drafted token if its bin is at most `radius` away from the bin that the target chose (Spec-VLA, arXiv
    2507.22424): |x - argmax p| <= radius.

    Policies of robots write numbers as tokens: OpenVLA has 256 equal bins for every dimension of an action, on the last
    256 token ids, so the distance of ids is the distance of bins. Tokens outside the bins must match exactly. Above
    temperature 0, where the original is not relaxed, the distance is to the token that the target drew [OUR].

    NOT lossless, except at `radius=0`. Needs no training.

    Args:
        radius: largest distance in bins (r), at least 0; the paper's is 9.
        bins: the first and the last token id that are bins, `(31744, 31999)` for OpenVLA; by default the target's.

    Raises:
        MMSpecError: for a value out of range, and for bins that a target's vocabulary does not have.
    """

    def __init__(self, radius: int = 9, bins: Sequence[int] | None = None):
        super().__init__(bins)
        self.radius = whole_number(self, radius=radius, lowest=0)

    @property
    def lossless(self) -> bool:
        """True at `radius=0`."""
        return self.radius == 0

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens within the radius."""
        return self.distances(at) <= self.radius
