"""Losses on states: how far the drafter's stand-in for a state of the target is from that state."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import functional

from ...errors import MMSpecError
from ...lesson import Guess
from ...models.states import END, LAST
from ...settings.arguments import positive
from .base import Loss, Truth
from .weights import Weight


class SmoothL1Features(Loss):
    """Smooth L1 distance of the guessed feature from a state of the target, mean over the hidden size.

    Args:
        weight: factor of this loss in the sum.
        layer: layer of the target whose state is compared; the last one by default (EAGLE's regression), or an
            intermediate one, by the number of the layer that the state enters.
    """

    guessed = "features"
    """Name of the field of a guess that is compared."""

    def __init__(self, weight: Weight = 1.0, layer: int = LAST):
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


class CosineToLast(Loss):
    """Cosine distance of the guessed feature from the mean of the target's last states before the final norm, `1 -
    cos(z, mean(h_L, h_(L-1), ...))` (FastVLM, arXiv 2510.22641; that the mean fuses them is our own).

    Args:
        weight: factor of this loss in the sum.
        states: number of last states, the deepest of which enters the final norm.

    Raises:
        MMSpecError: for a number of states that is not a positive integer.
    """

    def __init__(self, weight: Weight = 1.0, states: int = 3):
        super().__init__(weight)
        positive(self, states=states)
        self.feature_layers = tuple(range(END, END - states, -1))

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        if guess.features is None:
            raise MMSpecError(f"{self.name}: this drafter guesses no features; leave this loss out of the recipe")
        fused = sum(truth.lesson.states(layer)[truth.places].float() for layer in self.feature_layers)
        return 1 - functional.cosine_similarity(guess.features.float(), cast(Tensor, fused), dim=-1)


class SmoothL1Intermediate(SmoothL1Features):
    """Smooth L1 distance of the drafter's first layer from a state of the target (DREAM, arXiv 2505.19201).

    Args:
        layer: layer of the target whose state is compared, by the number of the layer that the state enters;
            `scripts/choose_dream_layer.py` finds the one that the paper means.
        weight: factor of this loss in the sum.
    """

    guessed = "intermediate"

    def __init__(self, layer: int, weight: Weight = 1.0):
        super().__init__(weight, layer)
