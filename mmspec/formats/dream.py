"""DREAM: three layers, the middle one attends to the target's states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..drafters import DreamDrafter, DreamSettings, FeatureDrafter
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import Checkpoint

GATE = "layers.1.cross_attn_attn_gate"


class Dream(Format):
    """DREAM (arXiv 2505.19201). `head_dim` follows from the norms of the queries.

    The drafter computes as the release does: the first token sees the mean of all states of the prompt, and the mask of
    the tree does not cover the memory, see `DreamDrafter`. The paper means a memory that the tree masks;
    `drafter.settings = dataclasses.replace(drafter.settings, tree_masked=True)` gives that, with the same weights. All
    visual tokens stay, as in the released code.
    """

    name = "dream"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_dream(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        norm = "layers.1.cross_attn.q_norm.weight"
        checkpoint.require(GATE, norm)
        settings = DreamSettings(first_token="mean", tree_masked=False)
        return assemble(DreamDrafter, checkpoint, target, settings, head_dim=checkpoint.sizes(norm, "head_dim")[0])


def is_dream(keys: Shapes) -> bool:
    """Return True if there is a key that only DREAM has."""
    return GATE in keys
