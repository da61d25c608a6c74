"""LLaVA-NeXT and LLaVA-OneVision: a picture is seen whole and in tiles, with a learnt line break after every row."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from .base import Family
from .vision import Vision


class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`. What a picture's tokens saw is put together as the model puts its own
    together, with zeros at the line breaks."""

    model_types = ("llava_next",)
    image_inputs = ("pixel_values", "image_sizes")

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any], kind: str) -> list[Tensor]:
        inner, config = self.model.model, self.model.config
        parts, _ = inner.pack_image_features(
            features.split(self._tiles(inputs)),
            inputs["image_sizes"],
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=features.new_zeros(features.shape[-1]),
        )
        return parts

    def _tiles(self, inputs: dict[str, Any]) -> list[int]:
        """Tiles of every picture, the whole one included."""
        tiles_of = importlib.import_module(type(self.model).__module__).image_size_to_num_patches
        pinpoints, edge = self.model.config.image_grid_pinpoints, self.model.config.vision_config.image_size
        return [tiles_of(size, pinpoints, edge) for size in inputs["image_sizes"]]

    def grids(self, inputs, vision) -> list[None]:
        """A thumbnail and tiles with line breaks are no rectangle."""
        return [None] * len(vision.sizes)


class LlavaOneVision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`, with videos, whose frames are pooled. Several pictures in one prompt
    are not tiled."""

    model_types = ("llava_onevision",)
    image_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    video_inputs = ("pixel_values_videos",)

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any], kind: str) -> list[Tensor]:
        inner = self.model.model
        newline = features.new_zeros(features.shape[-1])
        if kind == "image":
            tiles = features.split(self._tiles(inputs))
            parts, _ = inner.pack_image_features(
                tiles,
                inputs["image_sizes"],
                image_newline=newline,
                vision_aspect_ratio=self.model.config.vision_aspect_ratio,
            )
            return parts
        frames = inner.apply_pooling(features)
        videos = frames.unflatten(0, (len(embeds), -1)).flatten(1, 2)
        return [torch.cat([video, newline[None]]) for video in videos]

    def pictures(self, output: Any, features: Tensor | None, inputs: dict[str, Any], kind: str) -> Vision:
        if kind == "video":  # in transformers 5.17 the line break behind a video is not there yet
            newline = self.model.model.image_newline.to(output.pooler_output)
            output.pooler_output = [
                video if torch.equal(video[-1], newline) else torch.cat([video, newline[None]])
                for video in output.pooler_output
            ]
        return super().pictures(output, features, inputs, kind)

    def _tiles(self, inputs: dict[str, Any]) -> list[int]:
        tiles, counts = super()._tiles(inputs), inputs.get("batch_num_images")
        if counts is None:
            return tiles
        alone = [count == 1 for count in counts for _ in range(count)]
        return [count if tiled else 1 for count, tiled in zip(tiles, alone, strict=True)]
