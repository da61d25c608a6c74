"""Qwen2-VL and Qwen2.5-VL: dynamic resolution, and three-axis rotary positions (M-RoPE)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .encoders import Encoder
from .rope import MultiAxisRope
from .vision import Grid


class Patches(Encoder):
    """Pictures and videos of any size. A token is a square of patches, of a picture or of two video frames."""

    @property
    def projector(self) -> nn.Module:
        """The module that merges patches into tokens."""
        return self.model.model.visual.merger

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Put the patches of a token side by side."""
        merged = features.reshape(-1, self.model.model.visual.spatial_merge_size**2 * features.shape[-1])
        return list(merged.split([picture.shape[0] for picture in embeds]))

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return times, rows and columns of the tokens, from those of the patches."""
        given = inputs.get(f"{self.kind}_grid_thw")
        if given is None:  # consumed by `generate`
            return [None] * len(sizes)
        edge = self.model.model.visual.spatial_merge_size
        return [(times, rows // edge, columns // edge) for times, rows, columns in given.tolist()]


class Qwen2VL(MultiAxisRope):
    """`Qwen2VLForConditionalGeneration`."""

    model_types: tuple[str, ...] = ("qwen2_vl",)
    encoder_type: type[Patches] = Patches
    clock: tuple[str, ...] = ()
    """Outputs of the processor about a video's time, which positions depend on."""

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoders of pictures and of videos."""
        return [
            self.encoder_type(model, "image", "pixel_values", "image_grid_thw"),
            self.encoder_type(model, "video", "pixel_values_videos", "video_grid_thw", further=self.clock),
        ]


class Windowed(Patches):
    """An encoder whose tower attends within windows, and works window by window."""

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Put the tokens back in reading order."""
        from transformers.vision_utils import get_vision_window_index

        visual = self.model.model.visual
        window_index, _ = get_vision_window_index(
            inputs[f"{self.kind}_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        (merged,) = super().align(features, [features.reshape(len(window_index), -1)], inputs)
        merged = merged[window_index.to(merged.device).argsort()]
        return list(merged.split([picture.shape[0] for picture in embeds]))


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`, whose videos have a clock."""

    model_types = ("qwen2_5_vl",)
    encoder_type = Windowed
    clock = ("second_per_grid_ts",)
