"""Qwen3-VL: M-RoPE, and visual features that join the states behind the first layers as well (DeepStack)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .qwen_vl import Patches, Qwen2VL
from .vision import Vision


class Deep(Patches):
    """An encoder whose tower gives features for several layers."""

    def read(self, output: Any, features: Tensor | None, inputs: dict[str, Any]) -> Vision:
        """Take the features for all layers."""
        vision = super().read(output, features, inputs)
        # A layer's features are one tensor in transformers 5.17, and one per picture in 5.23.
        layers = [layer if torch.is_tensor(layer) else torch.cat(list(layer)) for layer in output.deepstack_features]
        layers = [layer.split(vision.sizes) for layer in layers]
        vision.deep = [torch.stack(parts) for parts in zip(*layers, strict=True)]
        return vision


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration`, dense or with experts.

    The outer model adds DeepStack's features (arXiv 2406.04334) only to pictures that it encodes itself, so a prompt
    goes to the language model directly. States that enter the first layers are captured after they were added.
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    encoder_type = Deep
    first_layers_alone = ("visual_pos_masks", "deepstack_visual_embeds")

    @property
    def joined_layers(self) -> int:
        """The number of layers that the vision tower gives features for."""
        return len(self.model.config.vision_config.deepstack_visual_indexes)

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the features for the first layers, and the tokens at which they are added."""
        if vision is None or vision.deep is None:
            return {}
        visual = self.is_visual(inputs["input_ids"]) if visual is None else visual
        return {"visual_pos_masks": visual, "deepstack_visual_embeds": list(torch.cat(vision.deep, dim=1))}

    def forward(self, **arguments: Any) -> Tensor:
        """Run a pass; one with features for several layers goes past the outer model."""
        if "deepstack_visual_embeds" in arguments:
            return self.forward_decoder(**arguments)
        return super().forward(**arguments)
