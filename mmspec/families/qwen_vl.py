"""Qwen2-VL and Qwen2.5-VL: dynamic resolution, and three-axis rotary positions (M-RoPE)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import Family
from .rope import MultiAxisRope
from .vision import Vision


class Qwen2VL(MultiAxisRope, Family):
    """`Qwen2VLForConditionalGeneration`. A visual token is a square of patches, of a picture or of two video frames."""

    model_types = ("qwen2_vl",)
    image_inputs = ("pixel_values", "image_grid_thw")
    video_inputs = ("pixel_values_videos", "video_grid_thw")

    @property
    def vision_projector(self) -> nn.Module:
        return self.model.model.visual.merger

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any], kind: str) -> list[Tensor]:
        """Put the patches of a token side by side."""
        merged = features.reshape(-1, self.model.model.visual.spatial_merge_size**2 * features.shape[-1])
        return list(merged.split([image.shape[0] for image in embeds]))

    def grids(self, inputs: dict[str, Any], vision: Vision) -> list[tuple[int, int] | None]:
        """The frames of a video stand below one another."""
        edge, found = self.model.model.visual.spatial_merge_size, []
        given = {kind: inputs.get(f"{kind}_grid_thw") for kind in ("image", "video")}
        left = {kind: iter(grid.tolist()) for kind, grid in given.items() if grid is not None}
        for kind in vision.kinds or ["image"] * len(vision.sizes):
            if kind not in left:  # consumed by `generate`
                found.append(None)
                continue
            times, rows, columns = next(left[kind])
            found.append((times * rows // edge, columns // edge))
        return found


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`. Its tower attends within windows, and videos have a clock."""

    model_types = ("qwen2_5_vl",)
    further_inputs = ("second_per_grid_ts",)

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any], kind: str) -> list[Tensor]:
        """The tower works window by window: put its tokens back in reading order."""
        from transformers.vision_utils import get_vision_window_index

        visual = self.model.model.visual
        window_index, _ = get_vision_window_index(
            inputs[f"{kind}_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        (merged,) = super().align_features(features, [features.reshape(len(window_index), -1)], inputs, kind)
        merged = merged[window_index.to(merged.device).argsort()]
        return list(merged.split([image.shape[0] for image in embeds]))
