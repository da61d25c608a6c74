"""Mixture: a rule whose law is a mixture of target and drafter."""

from __future__ import annotations

from torch import Tensor

from ...settings.arguments import number
from .base import CoinRule, of_token


class Mixture(CoinRule):
    """Accepts x with probability min(1, 1 - weight + weight * p(x) / q(x)); the rule of transformers'
    `assistant_ensemble_weight`.

    After a refusal p becomes norm(max(p - q, 0)), which for any weight is also what is left of the mixture `weight * p
    + (1 - weight) * q`. So the law of a token after a chain is that mixture. At temperature 0 a guess that is not the
    argmax is kept with the probability `1 - weight`.

    NOT lossless, except at `weight=1`. Needs no training.

    Args:
        weight: share of the target, above 0 and at most 1.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, weight: float = 0.8):
        self.weight = number(self, weight=weight, above=0, highest=1)

    @property
    def lossless(self) -> bool:
        """True at `weight=1`."""
        return self.weight == 1

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """Accept with probability min(1, 1 - weight + weight * p / q)."""
        own = of_token(q, token)
        return u * own < self.weight * of_token(p, token) + (1 - self.weight) * own
