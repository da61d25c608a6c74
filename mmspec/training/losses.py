"""Losses: how far a guess is from what the target says, per predicted token. Recipes add them up with their own
weights.

Each is a small class: `loss(guess, truth)` returns `[n]` values, one per predicted token. `truth` is restricted to the
tokens that the drafter can propose. If the target's own choice is none of them, `truth.inside` is False and losses on
probabilities are zero, as in EAGLE-3 (arXiv 2503.01840).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MMSpecError
from ..lesson import Guess, Lesson
from ..models.states import LAST


class Truth(NamedTuple):
    """The target's predictions at the places of a guess.

    Args:
        logits: `[n, draft_vocab]` the target's logits over the drafter's vocabulary.
        tokens: `[n]` the token that the target wrote, as an index into the drafter's vocabulary (0 where it is not in
            it).
        inside: `[n]` True where the target's likeliest token is in the drafter's vocabulary.
        written: `[n]` True where the token that the target wrote is in the drafter's vocabulary.
        lesson: the lesson that the guess is about, for losses that read the target's states.
        places: `[n]` indices into the lesson's answer tokens.
    """

    logits: Tensor
    tokens: Tensor
    inside: Tensor
    written: Tensor
    lesson: Lesson
    places: Tensor


def truth_at(lesson: Lesson, places: Tensor, vocabulary: Tensor | None) -> Truth:
    """Return the truth at some places, over a draft vocabulary (None for the whole one)."""
    logits, tokens = lesson.logits[places].float(), lesson.tokens[places]
    if vocabulary is None:
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return Truth(logits, tokens, everywhere, everywhere, lesson, places)
    number = torch.full((logits.shape[-1],), -1, device=tokens.device)
    number[vocabulary] = torch.arange(len(vocabulary), device=tokens.device)
    inside, written = number[logits.argmax(-1)] >= 0, number[tokens] >= 0
    return Truth(logits[:, vocabulary], number[tokens].clamp(min=0), inside, written, lesson, places)


def log_q_of(guess: Guess) -> Tensor:
    """Return the drafter's log-probabilities, `[n, draft_vocab]`; 0 where a draft model's embedding table is smaller
    than its target's and ends before a token (logits of -inf), which no training can change."""
    log_q = guess.logits.float().log_softmax(-1)
    return log_q.masked_fill(log_q == float("-inf"), 0.0)


class Loss:
    """A term of an objective.

    Args:
        weight: factor of this loss in the sum.
    """

    feature_layers: tuple[int, ...] = ()
    """States of the target that this loss needs besides the last one."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return type(self).__name__


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
    """Kullback-Leibler divergence from the drafter's distribution to the target's: `sum p (log p - log q)`."""

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        log_p = truth.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q_of(guess))).sum(-1) * truth.inside


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

    def __init__(self, k: int = 10, weight: float = 1.0):
        super().__init__(weight)
        self.k = k

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

    def __init__(self, k: int = 10, weight: float = 1.0):
        super().__init__(weight)
        self.k = k

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        tokens = truth.logits.topk(min(self.k, truth.logits.shape[-1]), dim=-1).indices
        scores = guess.logits.float().gather(-1, tokens)
        left = scores.flip(-1).logcumsumexp(-1).flip(-1)
        return (left - scores).sum(-1) * truth.inside


class SmoothL1Features(Loss):
    """Smooth L1 distance of the guessed feature from a state of the target, mean over the hidden size.

    Args:
        weight: factor of this loss in the sum.
        layer: layer of the target whose state is compared; the last one by default (EAGLE's regression), or an
            intermediate one, by the number of the layer that the state enters.
    """

    guessed = "features"
    """Name of the field of a guess that is compared."""

    def __init__(self, weight: float = 1.0, layer: int = LAST):
        super().__init__(weight)
        self.layer = layer
        self.feature_layers = (layer,)

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        states = getattr(guess, self.guessed)
        if states is None:
            raise MMSpecError(f"{self.name}: this drafter guesses no {self.guessed}; leave this loss out of the recipe")
        wanted = truth.lesson.states(self.layer)[truth.places].float()
        return functional.smooth_l1_loss(states.float(), wanted, reduction="none").mean(-1)


class SmoothL1Intermediate(SmoothL1Features):
    """Smooth L1 distance of the drafter's first layer from a state of the target (DREAM, arXiv 2505.19201).

    Args:
        layer: layer of the target whose state is compared, by the number of the layer that the state enters;
            `scripts/choose_dream_layer.py` finds the one that the paper means.
        weight: factor of this loss in the sum.
    """

    guessed = "intermediate"

    def __init__(self, layer: int, weight: float = 1.0):
        super().__init__(weight, layer)
