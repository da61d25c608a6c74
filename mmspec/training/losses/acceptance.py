"""Losses on acceptance itself: the chance that a token which the drafter draws is accepted.

That chance is the overlap of the two distributions, `A = sum min(p, q) = 1 - TV(p, q)`, with p the target's and q the
drafter's distribution after the same tokens. Over a reduced vocabulary p is not renormalised, as it is not in decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import MMSpecError
from ...lesson import Guess
from ...settings.arguments import number
from .base import Loss, Truth, log_q_at
from .distributions import KullbackLeibler
from .weights import Weight

NOTHING = -1e4
"""A logarithm that stands for that of 0: finite, so that no gradient is undefined."""


def log_overlap(guess: Guess, truth: Truth, temperature: float = 1.0) -> Tensor:
    """Return the logarithm of `overlap`, `[n]`, which has a gradient also next to 0; `NOTHING` where that is 0."""
    least = torch.minimum(truth.log_p(temperature), log_q_at(guess, temperature))
    return least.masked_fill((least == float("-inf")).all(-1, keepdim=True), NOTHING).logsumexp(-1).clamp(max=0)


def overlap(guess: Guess, truth: Truth, temperature: float = 1.0) -> Tensor:
    """Return `sum min(p, q)`, `[n]`, the chance that a drawn token is accepted, at the temperature of a request.

    At temperature 0 it is the drafter's probability of the target's likeliest token.
    """
    return acceptance(guess, truth, temperature)[0]


def acceptance(guess: Guess, truth: Truth, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return `overlap`, and `min(1, q / p)` of the written tokens, `[n]` each.

    The second is the chance that the written token is proposed and accepted, in relation to the chance p that the
    target writes it; 0 for a token that the drafter cannot propose. Over answers that are draws of the target at this
    temperature its mean is the first. At temperature 0 both are the drafter's probability of the target's likeliest
    token.
    """
    log_p, log_q = truth.log_p(temperature), log_q_at(guess, temperature)
    accepted = torch.minimum(log_p.exp(), log_q.exp()).sum(-1)
    if temperature == 0:
        return accepted, accepted
    index = truth.tokens[:, None]
    ratio = (log_q.gather(-1, index) - log_p.gather(-1, index))[:, 0]
    return accepted, ratio.masked_fill(~truth.written, float("-inf")).clamp(max=0).exp()


def checked_temperature(owner: object, temperature: float) -> float:
    """Return the temperature of a request, of which 0 is greedy decoding.

    Raises:
        MMSpecError: if it is negative or no number.
    """
    return number(owner, lowest=0, temperature=temperature)


class TotalVariation(Loss):
    """Total variation `1 - sum min(p, q)`: the chance that a drawn token is refused.

    It is half of `ProbabilityDistance` with the whole vocabulary. With a reduced one, p is not renormalised here.

    Args:
        weight: factor of this loss in the sum.
        temperature: temperature of the requests that are drafted for; 0 is greedy decoding.

    Raises:
        MMSpecError: for a negative temperature.
    """

    def __init__(self, weight: Weight = 1.0, temperature: float = 1.0):
        super().__init__(weight)
        self.temperature = checked_temperature(self, temperature)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        return 1 - overlap(guess, truth, self.temperature)


class NegativeLogAcceptance(TotalVariation):
    """`-log sum min(p, q)`, the loss `nla` of LK (arXiv 2602.23881).

    Its gradient is that of total variation divided by the acceptance, so that it does not vanish where a drafter is
    never right. At temperature 0 it is cross-entropy on the target's likeliest token. Faithful: the formula. Our own:
    it is zero where a reduced vocabulary lacks the target's likeliest token, as the losses on distributions are.

    Args:
        weight: factor of this loss in the sum.
        temperature: temperature of the requests that are drafted for; 0 is greedy decoding.

    Raises:
        MMSpecError: for a negative temperature.
    """

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        return -log_overlap(guess, truth, self.temperature) * truth.inside


class HybridAcceptance(TotalVariation):
    """`l KL + (1 - l) TV` with `l = exp(-eta A)`, the loss `hybrid` of LK (arXiv 2602.23881).

    The divergence leads where the acceptance `A = sum min(p, q)` is small, total variation where it is large; no
    gradient goes through l. Faithful: the formula and eta. Our own: it is zero where a reduced vocabulary lacks the
    target's likeliest token.

    Args:
        weight: factor of this loss in the sum.
        eta: speed of the change from one to the other.
        temperature: temperature of the requests that are drafted for, above 0.

    Raises:
        MMSpecError: for a temperature that is not positive, or a negative eta.
    """

    def __init__(self, weight: Weight = 1.0, eta: float = 3.0, temperature: float = 1.0):
        super().__init__(weight, temperature)
        if temperature == 0:
            raise MMSpecError("HybridAcceptance: temperature=0 has no divergence; use NegativeLogAcceptance for it")
        self.eta = number(self, lowest=0, eta=eta)
        self.divergence = KullbackLeibler(temperature=temperature)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        accepted = overlap(guess, truth, self.temperature)
        share = (-self.eta * accepted.detach()).exp()
        divergence = self.divergence(guess, truth) / self.temperature**2
        return share * divergence + (1 - share) * (1 - accepted) * truth.inside


class Confidence(TotalVariation):
    """Binary cross-entropy of a drafter's own estimate of acceptance to `sum min(p, q)` (DSpark, arXiv 2607.05147).

    No gradient goes through the overlap, so that the loss teaches the estimate and not the guesses. Faithful: the loss
    and its aim.

    Args:
        weight: factor of this loss in the sum.
        temperature: temperature at which tokens are drawn; 0 is greedy decoding.

    Raises:
        MMSpecError: for a negative temperature, or a drafter without such an estimate.
    """

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        if guess.confidence is None:
            raise MMSpecError(f"{self.name}: this drafter has no confidence head; leave this loss out of the recipe")
        with torch.no_grad():
            accepted = overlap(guess, truth, self.temperature)
        return functional.binary_cross_entropy_with_logits(guess.confidence.float(), accepted, reduction="none")
