"""Typical: a rule that accepts tokens that are likely enough."""

from __future__ import annotations

import torch
from torch import Tensor

from ...settings.arguments import number
from .base import ChoiceRule, Judged


class Typical(ChoiceRule):
    """Accepts a drafted token if the target finds it likely enough: p(x) >= min(threshold, scale * exp(-H(p))).

    The threshold that falls with the entropy H of p, in nats, is that of typical acceptance (Medusa, arXiv 2401.10774,
    section 2.3.1). With `scale=None` it is the plain p(x) >= threshold of CTC-SSD (arXiv 2603.11243), where the least
    likely token of an utterance has to pass. The target's own choice is always accepted, which neither paper says
    [OUR]: so a threshold that nothing reaches is the exact rule. p is the target's distribution behind the logits
    pipeline; at temperature 0 that of its unscaled logits.

    NOT lossless, except at `threshold=1` with `scale=None`. Needs no training.

    Args:
        threshold: probability that always suffices (epsilon), above 0 and at most 1.
        scale: factor of the part that falls with the entropy (delta), above 0; None leaves that part out.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, threshold: float = 0.3, scale: float | None = 0.09):
        self.threshold = number(self, threshold=threshold, above=0, highest=1)
        self.scale = None if scale is None else number(self, scale=scale, above=0)

    @property
    def lossless(self) -> bool:
        """True at `threshold=1` with `scale=None`."""
        return self.threshold == 1 and self.scale is None

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens whose probability reaches the threshold."""
        matches = at.tokens == at.choice
        if self.lossless:
            return matches
        p = at.scores.softmax(-1)
        threshold = torch.full_like(p[..., 0], self.threshold)
        if self.scale is not None:
            threshold = threshold.minimum(self.scale * torch.special.entr(p).sum(-1).neg().exp())
        return matches | (at.of_token(p) >= threshold)
