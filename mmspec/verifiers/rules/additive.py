"""Additive: a rule that adds a constant to the probability of acceptance."""

from __future__ import annotations

from torch import Tensor

from ...settings.arguments import number
from .base import CoinRule, of_token


class Additive(CoinRule):
    """Accepts x with probability min(1, p(x) / q(x) + tolerance) (SSD, arXiv 2505.15380).

    After a refusal p becomes norm(max(p - q, 0)), as in exact sampling. The paper does not state its tolerance; ours is
    a default [OUR]. At temperature 0 a guess that is not the argmax is kept with the probability `tolerance`.

    NOT lossless, except at `tolerance=0`, where the law is the target's. Above it, the law of a token differs by at
    most `tolerance` in total variation. Needs no training.

    Args:
        tolerance: constant that is added (beta), from 0 to 1.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, tolerance: float = 0.1):
        self.tolerance = number(self, tolerance=tolerance, lowest=0, highest=1)

    @property
    def lossless(self) -> bool:
        """True at `tolerance=0`."""
        return self.tolerance == 0

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """Accept with probability min(1, p / q + tolerance)."""
        own = of_token(q, token)
        return u * own < of_token(p, token) + self.tolerance * own
