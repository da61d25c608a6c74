"""The structure of drafters next to their targets, as bundles say it and projections to other targets need it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..drafters import (
    BlockDrafter,
    Drafter,
    DraftModelDrafter,
    EarlyExitDrafter,
    FeatureDrafter,
    MedusaDrafter,
    ParallelDrafter,
    SkippingDrafter,
    V5e0Drafter,
)
from ..drafters.block.correction import Correction, LookAhead
from ..drafters.block.layer import BlockLayer
from ..models.weights import count_weights
from ..speed.structure import BLOCK, HEAD, LOOKUP, MODEL


def structure_of(drafter: Drafter | None) -> dict[str, Any] | None:
    """Return how a drafter is made next to its target, as `mmspec.speed.structure.structure_from` takes it."""
    if drafter is None:
        return None
    if isinstance(drafter, ParallelDrafter):  # in turn; that it works beside its target is left out
        drafter = drafter.inner
    if isinstance(drafter, BlockDrafter | MedusaDrafter | V5e0Drafter):
        return {"kind": BLOCK, **_one_pass(drafter)}
    target, family = drafter.target, drafter.target.family
    if isinstance(drafter, EarlyExitDrafter):  # that scoring begins behind these layers is left out
        first, head = drafter.first, target.hidden_size * target.vocab_size
        read = sum(map(count_weights, family.layers[:first])) + count_weights(drafter) + head
        layers = first + len(drafter.imitation)
        return {"kind": MODEL, "layers": layers / len(family.layers), "share": read / count_weights(target.model)}
    if isinstance(drafter, SkippingDrafter):  # of the set that has paid most so far
        return {"kind": MODEL, "layers": drafter.kept, "share": drafter.kept}
    own = count_weights(drafter) - (count_weights(drafter.compressor) if drafter.compressor is not None else 0)
    if not own:
        return {"kind": LOOKUP}
    one_pass = {"one_pass": True} if drafter.cheap_levels else {}
    if isinstance(drafter, FeatureDrafter):
        layer, drafted = count_weights(family.layers[0]), _drafted(drafter)
        return {"kind": HEAD, "layers": own / layer, "vocabulary": drafted / target.vocab_size, **one_pass}
    layers = len(drafter.draft_target.family.layers) if isinstance(drafter, DraftModelDrafter) else 1
    share = own / count_weights(target.model)
    return {"kind": MODEL, "layers": layers / len(family.layers), "share": share, **one_pass}


def _one_pass(drafter: BlockDrafter | MedusaDrafter | V5e0Drafter) -> dict[str, float]:
    """Return the fields of `mmspec.speed.structure.BlockStructure`."""
    target = drafter.target
    layer, head = count_weights(target.family.layers[0]), target.hidden_size * target.vocab_size
    if isinstance(drafter, BlockDrafter):
        return _block(drafter, layer, head)
    if isinstance(drafter, V5e0Drafter):  # there is no pass, and every level has a map of its own
        none = dict.fromkeys(("slots", "layers", "read", "entering", "cached", "guesses", "heads"), 0.0)
        return none | {"level": count_weights(drafter.heads) / len(drafter.heads) / layer, "level_heads": 1.0}
    wide = sum(part.weight.numel() for part in drafter.last_maps)
    inner = (count_weights(drafter) - wide) / layer
    passed = {"slots": 1.0, "layers": inner, "read": inner, "entering": 0.0, "cached": 0.0}
    return passed | {"guesses": 1.0, "heads": wide / head}


def _block(drafter: BlockDrafter, layer: float, head: float) -> dict[str, float]:
    """Return the fields of a block.

    Args:
        drafter: the drafter.
        layer: weights of a layer of the target.
        head: weights of its vocabulary head.
    """
    settings = drafter.settings
    heads = _drafted(drafter) * drafter.head.hidden_size / head
    layers, fusion = count_weights(drafter.layers), 0 if drafter.fc is None else count_weights(drafter.fc)
    entering, own = fusion, 0
    for one in drafter.layers:
        assert isinstance(one, BlockLayer)
        attention = one.self_attn
        own_maps = [part for part in (attention.k_proj_target, attention.v_proj_target) if part is not None]
        own += sum(map(count_weights, own_maps))
        entering += sum(map(count_weights, own_maps or [attention.k_proj, attention.v_proj]))
    correction, level, level_heads, seen, ahead = drafter.correction, 0, 0.0, 0.0, 0
    if isinstance(correction, LookAhead):  # all of it is in the pass, and every candidate passes it
        ahead = count_weights(correction)
        seen = ahead * correction.candidates * settings.drafts / settings.block_size
    elif correction is not None:
        level, own_heads = _level(correction, _drafted(drafter))
        level_heads = own_heads / head + heads * correction.asks_head
    return {
        "slots": settings.block_size,
        "layers": (layers - own + seen) / layer,
        "read": (layers + fusion + ahead) / layer,
        "entering": entering / layer,
        "cached": settings.layers,
        "guesses": settings.drafts,
        "heads": heads,
        "level": level / layer,
        "level_heads": level_heads,
    }


def _level(correction: Correction, drafted: int) -> tuple[int, int]:
    """Return the weights that a correction multiplies with at each level: those inside, and those that are as many as
    there are tokens to guess. Embeddings are looked up."""
    parts = list(correction.modules())
    wide = sum(count_weights(part) for part in parts if isinstance(part, nn.Linear) and part.out_features == drafted)
    looked_up = sum(count_weights(part) for part in parts if isinstance(part, nn.Embedding))
    return count_weights(correction) - wide - looked_up + sum(map(count_weights, correction.run_twice)), wide


def _drafted(drafter: Drafter) -> int:
    return drafter.draft_vocab_size or drafter.target.vocab_size
