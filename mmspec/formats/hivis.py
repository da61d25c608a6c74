"""HiViS: EAGLE's layer with a third vector in its fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compressors import Hide
from ..drafters import FeatureDrafter, HiVisDrafter
from ..errors import MMSpecError
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import Checkpoint

RESIDUALS = ("residual", "adaptive_embedding")
"""Its name, and the one in older checkpoints."""


class HiVis(Format):
    """HiViS (arXiv 2509.23928). The residual's rows are those of the tensor.

    What is hidden depends on the target: for Qwen the release hides a picture with its two delimiters and one token of
    text more, and leaves the gap; for LLaVA it hides the picture alone and closes up. There is no release for others,
    so nobody says how their text should stand, and they are refused.
    """

    name = "hivis"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        return is_hivis(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        keys = checkpoint.shapes
        residual = next((name for name in RESIDUALS if name in keys), RESIDUALS[0])
        checkpoint.require(residual, "fc.weight")
        hide = hidden_of(checkpoint, target)
        settings = {
            "bias": "fc.bias" in keys,
            "input_norm": "layers.0.input_layernorm.weight" in keys,
            "steps": checkpoint.sizes(residual, "steps", "hidden")[0],
            "packed": hide.packed,
            "compressor": hide.config(),
        }
        return assemble(HiVisDrafter, checkpoint, target, settings, names={RESIDUALS[0]: residual})


def is_hivis(keys: Shapes) -> bool:
    return any(name in keys for name in RESIDUALS)


def hidden_of(checkpoint: Checkpoint, target: Target) -> Hide:
    """What the release hides of a target's prompts.

    Raises:
        MMSpecError: for a target of a family without a release.
    """
    kind = target.model.config.model_type
    if kind.startswith("qwen"):
        return Hide(packed=False, margin=(1, 2))
    if kind.startswith("llava"):
        return Hide(packed=True)
    raise MMSpecError(
        f"{checkpoint}: HiViS was released for LLaVA and Qwen-VL, which place text around hidden pictures in two "
        f"different ways, and not for {kind!r}; load it for one of those"
    )
