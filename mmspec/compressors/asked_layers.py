"""Compressors that go by the attention of all of the target's layers, or of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MMSpecError, shown
from ..models.attention import LayerLook, layers_of_attention
from ..settings.arguments import whole_number
from .guided import MostAttended
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target


class InLayers(MostAttended):
    """Keeps the tokens that receive the most attention in some layers of the target, the mean over them.

    Args:
        layers: numbers of the layers; None for all. Their entering states are kept while the prompt is read.
        options: see `MostAttended`.

    Raises:
        MMSpecError: for values out of range; in use, for layers that the target does not have.
    """

    def __init__(self, layers: Sequence[int] | None, **options) -> None:
        super().__init__(**options)
        if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence) or not layers):
            name = type(self).__name__
            raise MMSpecError(f"{name}: layers={shown(layers)} must be a list of layers, or None for all")
        self.layers = None if layers is None else [whole_number(self, lowest=0, layers=layer) for layer in layers]

    def meet(self, target: Target) -> None:
        """Refuse layers that there are not."""
        total = len(target.family.layers)
        if beyond := [layer for layer in self.layers or [] if layer >= total]:
            raise MMSpecError(
                f"{type(self).__name__}: layers has {beyond[0]}, which is none of the {total} of "
                f"{type(target.model).__name__}"
            )

    def asked_layers(self, target: Target) -> list[int]:
        """Return the layers whose attention counts."""
        return [*range(len(target.family.layers))] if self.layers is None else self.layers

    def layers_seen(self, target: Target) -> list[int]:
        """Return the layers that their attention needs."""
        needed = [one for layer in self.asked_layers(target) for one in layers_of_attention(target, layer)]
        return [*dict.fromkeys(needed)]

    def looks(self, target: Target, view: TargetView) -> Iterator[LayerLook]:
        """Yield the layers whose attention counts, one at a time, so that the keys of one alone are in memory."""
        for layer in self.asked_layers(target):
            yield LayerLook(target, layer, view.features, view.request.inputs)

    def attention(self, target: Target, view: TargetView, words: Tensor) -> Tensor:
        """Return the attention that every token receives, `[batch, length]`, the mean over the layers."""
        return torch.stack([look.received(words) for look in self.looks(target, view)]).mean(0)
