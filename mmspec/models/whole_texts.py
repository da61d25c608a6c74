"""Passes over whole texts that are made for the states in them, and not for logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .states import capture

if TYPE_CHECKING:
    from ..families import Family


def read_states(
    family: Family,
    layers: Iterable[int],
    embeds: Tensor,
    mask: Tensor | None,
    position_ids: Tensor,
    further: Mapping[str, Any],
) -> dict[int, Tensor]:
    """Run a model over right-padded texts, without a cache; return the states of all tokens.

    Args:
        family: the model.
        layers: features that are wanted, see `capture`.
        embeds: `[batch, length, hidden]` embeddings.
        mask: `[batch, length]` ones on the tokens, see `padding_mask`.
        position_ids: `[batch, length]` or `[axes, batch, length]`.
        further: further arguments of the pass, see `Family.prefill_inputs` and `Family.lasting_inputs`.
    """
    with capture(family, layers) as features:
        family.run(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=False,
            # Logits are made where they are wanted, from the last states. A number instead of a tensor would have a
            # Gemma 4 whose layers share keys leave out states.
            logits_to_keep=torch.zeros(1, dtype=torch.long, device=embeds.device),
            **further,
        )
    return dict(features)
