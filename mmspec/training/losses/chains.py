"""Losses that see whole chains: how long a draft lasts is a product over its places, not a sum.

A drafter's `unroll` yields step after step. `Chains` lays what a loss finds at the steps side by side, `[roots,
steps]`, for the same roots. Shorter chains, at the ends of answers, have invalid places, which count 1 in products and
0 in sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...lesson import Guess
from ...settings.arguments import number, one_of
from .acceptance import acceptance, checked_temperature, overlap
from .base import Loss, Term, Truth, checked
from .distributions import CrossEntropy
from .weights import Weight


@dataclass
class Chains:
    """The guesses of a drafter along all chains of a lesson.

    Args:
        guesses: guesses of every step.
        truths: truth about them.
        kept: `[n]` per step, which of them count.
    """

    guesses: Sequence[Guess]
    truths: Sequence[Truth]
    kept: Sequence[Tensor]

    @cached_property
    def roots(self) -> Tensor:
        """The roots that have a guess at some step, in order, `[roots]`."""
        return torch.cat([guess.roots for guess in self.guesses]).unique()

    @cached_property
    def valid(self) -> Tensor:
        """The places that count, `[roots, steps]`."""
        return self._laid(self.kept, False)

    def spread(self, values: Sequence[Tensor], fill: float = 0.0) -> Tensor:
        """Lay values of the steps, `[n]` each, side by side, `[roots, steps]`, with `fill` where a place is invalid."""
        return torch.where(self.valid, self._laid(values, fill), fill)

    def each(self, function: Callable[[Guess, Truth], Tensor], fill: float = 0.0) -> Tensor:
        """Apply a function of a guess and its truth, such as a `Loss`, to every step; return `[roots, steps]`."""
        values = [function(guess, truth) for guess, truth in zip(self.guesses, self.truths, strict=True)]
        return self.spread(values, fill)

    def _laid(self, values: Sequence[Tensor], fill: float) -> Tensor:
        columns = [
            value.new_full((len(self.roots),), fill).index_put((torch.searchsorted(self.roots, guess.roots),), value)
            for guess, value in zip(self.guesses, values, strict=True)
        ]
        return torch.stack(columns, dim=1)


class ChainLoss(Term):
    """A term that looks at all steps of a chain at once. An objective's `decay` does not change it.

    Args:
        weight: factor of this loss in the sum.
    """

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`, 0 where it is invalid."""
        raise NotImplementedError


class Decayed(ChainLoss):
    """Another loss, with less and less weight along the chain: the mean over it with weights `w_k = exp(-(k - 1) /
    gamma)`, k from 1 (DFlash, arXiv 2602.06036, with gamma 7, 5 and 4 for blocks of 16, 10 and 8; DSpark, arXiv
    2607.05147, with 4).

    Faithful: the weights. Our own: each chain is divided by its own sum of weights, so that the ends of answers count
    like their middles, however a batch is divided.

    Args:
        loss: the loss of a token, without a weight of its own; cross-entropy by default.
        gamma: number of places in which the weight falls to 1/e.
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for a gamma that is not positive.
    """

    def __init__(self, loss: Loss | None = None, gamma: float = 7.0, weight: Weight = 1.0):
        super().__init__(weight)
        self.gamma = number(self, above=0, gamma=gamma)
        self.loss = checked(self, loss or CrossEntropy())
        self.feature_layers = self.loss.feature_layers

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        places = torch.arange(chains.valid.shape[1], device=chains.valid.device)
        weights = torch.exp(-places / self.gamma) * chains.valid
        return weights * chains.each(self.loss) / weights.sum(1, keepdim=True).clamp(min=torch.finfo().tiny)

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return f"Decayed {self.loss.name}"


class DPace(ChainLoss):
    """Another loss, with weights by what a place is worth to the length of a draft (D-PACE, arXiv 2605.18810).

    With q_i the drafter's probability of the written token, smoothed to `(1 - alpha) q_i + alpha`, the chance to get
    through place j is `C_j = prod_{i <= j} q_i`. Place j weighs `w_j = sum_{m >= j} C_m`: all that is lost when it
    fails. No gradient goes through the weights. With cross-entropy, the gradient is that of the expected accepted
    length `-sum_m C_m`, but for the factor `dlog((1 - alpha) q_j + alpha) / dlog q_j` of each place.

    Faithful: the weights and alpha. Our own: what is weighed may be any loss of single tokens (DFly, arXiv 2607.25852,
    takes that of LK); the sum over a chain is not normalised, as in SpecForge, so that learning rates of releases that
    divide by the sum of weights do not transfer.

    Args:
        loss: the loss of a token, without a weight of its own; cross-entropy by default.
        alpha: smoothing, from 0 (the drafter's own probabilities) to 1 (all are taken for certain).
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for an alpha that is not between 0 and 1.
    """

    def __init__(self, loss: Loss | None = None, alpha: float = 0.5, weight: Weight = 1.0):
        super().__init__(weight)
        self.alpha = number(self, lowest=0, highest=1, alpha=alpha)
        self.loss = checked(self, loss or CrossEntropy())
        self.feature_layers = self.loss.feature_layers

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        return self.weights(chains) * chains.each(self.loss)

    @torch.no_grad()
    def weights(self, chains: Chains) -> Tensor:
        """Return the weight of every place, `[roots, steps]`, 0 where it is invalid."""

        def smoothed(guess: Guess, truth: Truth) -> Tensor:
            log_q = guess.logits.float().log_softmax(-1).gather(-1, truth.tokens[:, None])[:, 0]
            return (1 - self.alpha) * log_q.exp() * truth.written + self.alpha

        reached = chains.each(smoothed, fill=1.0).cumprod(1) * chains.valid
        return reached.flip(1).cumsum(1).flip(1) * chains.valid

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return f"DPace {self.loss.name}"


