"""The target's keys and values of a text, computed again for one layer from the state that enters it.

A request has them in its cache. A lesson only has states: from the one that enters a layer, its keys and values are
norms and projections away. The layer itself makes them, so nothing about a family's attention has to be known, and it
is stopped where it would hand them to a cache, before it attends.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..compat import CACHE
from ..errors import MMSpecError
from .attention import turning
from .tensor_parallel import refuse_divided

if TYPE_CHECKING:
    from ..target import Target

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`."""


class _Made(Exception):
    """Carries keys and values out of a layer that has just made them."""


class _Catching(DynamicCache):
    """A cache that takes nothing in: it stops the pass that would write to it."""

    def update(self, key_states: Tensor, value_states: Tensor, *arguments: Any, **named: Any) -> Entries:
        """Raise `_Made` with the keys and values."""
        raise _Made(key_states, value_states)


def deepest_cached(target: Target) -> int:
    """Return the number of the last layer that has keys and values of its own. In models whose last layers read those
    of earlier ones (Gemma 4's E2B) that is not the last layer."""
    return len(target.cache_shapes) - 1


@torch.no_grad()
def keys_values_of(target: Target, layer: int, states: Tensor, positions: Tensor) -> Entries:
    """Return the keys and values that a layer makes of a text, as its cache would hold them: turned by their positions.

    Args:
        target: the model.
        layer: number of the layer.
        states: `[batch, length, hidden]` states that enter it: the feature with the layer's number (see
            `mmspec.models.states.capture`).
        positions: `[batch, length]` or `[axes, batch, length]` positions of the tokens.

    Raises:
        MMSpecError: for a model whose layers take other arguments than states, positions and a cache, or are divided
            among processes.
    """
    refuse_divided(target)
    block = target.family.layers[layer]
    named: dict[str, Any] = {"attention_mask": None, "position_ids": positions, CACHE: _Catching(), "use_cache": True}
    named |= {"per_layer_input": None, "shared_kv_states": {}}  # of a Gemma 4
    taken = inspect.signature(block.forward).parameters
    named = {name: value for name, value in named.items() if name in taken}
    try:
        with target.family.passing():
            if "position_embeddings" in taken:
                named["position_embeddings"] = turning(target, layer, states, positions)
            block(states, **named)
    except _Made as made:
        keys, values = made.args
        return keys, values
    except (AttributeError, TypeError) as error:
        raise _unknown(target) from error
    raise _unknown(target)


def _unknown(target: Target) -> MMSpecError:
    return MMSpecError(
        f"the keys and values of {type(target.model).__name__} cannot be computed from its states, so that no drafter "
        "that reads them is trained for it: choose another recipe, such as eagle3"
    )
