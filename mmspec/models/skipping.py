"""Layers without their attention, or without their MLP.

Sub-layers are numbered from the first layer on: `2 * layer` is the attention of a layer, `2 * layer + 1` its MLP. What
is left out adds nothing to the states that pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from .twins import twin

ATTENTIONS = ("self_attn", "attention", "attn")
"""Names that layers have for their attention."""

MLPS = ("mlp", "feed_forward", "block_sparse_moe")
"""Names that layers have for their MLP."""


class NoAttention(nn.Module):
    """Stands where attention was, and adds nothing."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, None]:
        """Return zeros of the shape of the input, and no weights of attention."""
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands where an MLP was, and adds nothing."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Return zeros of the shape of the input."""
        return torch.zeros_like(hidden_states)


def attentions_left(skipped: Collection[int], layers: int) -> list[int]:
    """Return the numbers of the layers, of so many, whose attention is not skipped."""
    return [layer for layer in range(layers) if 2 * layer not in skipped]


def untouched(skipped: Collection[int], layers: int) -> int:
    """Return how many first layers, of so many, lack nothing: what they compute is what the whole model computes."""
    return min(skipped, default=2 * layers) // 2


def layers_without(layers: Sequence[nn.Module], skipped: Collection[int]) -> dict[int, nn.Module]:
    """Return the layers that are left, by number, where some sub-layers are skipped.

    Args:
        layers: all layers of a model.
        skipped: numbers of sub-layers.

    Raises:
        MMSpecError: for numbers that there are not, for a layer whose parts have other names, if nothing is left.
    """
    if wrong := sorted(number for number in skipped if not 0 <= number < 2 * len(layers)):
        raise MMSpecError(
            f"skipped={wrong[0]!r} is no sub-layer of {len(layers)} layers: the attention of layer n has the number "
            f"2n, its MLP 2n + 1, and so they end at {2 * len(layers) - 1}"
        )
    kept: dict[int, nn.Module] = {}
    for number, layer in enumerate(layers):
        gone = [2 * number in skipped, 2 * number + 1 in skipped]
        if all(gone):
            continue
        kept[number] = layer
        if any(gone):
            names, nothing = (ATTENTIONS, NoAttention()) if gone[0] else (MLPS, NoMLP())
            kept[number] = other = twin(layer)
            other._modules[_name_of(layer, names)] = nothing
    if not kept:
        raise MMSpecError(f"skipped= names all {2 * len(layers)} sub-layers: leave at least one to draft with")
    return kept


def part_of(layer: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return the part of a layer that has one of these names.

    Raises:
        MMSpecError: if there is none.
    """
    return layer.get_submodule(_name_of(layer, names))


def _name_of(layer: nn.Module, names: Sequence[str]) -> str:
    for name in names:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise MMSpecError(
        f"{type(layer).__name__} has no part called {' or '.join(names)} that could be skipped by itself: skip whole "
        "layers of it"
    )
