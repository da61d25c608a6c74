"""HiViS: EAGLE's layer with a third vector in its fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compressors import Hide
from ..drafters import FeatureDrafter, HiVisDrafter, HiVisSettings
from ..errors import MMSpecError
from ..target import Target
from .assembly import assemble, fusion_of
from .base import Format, Shapes
from .checkpoint import Checkpoint

RESIDUALS = ("residual", "adaptive_embedding")
"""Key of the residual, and its key in older checkpoints."""


class HiVis(Format):
    """HiViS (arXiv 2509.23928). The number of the residual's rows follows from the tensor.

    The hidden tokens depend on the target. For Qwen the release hides a picture with its two delimiters and one token
    of text more, and leaves the gap; for LLaVA it hides the picture alone and closes the gap. There is no release for
    other families, so the positions of their text are unknown, and they are refused.
    """

    name = "hivis"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_hivis(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        residual = next((name for name in RESIDUALS if name in checkpoint.shapes), RESIDUALS[0])
        checkpoint.require(residual, "fc.weight")
        hide = hidden_of(checkpoint, target)
        steps = checkpoint.sizes(residual, "steps", "hidden")[0]
        settings = HiVisSettings(steps=steps, packed=hide.packed, **fusion_of(checkpoint.shapes))
        names = {RESIDUALS[0]: residual}
        return assemble(HiVisDrafter, checkpoint, target, settings, compressor=hide, names=names)


def is_hivis(keys: Shapes) -> bool:
    """Return True if there is a key of HiViS's residual."""
    return any(name in keys for name in RESIDUALS)


def hidden_of(checkpoint: Checkpoint, target: Target) -> Hide:
    """Return a compressor that hides the same tokens of a target's prompts as the release.

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
