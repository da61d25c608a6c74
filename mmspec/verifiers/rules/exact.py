"""Match and Rejection: the two exact rules; all others relax one of them."""

from __future__ import annotations

from torch import Tensor

from .base import ChoiceRule, CoinRule, Judged, of_token


class Match(ChoiceRule):
    """Accepts a drafted token where it equals the target's choice. Lossless.

    At temperature 0 this is greedy verification. Above it, the target's choice is a draw from p, and a token is kept
    with probability p(x), whatever the order of siblings: the law of EAGLE-2 (arXiv 2406.16858) for deterministic
    drafts.
    """

    @property
    def lossless(self) -> bool:
        """Always True."""
        return True

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens that equal the target's choice."""
        return at.tokens == at.choice


class Rejection(CoinRule):
    """Accepts x with probability min(1, p(x) / q(x)), and after a refusal replaces p by norm(max(p - q, 0)):
    speculative sampling (Leviathan et al., arXiv 2211.17192, algorithm 1). Lossless."""

    @property
    def lossless(self) -> bool:
        """Always True."""
        return True

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """Accept with probability min(1, p / q)."""
        return u * of_token(q, token) < of_token(p, token)
