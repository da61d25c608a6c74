"""The two exact rules, of which all others are relaxations."""

from __future__ import annotations

from torch import Tensor

from .base import ChoiceRule, CoinRule, Judged, of_token


class Match(ChoiceRule):
    """A drafted token is kept where it is what the target chose. Lossless.

    At temperature 0 this is greedy verification. Above it, the target's choice is a draw from p, and a token is kept
    with probability p(x), whatever the order of siblings: the law of EAGLE-2 (arXiv 2406.16858) for deterministic
    drafts.
    """

    @property
    def lossless(self) -> bool:
        return True

    def accept(self, at: Judged) -> Tensor:
        return at.tokens == at.choice


class Rejection(CoinRule):
    """Speculative sampling (Leviathan et al., arXiv 2211.17192, algorithm 1): x is accepted with probability
    min(1, p(x) / q(x)), and after a refusal p becomes norm(max(p - q, 0)). Lossless."""

    @property
    def lossless(self) -> bool:
        return True

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        return u * of_token(q, token) < of_token(p, token)
