"""Losses on the drafter's distribution of a token: how far it is from the target's, or from the written token."""

from __future__ import annotations

from torch import Tensor

from ...lesson import Guess
from ...settings.arguments import number, whole_number
from .base import Loss, Truth, log_q_of
from .weights import Weight


class CrossEntropy(Loss):
    """Cross-entropy on the tokens that the target wrote."""

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        return -log_q_of(guess).gather(-1, truth.tokens[:, None])[:, 0] * truth.written


class SoftCrossEntropy(Loss):
    """Cross-entropy on the target's whole distribution: `-sum p log q` (EAGLE, arXiv 2401.15077, section 4.2; also in
    EAGLE-3)."""

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        return -(truth.logits.softmax(-1) * log_q_of(guess)).sum(-1) * truth.inside


class KullbackLeibler(Loss):
    """Kullback-Leibler divergence from the drafter's distribution to the target's: `sum p (log p - log q)`.

    Args:
        weight: factor of this loss in the sum.
        temperature: number T by which both logits are divided. The divergence is then multiplied by `T^2`, so that
            gradients keep their size (distillation of Hinton et al., arXiv 1503.02531; JetSpec, arXiv 2606.18394).

    Raises:
        MMSpecError: for a temperature that is not positive.
    """

    def __init__(self, weight: Weight = 1.0, temperature: float = 1.0):
        super().__init__(weight)
        self.temperature = number(self, above=0, temperature=temperature)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        log_p = (truth.logits / self.temperature).log_softmax(-1)
        log_q = log_q_of(guess, self.temperature)
        return self.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1) * truth.inside


class ProbabilityDistance(Loss):
    """L1 distance `sum |p - q|`, twice the chance that a drawn draft token is refused (ViSpec, arXiv 2509.15235)."""

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        q = guess.logits.float().softmax(-1)
        return (truth.logits.softmax(-1) - q).abs().sum(-1) * truth.inside


class TopKCrossEntropy(Loss):
    """Soft cross-entropy on the target's k likeliest tokens alone (HASS, arXiv 2408.15766; HiViS stage 2).

    Args:
        k: number of tokens.
        weight: factor of this loss in the sum.
    """

    def __init__(self, k: int = 10, weight: Weight = 1.0):
        super().__init__(weight)
        self.k = whole_number(self, lowest=1, k=k)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        p, tokens = truth.logits.softmax(-1).topk(min(self.k, truth.logits.shape[-1]), dim=-1)
        return -(p * log_q_of(guess).gather(-1, tokens)).sum(-1) * truth.inside


class ListMLE(Loss):
    """Negative log-likelihood of the target's order of its k likeliest tokens, by the drafter's scores (ViSpec, arXiv
    2509.15235).

    The order is drawn by the model of Plackett and Luce: item by item, each from those of the k that are left.

    Args:
        k: length of the list.
        weight: factor of this loss in the sum.
    """

    def __init__(self, k: int = 10, weight: Weight = 1.0):
        super().__init__(weight)
        self.k = whole_number(self, lowest=1, k=k)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        tokens = truth.logits.topk(min(self.k, truth.logits.shape[-1]), dim=-1).indices
        scores = guess.logits.float().gather(-1, tokens)
        left = scores.flip(-1).logcumsumexp(-1).flip(-1)
        return (left - scores).sum(-1) * truth.inside
