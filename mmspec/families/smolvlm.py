"""SmolVLM and Idefics 3: pictures in tiles, batched by row and padded with empty pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .base import Family
from .encoders import Encoder
from .vision import Vision


class EqualTiles(Encoder):
    """An encoder of tiles. Each counts as a picture of its own, and so does each frame of a video."""

    @property
    def projector(self) -> nn.Module:
        """The projection behind the tower."""
        return self.model.model.connector.modality_projection

    def read(self, output: Any, features: Tensor | None, inputs: dict[str, Any]) -> Vision:
        """Take one entry for every tile, all of one size."""
        embeds = torch.cat([picture.reshape(-1, picture.shape[-1]) for picture in output.pooler_output])
        tiles = list(embeds.split(self.model.model.image_seq_len))
        aligned = None if features is None else self.align(features, tiles, inputs)
        return Vision(tiles, aligned, [self.kind] * len(tiles))


class SmolVLM(Family):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration`."""

    model_types = ("smolvlm", "idefics3")

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [EqualTiles(model, "image", "pixel_values", "pixel_attention_mask")]
