"""TopKMargin: a loss that keeps the target's token inside a tree with k children a node (FOVEA)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...lesson import Guess
from ...settings.arguments import number, whole_number
from .base import Loss, Truth
from .weights import Weight


class TopKMargin(Loss):
    """Soft hinge `softplus(margin - (z_x - z_k))` of the score of the target's likeliest token x to that of the k-th of
    all others (FOVEA, arXiv 2608.22883, with k = 6): it falls as x comes to be among the k likeliest, whichever of them
    is first.

    It is 0 where the drafter cannot propose x, or fewer than k others.

    Args:
        k: number of children of a node in the trees that are meant.
        margin: how far x is to be ahead of the k-th.
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for a k below 1, or a margin that is not positive.
    """

    def __init__(self, k: int = 6, margin: float = 0.5, weight: Weight = 1.0):
        super().__init__(weight)
        self.k = whole_number(self, lowest=1, k=k)
        self.margin = number(self, above=0, margin=margin)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        scores, best = guess.logits.float(), truth.logits.argmax(-1, keepdim=True)
        if scores.shape[-1] <= self.k:
            return torch.zeros_like(scores[:, 0])
        last = scores.scatter(-1, best, float("-inf")).topk(self.k, dim=-1).values[:, -1]
        counts = truth.inside & (last > float("-inf"))
        ahead = scores.gather(-1, best)[:, 0].masked_fill(~counts, 0.0) - last.masked_fill(~counts, 0.0)
        return functional.softplus(self.margin - ahead) * counts
