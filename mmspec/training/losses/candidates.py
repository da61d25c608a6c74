"""Losses for drafters that choose each token among a few candidates: all other tokens have logits of -inf (LiLiCorr,
the selector of DFlash 2).

Without candidates, these losses are about the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...lesson import Guess
from ...settings.arguments import number
from .base import Loss, Truth, checked
from .chains import ChainLoss, Chains
from .weights import Weight


def among(guess: Guess, truth: Truth) -> Tensor:
    """Return where the written token is a candidate, `[n]`."""
    return (guess.logits.gather(-1, truth.tokens[:, None])[:, 0] > float("-inf")) & truth.written


class ForcedPrefix(ChainLoss):
    """Another loss, at the places that a right choice among candidates could get to: where the written token, and all
    written tokens before it, are candidates (LiLiCorr, arXiv 2608.20530).

    The loss of a place is divided by the number of places of the chain. Faithful: the places. Our own: what they are
    divided by, the paper's being the number of such places in a batch, and that the ends of answers count too.

    Args:
        loss: the loss of a token, without a weight of its own.
        weight: factor of this loss in the sum.
    """

    def __init__(self, loss: Loss, weight: Weight = 1.0):
        super().__init__(weight)
        self.loss = checked(self, loss)
        self.feature_layers = self.loss.feature_layers

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        forced = chains.each(lambda guess, truth: among(guess, truth).float(), fill=1.0).cumprod(1)
        places = chains.valid.sum(1, keepdim=True).clamp(min=1)
        return forced * chains.each(self.loss) / places

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return f"ForcedPrefix {self.loss.name}"


class CandidateMargin(Loss):
    """Hinge `max(0, margin - (z_x - z_best))` of the written token's score to that of the best other candidate
    (LiLiCorr, arXiv 2608.20530); 0 where the written token is no candidate, or the only one.

    Args:
        margin: how far the written token is to be ahead.
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for a margin that is not positive.
    """

    def __init__(self, margin: float = 2.0, weight: Weight = 1.0):
        super().__init__(weight)
        self.margin = number(self, above=0, margin=margin)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        scores, index, inside = guess.logits.float(), truth.tokens[:, None], among(guess, truth)
        others = scores.scatter(-1, index, float("-inf")).amax(-1)
        counts = inside & (others > float("-inf"))
        ahead = scores.gather(-1, index)[:, 0].masked_fill(~counts, 0.0) - others.masked_fill(~counts, 0.0)
        return (self.margin - ahead).clamp(min=0) * counts


class CandidatePenalty(Loss):
    """Expected `max(0, t_x - t_b)` of a candidate b that is drawn from the drafter's choice, with t the target's logits
    and x the written token (LiLiCorr, arXiv 2608.20530): tokens that the target refuses cost most, and those that it
    finds as good as the written one nothing. It is 0 where the written token is no candidate.

    Args:
        weight: factor of this loss in the sum.
    """

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        behind = (truth.logits.gather(-1, truth.tokens[:, None]) - truth.logits).clamp(min=0)
        chosen = guess.logits.float().softmax(-1)
        return torch.where(chosen > 0, chosen * behind, 0.0).sum(-1) * among(guess, truth)
