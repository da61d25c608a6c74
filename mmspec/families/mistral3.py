"""Mistral Small 3.1: a Pixtral tower for pictures of any size, whose patches are merged before they are projected."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .base import Family
from .encoders import Encoder
from .vision import Grid


class MergedPatches(Encoder):
    """Pictures of any size."""

    @property
    def projector(self) -> nn.Module:
        """The first module that sees one vector per visual token: the patches are merged before."""
        # The patches are merged first; this is the first module that sees one vector per visual token.
        return self.model.model.multi_modal_projector.linear_1

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return the rows and columns of every picture, from its size in pixels."""
        if inputs.get("image_sizes") is None:  # consumed by `generate`
            return [None] * len(sizes)
        config = self.model.config
        edge = config.vision_config.patch_size * config.spatial_merge_size
        return [(1, height // edge, width // edge) for height, width in inputs["image_sizes"].tolist()]


class Mistral3(Family):
    """`Mistral3ForConditionalGeneration`. Rows of a picture are separated by tokens of their own."""

    model_types = ("mistral3",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [MergedPatches(model, "image", "pixel_values", "image_sizes")]
