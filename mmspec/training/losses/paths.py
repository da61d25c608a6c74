"""The chance that a whole drafted path is accepted, by paths that the drafter draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import MMSpecError
from ...lesson import Guess
from ...settings.arguments import whole_number
from .acceptance import checked_temperature
from .base import Truth, log_q_at, log_q_of
from .chains import ChainLoss, Chains
from .distributions import KullbackLeibler
from .weights import Weight

LEAST = -100.0
"""Least logarithm of the chance that a token is accepted."""


class SampledPaths(ChainLoss):
    """`-E[log kappa(z)]`, where kappa is the chance that a path z that the drafter draws is accepted to its end.

    Variational Speculative Decoding (arXiv 2602.05774) maximises `E_{z ~ q}[log kappa(z)] - KL(q | p)`. Its formulas
    are not public beyond that, nor are its weights of paths. Our own formulation, with `ReverseKullbackLeibler` beside
    it: `samples` paths from every root, with `log kappa = sum_i log min(1, p_i / q_i)`, and the gradient `(log kappa -
    b) dlog q(z) + dlog kappa`: REINFORCE with the mean of the other paths as the baseline b, which leaves the
    expectation as it is. The tokens of a path are drawn after the written ones, for only there p and q are known; so,
    given the answer, the places are independent, and without samples (null) the expectation itself is there, with less
    noise and no more work. `AcceptedLength` aims at the length of what is accepted instead.

    Over a reduced vocabulary p is not renormalised.

    Args:
        samples: number of paths from every root, at least 2; None for the expectation over all paths.
        temperature: temperature of the requests that are drafted for, above 0.
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for fewer samples, or a temperature that is not positive.
    """

    def __init__(self, samples: int | None = 8, temperature: float = 1.0, weight: Weight = 1.0):
        super().__init__(weight)
        self.samples = None if samples is None else whole_number(self, lowest=2, samples=samples)
        self.temperature = checked_temperature(self, temperature)
        if temperature == 0:
            raise MMSpecError("SampledPaths: temperature=0 draws nothing; use AcceptedLength for greedy decoding")

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        if self.samples is None:
            return -chains.each(self._expected)
        drawn = [self._drawn(guess, truth) for guess, truth in zip(chains.guesses, chains.truths, strict=True)]
        accepted, chosen = (
            torch.stack([chains.spread([step[part][:, path] for step in drawn]) for path in range(self.samples)])
            for part in range(2)
        )  # [paths, roots, steps]
        kappa = accepted.detach().sum(-1)
        ahead = (kappa - self.baseline(kappa))[..., None]
        return -(accepted + ahead * (chosen - chosen.detach())).mean(0)

    def baseline(self, kappa: Tensor) -> Tensor:
        """Return, for each of the `[paths, roots]` logarithms, the mean of those of the other paths of its root."""
        return (kappa.sum(0) - kappa) / (len(kappa) - 1)

    def _logs(self, guess: Guess, truth: Truth) -> tuple[Tensor, Tensor]:
        """Return `log min(1, p / q)` and log q of every token, `[n, draft_vocab]`; 0 for those that are never drawn."""
        log_q = log_q_of(guess, self.temperature)
        return (truth.log_p(self.temperature) - log_q).clamp(LEAST, 0.0), log_q

    def _expected(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the expectation of `log min(1, p / q)`, `[n]`."""
        return (log_q_at(guess, self.temperature).exp() * self._logs(guess, truth)[0]).sum(-1)

    def _drawn(self, guess: Guess, truth: Truth) -> tuple[Tensor, Tensor]:
        """Return `log min(1, p / q)` and log q of tokens that are drawn from q, `[n, samples]` each."""
        assert self.samples is not None
        with torch.no_grad():
            q = log_q_at(guess, self.temperature).exp()
            tokens = q.multinomial(self.samples, replacement=True)
        accepted, log_q = self._logs(guess, truth)
        return accepted.gather(-1, tokens), log_q.gather(-1, tokens)


class ReverseKullbackLeibler(KullbackLeibler):
    """Kullback-Leibler divergence from the target's distribution to the drafter's: `sum q (log q - log p)`.

    It forbids what the target does not say, where `KullbackLeibler` asks for all that it may say.

    Args:
        weight: factor of this loss in the sum.
        temperature: number T by which both logits are divided; the divergence is then multiplied by `T^2`.

    Raises:
        MMSpecError: for a temperature that is not positive.
    """

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        log_p, log_q = (truth.logits / self.temperature).log_softmax(-1), log_q_at(guess, self.temperature)
        ratio = log_q.masked_fill(log_q == float("-inf"), 0.0) - log_p
        return self.temperature**2 * (log_q.exp() * ratio).sum(-1) * truth.inside
