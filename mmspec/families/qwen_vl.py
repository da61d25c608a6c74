"""Qwen2.5-VL: dynamic resolution, windowed vision attention, and three-axis rotary positions (M-RoPE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Family


class Qwen25VL(Family):
    """`Qwen2_5_VLForConditionalGeneration`.

    A picture of h x w tokens advances the text position by max(h, w) only, so text that follows it stands at its index
    plus a negative delta. The model keeps that delta in a mutable attribute that concurrent requests would overwrite;
    here it is computed once per request and positions are always passed explicitly.
    """

    model_types = ("qwen2_5_vl",)
    vision_inputs = ("pixel_values", "image_grid_thw")

    @property
    def vision_projector(self) -> nn.Module:
        return self.model.model.visual.merger

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """The tower works window by window: put its patches back in reading order, those of a token side by side."""
        from transformers.vision_utils import get_vision_window_index

        visual = self.model.model.visual
        merged = features.reshape(-1, visual.spatial_merge_unit * features.shape[-1])
        window_index, _ = get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        merged = merged[torch.argsort(window_index.to(merged.device))]
        return list(merged.split([image.shape[0] for image in embeds]))

    def grids(self, inputs: dict[str, Any], sizes: list[int]) -> list[tuple[int, int] | None]:
        grid, edge = inputs.get("image_grid_thw"), self.model.model.visual.spatial_merge_size
        if grid is None:  # consumed by `generate`
            return [None] * len(sizes)
        return [(rows // edge, columns // edge) for _, rows, columns in grid.tolist()]

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        given = inputs.get("position_ids")
        if given is not None and given.ndim == 3:  # from inside `generate`, which has consumed the grid
            axes = given[-3:]
            real = inputs["attention_mask"].bool()
            last = axes.masked_fill(~real, 0).amax(dim=(0, 2))
            return axes, last + 1 - real.sum(-1)
        if inputs.get("image_grid_thw") is None:
            return super().positions(inputs)
        ids = inputs["input_ids"]
        types = inputs.get("mm_token_type_ids")
        if types is None:
            types = (ids == self.image_token_id).int()
        position_ids, delta = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=types,
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        return position_ids, delta.view(-1)
