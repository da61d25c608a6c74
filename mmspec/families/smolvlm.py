"""SmolVLM and Idefics 3: pictures in tiles, batched by row and padded with empty pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Family
from .vision import Vision


class SmolVLM(Family):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration`. Each tile counts as a picture of its
    own; frames of a video are pictures too."""

    model_types = ("smolvlm", "idefics3")
    image_inputs = ("pixel_values", "pixel_attention_mask")

    @property
    def vision_projector(self) -> nn.Module:
        return self.model.model.connector.modality_projection

    def pictures(self, output: Any, features: Tensor | None, inputs: dict[str, Any], kind: str) -> Vision:
        embeds = torch.cat([image.reshape(-1, image.shape[-1]) for image in output.pooler_output])
        tiles = list(embeds.split(self.model.model.image_seq_len))
        aligned = None if features is None else self.align_features(features, tiles, inputs, kind)
        return Vision(tiles, aligned, [kind] * len(tiles))