class EndToEndVariation(ChainLoss):
    """End-to-end total variation `1 - 1/L sum_j prod_{i <= j} A_i`, with `A = sum min(p, q)` (DFly, arXiv 2607.25852).

    It is the share of a chain of L drawn tokens that is not expected to be accepted, if acceptance at a place is what
    it is after the written tokens. There is hardly a gradient while A_1 is near 0: begin with another loss (`loss=dfly`
    does), or with a trained drafter.

    Faithful: the formula; L is the number of valid places of the chain. Our own: the temperature.

    Args:
        weight: factor of this loss in the sum.
        temperature: temperature of the requests that are drafted for; 0 is greedy decoding.

    Raises:
        MMSpecError: for a negative temperature.
    """

    def __init__(self, weight: Weight = 1.0, temperature: float = 1.0):
        super().__init__(weight)
        self.temperature = checked_temperature(self, temperature)

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        accepted = chains.each(lambda guess, truth: overlap(guess, truth, self.temperature), fill=1.0)
        return chains.valid * (1 - accepted.cumprod(1)) / chains.valid.sum(1, keepdim=True).clamp(min=1)


class AcceptedLength(ChainLoss):
    """Expected number of places of a chain that are not accepted: what decoding pays for, as a loss for fine-tuning.

    A chain that the drafter draws is accepted up to place j with the chance `R_j = E[prod_{i < j} r_i A_j]`, over
    answers x that the target draws, where `r_i = min(1, q(x_i) / p(x_i))`, and `A_j = sum min(p, q)` after `x_1 ..
    x_{j-1}`. That is exact, also where distributions depend on the tokens before: a draft is accepted up to a prefix
    with the chance `prod min(p, q)`, which is p's chance to write it times `prod r`. So this loss is the number of
    places minus the expected accepted length, and needs neither drafted paths nor passes of the target over them, as
    VSD (arXiv 2602.05774) does, whose aim this is.

    With `first_order` the chance to reach a place is a constant in the gradient: total variation at every place, with
    as much weight as drafts get there. Without, the gradient is the whole one of the expected length, which also
    favours tokens after which the drafter does well; it is noisier, because it is told by written tokens alone.

    Our own formulation: none of VSD's weights of drafted paths are here. Reduced vocabularies are exact too. Meant for
    a drafter that has learned before (`start=`); some `KullbackLeibler` beside it keeps the rest of the distribution in
    place.

    Args:
        weight: factor of this loss in the sum.
        reach: `written` for r of the written tokens, which is exact if the answers were drawn at this temperature;
            `overlap` for A in its place, for answers that were written in other ways.
        first_order: whether the chance to reach a place is a constant in the gradient.
        temperature: temperature of the requests that are drafted for; 0 is greedy decoding, where the drafter's
            probability of the target's likeliest token stands for both r and A.

    Raises:
        MMSpecError: for another `reach`, or a negative temperature.
    """

    REACHES = ("written", "overlap")
    """Ways to tell the chance that a draft gets to a place."""

    def __init__(
        self, weight: Weight = 1.0, reach: str = "written", first_order: bool = True, temperature: float = 1.0
    ):
        super().__init__(weight)
        one_of(self, self.REACHES, reach=reach)
        self.reach, self.first_order = reach, first_order
        self.temperature = checked_temperature(self, temperature)

    def __call__(self, chains: Chains) -> Tensor:
        """Return the loss of every place, `[roots, steps]`."""
        pairs = zip(chains.guesses, chains.truths, strict=True)
        found = [acceptance(guess, truth, self.temperature) for guess, truth in pairs]
        accepted = chains.spread([overlapping for overlapping, _ in found], fill=1.0)
        passed = chains.spread([through for _, through in found], fill=1.0) if self.reach == "written" else accepted
        reached = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1].cumprod(1)], dim=1)
        if self.first_order:
            reached = reached.detach()
        return chains.valid * (1 - reached * accepted)
