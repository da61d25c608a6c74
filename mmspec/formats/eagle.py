"""EAGLE and EAGLE-2; and MSD, which has the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..drafters import EagleDrafter, EagleSettings, FeatureDrafter, MsdDrafter
from ..target import Target
from .assembly import INPUT_NORM, assemble, fusion_of
from .base import Format, Shapes
from .block import is_block
from .checkpoint import Checkpoint
from .dream import is_dream
from .eagle3 import is_eagle3
from .hivis import is_hivis
from .vispec import is_vispec


class Eagle(Format):
    """One layer after a fusion of two vectors (arXiv 2401.15077, 2406.16858).

    `fc.bias`, the biases of the attention and a norm at the layer's input may be present or not. The baselines of
    ViSpec and HiViS for vision-language models have this format. They read visual embeddings as the target does, and so
    does the drafter made here.
    """

    name = "eagle"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_plain(keys) and not is_vlm(config)

    def doubt(self, keys: Shapes) -> str:
        """Return, for the log, a reason to think of another format; empty if there is none."""
        if INPUT_NORM not in keys:
            return ""
        return "its layer begins with a norm, as MSD's for Qwen: if it is that, say format='msd'"

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        return assemble(EagleDrafter, checkpoint, target, EagleSettings(**fusion_of(checkpoint.shapes)))


class Msd(Format):
    """MSD: EAGLE's keys under the configuration of a whole vision-language model (arXiv 2505.14260).

    That configuration alone tells it from EAGLE: text and pictures enter by different ways, which needs no weights. For
    Qwen2-VL the layer has an `input_layernorm`. Positions have one axis: the original feeds its M-RoPE with three equal
    ones.
    """

    name = "msd"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_plain(keys) and is_vlm(config)

    def doubt(self, keys: Shapes) -> str:
        """Return, for the log, a reason to think of another format; empty if there is none."""
        return "EAGLE has the same keys, and only config.json tells them apart: if it is that, say format='eagle'"

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        return assemble(MsdDrafter, checkpoint, target, EagleSettings(**fusion_of(checkpoint.shapes)))


def is_plain(keys: Shapes) -> bool:
    """Return True if there is a fusion, and no key that another method adds."""
    others = (is_eagle3, is_vispec, is_hivis, is_dream, is_block)
    return "fc.weight" in keys and not any(is_other(keys) for is_other in others)


def is_vlm(config: Mapping[str, Any]) -> bool:
    """Return True for the configuration of a whole vision-language model, of transformers or of LLaVA's own code."""
    return isinstance(config.get("vision_config"), Mapping) or any(name.startswith("mm_") for name in config)
