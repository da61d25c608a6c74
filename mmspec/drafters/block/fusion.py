"""Fusion: the states of several layers of the target become one, for all layers of a drafter or for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fused(states: Tensor, fc: nn.Module | None, weights: Tensor | None, norm: nn.Module) -> Tensor:
    """Return `[layers or 1, batch, length, hidden]` fused states, for each layer or for all: the normed sum of a linear
    map of all states and of a mix of them that every layer weighs in its own way, or one of the two.

    Args:
        states: `[batch, length, taps * state]` those of the target's layers side by side.
        fc: the linear map; None without it.
        weights: `[layers, taps]` whose softmax are a layer's weights; None without a mix.
        norm: norm of the sum.
    """
    total = None if fc is None else fc(states)[None]
    if weights is not None:
        shares = weights.softmax(-1).to(states.dtype)
        mixed = torch.einsum("dt,blth->dblh", shares, states.unflatten(-1, (weights.shape[-1], -1)))
        total = mixed if total is None else total + mixed
    assert total is not None, "one of the two is there"
    return norm(total)


def weights_at_first(layers: int, taps: int) -> Tensor:
    """Return the `[layers, taps]` weights that mixes begin with: each layer's largest is at the state whose place among
    the target's is its own among the drafter's (DFlare, arXiv 2606.02091)."""
    # No linspace: once transformers has loaded a model, `torch.device("meta")` may pass that function by.
    ideal = torch.arange(layers)[:, None] * ((taps - 1) / max(layers - 1, 1))
    return -2.0 * (torch.arange(taps) - ideal).abs()
